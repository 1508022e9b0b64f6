//! Raw vhost-user messages with any file descriptors: what the `vhost` crate's front end refuses to send.
//!
//! A [`Wire`] adds nothing and checks nothing. It serves hostile tests on the main socket (alone, or beside a
//! [`Connection`](crate::Connection) on the same socket) and the back-end channel, where this side answers.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::error::{Error, Result};

/// Bytes of a message header: request, flags, size of the payload.
pub const HEADER: usize = 12;
/// Header flags: protocol version 1.
pub const VERSION: u32 = 0x1;
/// Header flag of a reply.
pub const REPLY: u32 = 0x4;
/// Header flag that asks for a reply where the message has none of its own (needs REPLY_ACK).
pub const NEED_REPLY: u32 = 0x8;

/// File descriptors that one `sendmsg` can carry (SCM_MAX_FD of the kernel).
const MAX_FDS: usize = 253;

/// A message as it came in.
#[derive(Debug)]
pub struct RawMessage {
    /// Number of the request.
    pub request: u32,
    /// Flags of the header.
    pub flags: u32,
    /// Payload.
    pub payload: Vec<u8>,
    /// File descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

impl RawMessage {
    /// The payload as the 64-bit number that most replies are.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        self.payload
            .as_slice()
            .try_into()
            .ok()
            .map(u64::from_ne_bytes)
    }
}

/// One end of a vhost-user socket, without any state.
#[derive(Debug)]
pub struct Wire {
    stream: UnixStream,
}

impl Wire {
    /// Connects to a back end and says nothing.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).map_err(|source| Error::Connect {
            path: path.to_path_buf(),
            source,
        })?;
        Ok(Self { stream })
    }

    /// Speaks over a socket that is connected.
    #[must_use]
    pub fn from_stream(stream: UnixStream) -> Self {
        Self { stream }
    }

    /// The socket.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends any bytes with any file descriptors, in one `sendmsg` if the socket takes them at once.
    pub fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Error::BadRequest(format!(
                "{} fds do not fit one message",
                fds.len()
            )));
        }
        let mut sent = 0;
        while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
            // NOSIGNAL: a back end that hung up is an answer, not the end of the test.
            sent += sendmsg(
                &self.stream,
                &[IoSlice::new(rest)],
                &mut control,
                SendFlags::NOSIGNAL,
            )
            .map_err(Error::errno("sendmsg to the back end"))?;
            control.clear();
        }
        Ok(())
    }

    /// Sends a message whose header tells the truth about its size.
    pub fn send(
        &self,
        request: u32,
        flags: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<()> {
        let size = u32::try_from(payload.len())
            .map_err(|_| Error::BadRequest("payload beyond 4 GiB".into()))?;
        self.send_bytes(&message(request, flags, size, payload), fds)
    }

    /// Sends a message with NEED_REPLY and returns the number that came back: 0 for success.
    pub fn ask(
        &self,
        request: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
        within: Duration,
    ) -> Result<RawMessage> {
        self.send(request, VERSION | NEED_REPLY, payload, fds)?;
        self.receive(within)?.ok_or(Error::Closed("a reply"))
    }

    /// Receives one message; `None` if the peer closed the connection instead.
    pub fn receive(&self, within: Duration) -> Result<Option<RawMessage>> {
        let deadline = Instant::now() + within;
        let mut fds = Vec::new();
        let mut header = [0; HEADER];
        if !self.fill(&mut header, &mut fds, deadline, within)? {
            return Ok(None);
        }
        let [request, flags, size] = [0, 4, 8].map(|at| {
            header
                .get(at..at + 4)
                .and_then(|b| b.try_into().ok())
                .map_or(0, u32::from_ne_bytes)
        });
        let mut payload = vec![0; size as usize];
        if !self.fill(&mut payload, &mut fds, deadline, within)? {
            return Ok(None);
        }
        Ok(Some(RawMessage {
            request,
            flags,
            payload,
            fds,
        }))
    }

    /// Waits until the peer hangs up, dropping whatever it still says. `false` if it did not in time.
    pub fn wait_closed(&self, within: Duration) -> Result<bool> {
        let deadline = Instant::now() + within;
        let mut rest = [0; 256];
        loop {
            match self.fill(&mut rest[..1], &mut Vec::new(), deadline, within) {
                Ok(true) => {}
                Ok(false) => return Ok(true),
                Err(Error::NoReply { .. }) => return Ok(false),
                Err(Error::Io { source, .. })
                    if source.kind() == io::ErrorKind::ConnectionReset =>
                {
                    return Ok(true);
                }
                Err(error) => return Err(error),
            }
            rest.fill(0);
        }
    }

    /// Fills `bytes`; `false` at the end of the stream.
    fn fill(
        &self,
        bytes: &mut [u8],
        fds: &mut Vec<OwnedFd>,
        deadline: Instant,
        within: Duration,
    ) -> Result<bool> {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            if !wait_readable(self.stream.as_fd(), deadline)? {
                return Err(Error::NoReply {
                    message: "raw message",
                    after: within,
                });
            }
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(rest)];
            let got = recvmsg(
                &self.stream,
                &mut parts,
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
            .map_err(Error::errno("recvmsg from the back end"))?;
            for part in control.drain() {
                if let RecvAncillaryMessage::ScmRights(received) = part {
                    fds.extend(received);
                }
            }
            if got.bytes == 0 {
                return Ok(false);
            }
            done += got.bytes;
        }
        Ok(true)
    }
}

/// The bytes of a message; `size` may lie.
#[must_use]
pub fn message(request: u32, flags: u32, size: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    for field in [request, flags, size] {
        bytes.extend_from_slice(&field.to_ne_bytes());
    }
    bytes.extend_from_slice(payload);
    bytes
}

/// Waits until an fd is readable (or at its end); `false` when the deadline passed.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, deadline: Instant) -> Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::errno("poll")(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn a_message_travels_with_its_fds() {
        let (left, right) = UnixStream::pair().unwrap();
        let (left, right) = (Wire::from_stream(left), Wire::from_stream(right));
        let null = std::fs::File::open("/dev/null").unwrap();
        left.send(42, VERSION, b"payload", &[null.as_fd(), null.as_fd()])
            .unwrap();
        left.send(43, VERSION | REPLY, &7_u64.to_ne_bytes(), &[])
            .unwrap();
        let first = right.receive(SOON).unwrap().unwrap();
        assert_eq!(
            (first.request, first.flags, first.payload.as_slice()),
            (42, 1, &b"payload"[..])
        );
        assert_eq!(first.fds.len(), 2);
        let second = right.receive(SOON).unwrap().unwrap();
        assert_eq!(
            (second.as_u64(), second.fds.len()),
            (Some(7), 0),
            "the fds stay with their message"
        );
        assert!(!right.wait_closed(Duration::ZERO).unwrap());
        drop(left);
        assert!(right.wait_closed(SOON).unwrap());
        assert!(right.receive(SOON).unwrap().is_none());
    }

    #[test]
    fn silence_is_an_error_that_names_the_wait() {
        let (left, _right) = UnixStream::pair().unwrap();
        let error = Wire::from_stream(left)
            .receive(Duration::from_millis(1))
            .unwrap_err();
        assert!(matches!(error, Error::NoReply { .. }), "{error}");
    }
}
