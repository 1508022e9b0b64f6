//! Receiving: one message at a time, in whatever pieces it comes.

use super::{HEADER, MAX_BODY, MAX_FDS, VERSION, WireError, table};
use rustix::{
    io::Errno,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg},
};
use std::{
    io::IoSliceMut,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};
use vhost::vhost_user::message::VhostUserHeaderFlag;

/// A whole message; the length of its body fits its request, everything else is still to be judged.
#[derive(Debug)]
pub struct Message {
    /// request code, perhaps one that nobody knows
    pub code: u32,
    /// the front end waits for an acknowledgement (means something once REPLY_ACK is negotiated)
    pub need_reply: bool,
    /// at most [`MAX_BODY`] bytes
    pub body: Vec<u8>,
    /// at most as many as the request takes
    pub fds: Vec<OwnedFd>,
}

/// What one look at the socket brought.
#[derive(Debug)]
pub enum Received {
    /// a whole message
    Message(Message),
    /// nothing more for now
    Nothing,
    /// the peer closed its end; `midway` if it left half a message
    HungUp {
        /// bytes of a message had come
        midway: bool,
    },
}

/// The message that is coming in.
#[derive(Debug, Default)]
pub struct Receiver {
    header: [u8; HEADER],
    body: Vec<u8>,
    have: usize,
    fds: Vec<OwnedFd>,
    begun: Option<Instant>,
}

/// The header's three words.
#[derive(Debug, Clone, Copy)]
struct Header {
    request: u32,
    flags: u32,
    size: u32,
}

impl Header {
    fn parse(bytes: &[u8; HEADER]) -> Header {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = *bytes;
        Header {
            request: u32::from_ne_bytes([a, b, c, d]),
            flags: u32::from_ne_bytes([e, f, g, h]),
            size: u32::from_ne_bytes([i, j, k, l]),
        }
    }

    fn refuse(self, why: &'static str) -> WireError {
        let Header {
            request,
            flags,
            size,
        } = self;
        WireError::Header {
            request,
            flags,
            size,
            why,
        }
    }

    /// The length of the body, if the header is one that a front end may send.
    fn check(self) -> Result<usize, WireError> {
        if self.flags & VhostUserHeaderFlag::VERSION.bits() != VERSION {
            return Err(self.refuse("the version is not 1"));
        }
        if self.flags & VhostUserHeaderFlag::REPLY.bits() != 0 {
            return Err(self.refuse("a reply, where only requests come"));
        }
        if self.flags & VhostUserHeaderFlag::RESERVED_BITS.bits() != 0 {
            return Err(self.refuse("reserved flags are set"));
        }
        let size = usize::try_from(self.size).unwrap_or(usize::MAX);
        if size > MAX_BODY || !table::rule(self.request).body.takes(size) {
            return Err(self.refuse("the length does not fit the request"));
        }
        Ok(size)
    }
}

impl Receiver {
    /// When the message that is coming in must be whole.
    pub fn deadline(&self, within: Duration) -> Option<Instant> {
        self.begun.map(|t| t + within)
    }

    /// Bytes of header and body that have come.
    pub fn have(&self) -> usize {
        self.have
    }

    /// Takes what the socket holds, up to the end of one message. Never waits.
    pub fn receive(&mut self, socket: impl AsFd) -> Result<Received, WireError> {
        let socket = socket.as_fd();
        loop {
            if self.have < HEADER {
                let have = self.have;
                let Some(rest) = self.header.get_mut(have..) else {
                    return Ok(Received::Nothing);
                };
                let Some(more) = some_bytes(socket, rest, &mut self.fds)? else {
                    return Ok(Received::Nothing);
                };
                if more == 0 {
                    return Ok(Received::HungUp {
                        midway: self.have > 0,
                    });
                }
                self.begun.get_or_insert_with(Instant::now);
                self.have += more;
                self.check_fds(MAX_FDS)?;
                if self.have < HEADER {
                    continue;
                }
                let size = Header::parse(&self.header).check()?;
                self.body.clear();
                self.body.resize(size, 0);
            }
            let header = Header::parse(&self.header);
            self.check_fds(table::rule(header.request).fds.1)?;
            if self.have == HEADER + self.body.len() {
                self.have = 0;
                self.begun = None;
                return Ok(Received::Message(Message {
                    code: header.request,
                    need_reply: header.flags & VhostUserHeaderFlag::NEED_REPLY.bits() != 0,
                    body: std::mem::take(&mut self.body),
                    fds: std::mem::take(&mut self.fds),
                }));
            }
            let at = self.have - HEADER;
            let Some(rest) = self.body.get_mut(at..) else {
                return Ok(Received::Nothing);
            };
            let Some(more) = some_bytes(socket, rest, &mut self.fds)? else {
                return Ok(Received::Nothing);
            };
            if more == 0 {
                return Ok(Received::HungUp { midway: true });
            }
            self.have += more;
        }
    }

    /// More than the request takes: the surplus could only be kept open for nothing, or be used against us.
    fn check_fds(&self, most: usize) -> Result<(), WireError> {
        if self.fds.len() <= most {
            return Ok(());
        }
        let name = if self.have < HEADER {
            "a message".to_owned()
        } else {
            table::name(Header::parse(&self.header).request)
        };
        Err(WireError::Descriptors {
            name,
            found: self.fds.len(),
            expected: format!("at most {most}"),
        })
    }
}

/// One `recvmsg` into `bytes`, descriptors into `fds`. `None`: nothing there; `Some(0)`: the end of the stream.
fn some_bytes(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> Result<Option<usize>, WireError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let got = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, flags) {
            Ok(got) => break got,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(None),
            // The peer died with our bytes unread: the kernel's way of telling a hang-up.
            Err(Errno::CONNRESET) => return Ok(Some(0)),
            Err(e) => {
                return Err(WireError::Io {
                    what: "receiving",
                    source: e.into(),
                });
            }
        }
    };
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if got.flags.contains(ReturnFlags::CTRUNC) {
        return Err(WireError::DescriptorsLost);
    }
    Ok(Some(got.bytes))
}
