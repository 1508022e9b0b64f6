//! The other end of the wire with a framing of its own: shares no code and no number with what it tests.

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::{
    fs::File,
    io::{ErrorKind, IoSlice, Read},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::Duration,
};

/// Long enough for a loaded machine; only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub const VERSION: u32 = 1;
pub const REPLY: u32 = 4;
pub const NEED_REPLY: u32 = 8;

pub const GET_FEATURES: u32 = 1;
pub const SET_FEATURES: u32 = 2;
pub const SET_OWNER: u32 = 3;
pub const RESET_OWNER: u32 = 4;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
pub const SET_VRING_BASE: u32 = 10;
pub const GET_VRING_BASE: u32 = 11;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const SET_VRING_ERR: u32 = 14;
pub const GET_PROTOCOL_FEATURES: u32 = 15;
pub const SET_PROTOCOL_FEATURES: u32 = 16;
pub const GET_QUEUE_NUM: u32 = 17;
pub const SET_VRING_ENABLE: u32 = 18;
pub const SET_BACKEND_REQ_FD: u32 = 21;
pub const GET_CONFIG: u32 = 24;
pub const SET_CONFIG: u32 = 25;
pub const RESET_DEVICE: u32 = 34;
pub const GET_MAX_MEM_SLOTS: u32 = 36;
pub const ADD_MEM_REG: u32 = 37;
pub const REM_MEM_REG: u32 = 38;

pub const F_VERSION_1: u64 = 1 << 32;
pub const F_INDIRECT: u64 = 1 << 28;
pub const F_EVENT_IDX: u64 = 1 << 29;
pub const F_PROTOCOL: u64 = 1 << 30;

/// MQ, REPLY_ACK, BACKEND_REQ, CONFIG, RESET_DEVICE, CONFIGURE_MEM_SLOTS.
pub const PROTOCOL: u64 = 1 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 13 | 1 << 15;

#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    pub code: u32,
    pub flags: u32,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn u64(&self) -> u64 {
        u64::from_ne_bytes(self.body.as_slice().try_into().expect("a u64 as reply"))
    }
}

#[derive(Debug)]
pub struct Raw(pub UnixStream);

pub fn header(code: u32, flags: u32, size: u32) -> Vec<u8> {
    [code, flags, size]
        .iter()
        .flat_map(|w| w.to_ne_bytes())
        .collect()
}

pub fn message(code: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = header(code, flags, u32::try_from(body.len()).unwrap());
    bytes.extend_from_slice(body);
    bytes
}

pub fn state(index: u32, num: u32) -> Vec<u8> {
    [index, num].iter().flat_map(|w| w.to_ne_bytes()).collect()
}

pub fn addresses(index: u32, flags: u32, descriptor: u64, used: u64, available: u64) -> Vec<u8> {
    let mut body = state(index, flags);
    body.extend(
        [descriptor, used, available, 0]
            .iter()
            .flat_map(|w| w.to_ne_bytes()),
    );
    body
}

/// guest address, size, user address, offset into the file
pub type Region = [u64; 4];

pub fn table(regions: &[Region]) -> Vec<u8> {
    let mut body = state(u32::try_from(regions.len()).unwrap(), 0);
    body.extend(regions.iter().flatten().flat_map(|w| w.to_ne_bytes()));
    body
}

pub fn single(region: Region) -> Vec<u8> {
    [0].iter()
        .chain(&region)
        .flat_map(|w| w.to_ne_bytes())
        .collect()
}

pub fn config(offset: u32, data: &[u8]) -> Vec<u8> {
    let size = u32::try_from(data.len()).unwrap();
    let mut body: Vec<u8> = [offset, size, 0]
        .iter()
        .flat_map(|w| w.to_ne_bytes())
        .collect();
    body.extend_from_slice(data);
    body
}

pub fn eventfd() -> OwnedFd {
    use rustix::event::EventfdFlags;
    rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("eventfd")
}

pub fn memfd(size: u64) -> File {
    let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
    rustix::fs::ftruncate(&fd, size).expect("ftruncate");
    fd.into()
}

impl Raw {
    pub fn connect(path: &Path) -> Raw {
        let stream = UnixStream::connect(path).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Raw(stream)
    }

    /// Bytes and descriptors as they are, in one sendmsg. False: the other end has closed.
    pub fn bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        match sendmsg(
            &self.0,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        ) {
            Ok(n) => {
                assert_eq!(n, bytes.len(), "a short send");
                true
            }
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => false,
            Err(e) => panic!("sendmsg: {e}"),
        }
    }

    pub fn send(&self, code: u32, flags: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        self.bytes(&message(code, flags | VERSION, body), fds)
    }

    pub fn reply(&self) -> Reply {
        let mut head = [0; 12];
        (&self.0).read_exact(&mut head).expect("a reply");
        let word = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().unwrap());
        let mut body = vec![0; usize::try_from(word(8)).unwrap()];
        (&self.0)
            .read_exact(&mut body)
            .expect("the body of a reply");
        Reply {
            code: word(0),
            flags: word(4),
            body,
        }
    }

    /// A request that answers.
    pub fn get(&self, code: u32, body: &[u8]) -> Reply {
        assert!(
            self.send(code, 0, body, &[]),
            "sending request {code}: closed"
        );
        let reply = self.reply();
        assert_eq!((reply.code, reply.flags), (code, VERSION | REPLY));
        reply
    }

    /// A request with an acknowledgement.
    pub fn ack(&self, code: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> u64 {
        assert!(
            self.send(code, NEED_REPLY, body, fds),
            "sending request {code}: closed"
        );
        let reply = self.reply();
        assert_eq!((reply.code, reply.flags), (code, VERSION | REPLY));
        reply.u64()
    }

    /// A request that must succeed.
    pub fn ok(&self, code: u32, body: &[u8], fds: &[BorrowedFd<'_>]) {
        assert_eq!(self.ack(code, body, fds), 0, "request {code} refused");
    }

    /// SET_VRING_KICK, _CALL or _ERR.
    pub fn ring_fd(&self, code: u32, index: u64, fd: Option<impl AsFd>) {
        match fd {
            Some(fd) => self.ok(code, &index.to_ne_bytes(), &[fd.as_fd()]),
            None => self.ok(code, &(index | 0x100).to_ne_bytes(), &[]),
        }
    }

    /// Protocol features and features as QEMU negotiates them.
    pub fn negotiate(&self, features: u64) {
        self.get(GET_FEATURES, &[]);
        self.get(GET_PROTOCOL_FEATURES, &[]);
        assert!(self.send(SET_PROTOCOL_FEATURES, 0, &PROTOCOL.to_ne_bytes(), &[]));
        self.ok(SET_OWNER, &[], &[]);
        self.ok(SET_FEATURES, &features.to_ne_bytes(), &[]);
    }

    /// Waits until the other end closes; what it still sends is returned.
    pub fn closed(&self) -> Vec<u8> {
        let mut rest = Vec::new();
        match (&self.0).read_to_end(&mut rest) {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
            Err(e) => panic!("the session was not closed: {e}"),
        }
        rest
    }

    /// It answers; false: it closes.
    pub fn is_served(&self) -> bool {
        if !self.send(GET_FEATURES, 0, &[], &[]) {
            return false;
        }
        match (&self.0).read(&mut [0; 20]) {
            Ok(n) => n > 0,
            Err(e) if e.kind() == ErrorKind::ConnectionReset => false,
            Err(e) => panic!("neither answered nor closed: {e}"),
        }
    }

    /// It still answers.
    pub fn alive(&self) {
        self.get(GET_FEATURES, &[]);
    }
}
