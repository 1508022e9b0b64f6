//! What the tests of disks share: a driver that runs operations on a queue, and memory in any shape.
#![allow(dead_code)] // each test program uses its own part
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

pub mod loopdev;
pub mod memory;

use memory::Memory;
use outboard_reactor::{Buffers, Config, Reactor, Wake};
use outboard_storage::disk::{Completion, Disk, DiskQueue, Op};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::{Duration, Instant},
};

/// Far more than any operation of any disk here takes.
const DEADLINE: Duration = Duration::from_secs(120);

/// One queue of a disk, and the reactor it works with. Keeps the books: a token in flight completes exactly once.
pub struct Driver {
    pub reactor: Reactor,
    queue: Option<Box<dyn DiskQueue>>,
    next_token: u32,
    flying: BTreeSet<u32>,
    finished: BTreeMap<u32, Completion>,
    /// Tokens in the order in which they completed.
    pub order: Vec<u32>,
}

impl Driver {
    pub fn new(disk: &dyn Disk) -> Driver {
        let reactor = Reactor::new(Config::default()).unwrap();
        let queue = disk.open_queue(reactor.port()).unwrap();
        Driver {
            reactor,
            queue: Some(queue),
            // Not from zero, so that a token that is mistaken for a slot's number shows.
            next_token: 0x8000_0000,
            flying: BTreeSet::new(),
            finished: BTreeMap::new(),
            order: Vec::new(),
        }
    }

    pub fn start(&mut self, op: Op) -> u32 {
        let token = self.next_token;
        self.next_token += 3;
        self.flying.insert(token);
        self.queue.as_mut().unwrap().submit(token, op);
        self.check_books();
        token
    }

    /// Waits until the operation is done.
    pub fn finish(&mut self, token: u32) -> Completion {
        let deadline = Instant::now() + DEADLINE;
        let mut wakes = Vec::new();
        loop {
            self.take_completions();
            if let Some(completion) = self.finished.remove(&token) {
                return completion;
            }
            assert!(self.flying.contains(&token), "token {token} is unknown");
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "operation {token} did not complete");
            wakes.clear();
            self.reactor.wait(&mut wakes, Some(left)).unwrap();
            assert!(
                wakes.iter().all(|w| matches!(w, Wake::Port { .. })),
                "{wakes:?}"
            );
        }
    }

    /// Lets the reactor work for a moment and takes what completed.
    pub fn poll(&mut self, timeout: Duration) {
        self.reactor.wait(&mut Vec::new(), Some(timeout)).unwrap();
        self.take_completions();
    }

    fn take_completions(&mut self) {
        while let Some(completion) = self.queue.as_mut().unwrap().next_completion() {
            let token = completion.token;
            assert!(
                self.flying.remove(&token),
                "token {token} completed twice, or was never submitted"
            );
            self.order.push(token);
            self.finished.insert(token, completion);
        }
        self.check_books();
    }

    fn check_books(&self) {
        let in_flight = self.queue.as_ref().unwrap().in_flight();
        assert_eq!(in_flight as usize, self.flying.len(), "in_flight is wrong");
    }

    /// Runs one operation.
    pub fn run(&mut self, op: Op) -> io::Result<()> {
        let token = self.start(op);
        self.finish(token).result
    }

    /// The errno with which an operation fails.
    pub fn errno(&mut self, op: Op) -> i32 {
        let error = self.run(op).expect_err("the operation should fail");
        error.raw_os_error().expect("an errno")
    }

    pub fn read(&mut self, offset: u64, len: usize) -> Vec<u8> {
        let memory = Memory::plain(len);
        // So that bytes nobody read are not taken for zeroes.
        memory.set(&vec![0xee; len]);
        let buf = memory.buffers();
        self.run(Op::Read { offset, buf }).unwrap();
        memory.get()
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.write_as(offset, bytes, false);
    }

    pub fn write_as(&mut self, offset: u64, bytes: &[u8], durable: bool) {
        let memory = Memory::plain(bytes.len());
        memory.set(bytes);
        let buf = memory.buffers();
        self.run(Op::Write {
            offset,
            buf,
            durable,
        })
        .unwrap();
    }

    /// Takes the queue away, in flight or not.
    pub fn drop_queue(&mut self) {
        self.queue = None;
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if !std::thread::panicking() && self.queue.is_some() {
            self.take_completions();
            assert!(
                self.flying.is_empty(),
                "operations left behind: {:?}",
                self.flying
            );
        }
        self.queue = None;
    }
}

/// Bytes that differ from block to block and from seed to seed.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes
}

/// An operation's buffers without any bytes.
pub fn empty() -> Buffers {
    Buffers::empty()
}
