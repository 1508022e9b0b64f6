//! `--fd`: a descriptor from the parent. Some parents pass a listening socket, some a connected one;
//! SO_ACCEPTCONN tells which.
#![allow(unsafe_code)]

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, bail};
use outboard_vhost_user::server::Endpoint;
use rustix::io::FdFlags;
use rustix::net::{AddressFamily, SocketType, sockopt};

/// Takes the descriptor over (it becomes CLOEXEC) after checking that it is an open unix stream socket.
pub fn take(number: RawFd) -> anyhow::Result<Endpoint> {
    if number < 0 {
        bail!("--fd {number}: a descriptor number is not negative");
    }
    if number == 1 || number == 2 {
        bail!("--fd {number}: stdout and stderr are the daemon's own");
    }
    // SAFETY: only borrowed for this statement; a number that is not open makes the call fail with EBADF.
    let open = rustix::io::fcntl_setfd(unsafe { BorrowedFd::borrow_raw(number) }, FdFlags::CLOEXEC);
    open.with_context(|| format!("--fd {number}: no such descriptor was inherited"))?;
    // SAFETY: the number is open (above) and the operator handed it to us; it is taken once, before the
    // daemon opens a descriptor of its own under it.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    let is_socket = || -> rustix::io::Result<bool> {
        Ok(sockopt::socket_domain(&fd)? == AddressFamily::UNIX
            && sockopt::socket_type(&fd)? == SocketType::STREAM)
    };
    if !matches!(is_socket(), Ok(true)) {
        bail!("--fd {number}: not a unix stream socket");
    }
    if sockopt::socket_acceptconn(&fd).with_context(|| format!("--fd {number}"))? {
        Ok(Endpoint::Listen(fd.into()))
    } else if rustix::net::getpeername(&fd).is_ok() {
        Ok(Endpoint::Connected(fd.into()))
    } else {
        bail!("--fd {number}: the socket neither listens nor is connected");
    }
}
