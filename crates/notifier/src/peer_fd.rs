//! A descriptor that somebody else made and still shares.
//!
//! The peer keeps its copy, so the *file description* is shared: its count, its O_NONBLOCK flag, its position. From
//! that follow the rules of this module (race R19):
//!
//! - **O_NONBLOCK is never set here.** It would change the peer's and the kernel's view of their own descriptor.
//! - At attach the flag is looked at. Set: a bare write(2), whose EAGAIN is [`SignalError::Full`]. Clear: poll(2) for
//!   POLLOUT with timeout 0 first, and not writable is `Full`; a write(2) into a full counter would block the worker, and
//!   with it every other ring that worker serves.
//! - **The residue.** RWF_NOWAIT is not supported on eventfds, so no test can be welded to the write. A peer that clears
//!   O_NONBLOCK after the attach, or fills the counter between our poll and our write, can make *one* write block: until
//!   it reads, or until the blocked thread takes a Unix signal whose handler was installed without SA_RESTART. Then
//!   write(2) returns EINTR, which is passed on as [`SignalError::Interrupted`] and never retried. So a watchdog breaks
//!   the block with tgkill(2); it learns that there is one from
//!   [`DetachTicket::wait_timeout`](crate::DetachTicket::wait_timeout) or from a worker that stopped making progress.
//!
//! [`SignalError::Full`]: crate::SignalError::Full
//! [`SignalError::Interrupted`]: crate::SignalError::Interrupted

use crate::call::SignalError;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat, readlink};
use rustix::io::{Errno, FdFlags, fcntl_getfd, fcntl_setfd};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// A descriptor given by the peer for kick, call or err: an eventfd or a pipe, nothing else; close-on-exec.
///
/// Not clonable: there is exactly one of it in this process, and dropping it is the close.
#[derive(Debug)]
pub struct PeerFd {
    fd: OwnedFd,
    kind: PeerKind,
    nonblocking: bool,
}

/// What a [`PeerFd`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerKind {
    /// An eventfd, as every VMM gives.
    Eventfd,
    /// One end of a pipe: the witness of tests, since its other end sees the last reference go.
    Pipe,
}

/// Neither an eventfd nor a pipe, or not to be examined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongKind {
    /// What it is instead: what `/proc/self/fd` says of it, or why that could not be read.
    pub found: String,
}

impl PeerFd {
    /// Takes an eventfd or a pipe and makes sure that it is close-on-exec; refuses (and closes) every other kind.
    ///
    /// A socket among these could be the peer's own end of our connection: held here it would keep the hang-up from ever
    /// being seen. A file or a directory would pin a file system and swallow writes.
    ///
    /// Both fstat(2) and the link in `/proc/self/fd` are asked, since no system call tells an eventfd from the other
    /// anonymous inodes. So `/proc` must be mounted.
    pub fn new(fd: OwnedFd) -> Result<PeerFd, WrongKind> {
        let kind = kind_of(&fd)?;
        let flags = fcntl_getfd(&fd).map_err(cannot("F_GETFD"))?;
        if !flags.contains(FdFlags::CLOEXEC) {
            fcntl_setfd(&fd, flags | FdFlags::CLOEXEC).map_err(cannot("F_SETFD"))?;
        }
        let mut peer = PeerFd {
            fd,
            kind,
            nonblocking: false,
        };
        peer.look_at_mode();
        Ok(peer)
    }

    /// What it is.
    pub fn kind(&self) -> PeerKind {
        self.kind
    }

    /// Looks at O_NONBLOCK again: the peer shares the flag and may have changed it since.
    pub(crate) fn look_at_mode(&mut self) {
        self.nonblocking =
            fcntl_getfl(&self.fd).is_ok_and(|flags| flags.contains(OFlags::NONBLOCK));
    }

    /// Adds one to the counter (writes 8 bytes into a pipe). One system call if non-blocking, two if not.
    pub(crate) fn signal(&self) -> Result<(), SignalError> {
        if !self.nonblocking && !self.is_writable() {
            return Err(SignalError::Full);
        }
        match rustix::io::write(&self.fd, &1u64.to_ne_bytes()) {
            Ok(_) => Ok(()),
            Err(Errno::AGAIN) => Err(SignalError::Full),
            Err(Errno::INTR) => Err(SignalError::Interrupted),
            Err(errno) => Err(SignalError::Failed(errno.into())),
        }
    }

    /// Whether a write would go through now. An error of poll(2), EINTR among them, counts as no: with a timeout of zero
    /// the kernel reports it only when nothing was ready.
    fn is_writable(&self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&now)).is_ok()
            && fds.iter().any(|fd| fd.revents().contains(PollFlags::OUT))
    }

    /// The number a kernel operation names it by.
    pub(crate) fn number(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

fn kind_of(fd: &OwnedFd) -> Result<PeerKind, WrongKind> {
    let stat = fstat(fd).map_err(cannot("fstat"))?;
    let link = readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())
        .map_err(cannot("read /proc/self/fd of"))?;
    let link = link.to_string_lossy();
    // An anonymous inode has no file type at all, and a path never begins without a slash: neither text can be forged.
    if stat.st_mode & libc::S_IFMT == 0 && link == "anon_inode:[eventfd]" {
        Ok(PeerKind::Eventfd)
    } else if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo && link.starts_with("pipe:[")
    {
        Ok(PeerKind::Pipe)
    } else {
        Err(WrongKind {
            found: link.into_owned(),
        })
    }
}

fn cannot(what: &'static str) -> impl Fn(Errno) -> WrongKind {
    move |errno| WrongKind {
        found: format!("something unknown (cannot {what} it: {errno})"),
    }
}

impl AsFd for PeerFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl fmt::Display for WrongKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected an eventfd or a pipe, found {}", self.found)
    }
}

impl std::error::Error for WrongKind {}
