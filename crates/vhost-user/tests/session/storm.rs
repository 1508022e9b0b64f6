//! Thousands of connections of garbage and of messages that are nearly right.

use crate::{harness::Bench, raw::*};
use fastrand::Rng;
use std::{
    fs::File,
    io::ErrorKind,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
};

const CONNECTIONS: u64 = 3000;

/// One seed per connection, printed when it fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the storm failed at connection {}", self.0);
        }
    }
}

struct Kit {
    file: File,
    event: OwnedFd,
    pipe: OwnedFd,
    socket: UnixStream,
}

/// A body of the right length for the code, with numbers of the interesting kind.
fn body(rng: &mut Rng, code: u32) -> Vec<u8> {
    let number = |rng: &mut Rng| match rng.u8(0..10) {
        0 => u64::MAX,
        1 => 0,
        2 => rng.u64(..),
        3 => 1 << rng.u8(0..64),
        4 => 4096,
        5 => F_VERSION_1 | F_PROTOCOL,
        6 => PROTOCOL,
        7 => rng.u64(0..0x200),
        _ => rng.u64(0..6),
    };
    let small = |rng: &mut Rng| u32::try_from(number(rng) & 0xffff_ffff).unwrap();
    match code {
        SET_FEATURES | SET_PROTOCOL_FEATURES | SET_VRING_KICK | SET_VRING_CALL | SET_VRING_ERR => {
            number(rng).to_ne_bytes().to_vec()
        }
        SET_VRING_NUM | SET_VRING_BASE | GET_VRING_BASE | SET_VRING_ENABLE => {
            state(rng.u32(0..5), small(rng))
        }
        SET_VRING_ADDR => {
            let at = rng.u64(0..16) * 4096;
            addresses(
                rng.u32(0..5),
                rng.u32(0..2),
                at,
                at + 8192,
                at + 4096 * rng.u64(0..3),
            )
        }
        SET_MEM_TABLE => {
            let regions: Vec<_> = (0..rng.u64(1..4))
                .map(|i| [i << 16, 65536, i << 16, number(rng)])
                .collect();
            table(&regions)
        }
        ADD_MEM_REG | REM_MEM_REG => single([number(rng), number(rng), number(rng), number(rng)]),
        GET_CONFIG | SET_CONFIG => config(small(rng), &vec![1; rng.usize(1..70)]),
        _ => vec![],
    }
}

/// Sends one thing; false when the other end is closed.
fn throw(rng: &mut Rng, kit: &Kit, front: &Raw) -> bool {
    let code = rng.u32(0..46);
    let mut bytes = message(
        code,
        VERSION | if rng.bool() { NEED_REPLY } else { 0 },
        &body(rng, code),
    );
    let wanted = match code {
        SET_VRING_KICK | SET_VRING_CALL | SET_VRING_ERR | ADD_MEM_REG | SET_BACKEND_REQ_FD => 1,
        SET_MEM_TABLE => (bytes.len() - 20) / 32,
        _ => 0,
    };
    let count = if rng.u8(0..20) == 0 {
        rng.usize(0..40)
    } else {
        wanted
    };
    let mut fds = Vec::new();
    for _ in 0..count {
        fds.push(match rng.u8(0..10) {
            0 => front.0.as_fd(),
            1 => kit.socket.as_fd(),
            2 => kit.pipe.as_fd(),
            _ if code == SET_MEM_TABLE || code == ADD_MEM_REG => kit.file.as_fd(),
            _ => kit.event.as_fd(),
        });
    }
    match rng.u8(0..30) {
        // a bit somewhere
        0 => {
            let at = rng.usize(0..bytes.len());
            bytes[at] ^= 1 << rng.u8(0..8);
        }
        // an end too early
        1 => bytes.truncate(rng.usize(1..=bytes.len())),
        // anything at all
        2 => bytes.fill_with(|| rng.u8(..)),
        _ => {}
    }
    front.bytes(&bytes, &fds)
}

trait Fill {
    fn fill_with(&mut self, f: impl FnMut() -> u8);
}
impl Fill for Vec<u8> {
    fn fill_with(&mut self, mut f: impl FnMut() -> u8) {
        self.iter_mut().for_each(|b| *b = f());
    }
}

/// Whatever comes: the next front end is served, and nothing is left of the last.
#[test]
fn garbage_and_near_valid_messages() {
    let bench = Bench::new();
    let kit = Kit {
        file: memfd(1 << 20),
        event: eventfd(),
        pipe: rustix::pipe::pipe().unwrap().1,
        socket: UnixStream::pair().unwrap().0,
    };
    for connection in 0..CONNECTIONS {
        let seed = Seed(connection);
        let mut rng = Rng::with_seed(seed.0);
        let front = bench.connect();
        front.0.set_read_timeout(None).unwrap();
        if rng.u8(0..4) != 0 {
            // Well begun, so that what follows gets further than the first refusal.
            front.bytes(
                &message(SET_PROTOCOL_FEATURES, VERSION, &PROTOCOL.to_ne_bytes()),
                &[],
            );
            front.bytes(
                &message(
                    SET_FEATURES,
                    VERSION,
                    &(F_VERSION_1 | F_PROTOCOL).to_ne_bytes(),
                ),
                &[],
            );
        }
        for _ in 0..rng.usize(1..30) {
            if !throw(&mut rng, &kit, &front) {
                break;
            }
            // Replies are taken as they come, so that nobody waits for us to read.
            front.0.set_nonblocking(true).unwrap();
            let mut heap = [0; 4096];
            match std::io::Read::read(&mut (&front.0), &mut heap) {
                Ok(0) => break,
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
            front.0.set_nonblocking(false).unwrap();
        }
        if rng.bool() {
            drop(front);
        }
        drop(seed);
    }
    // `kit` was made after the watch began.
    drop(kit);
    bench.quiet();
    let front = bench.connect();
    front.negotiate(F_VERSION_1 | F_PROTOCOL);
}
