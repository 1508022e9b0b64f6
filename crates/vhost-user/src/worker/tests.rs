//! Workers against a device of the tests' own and the mock driver: real threads, eventfds and pipes.
//!
//! Absence is never proved by waiting: [`Rig::rounds`] makes the worker go through its loop twice, so whatever it would do, it
//! has done. Deadlines are met only by broken builds.
#![allow(unsafe_code)]

mod device;
mod ends;
mod kicks;
mod load;

use super::*;
use device::{Op, TestDevice};
use outboard_notifier::{Close, Release};
use outboard_virtio::mock::{Buffer, MockDriver, MockMemory};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{
        Mutex,
        mpsc::{Receiver, channel},
    },
    time::{Duration, Instant},
};

const DEADLINE: Duration = Duration::from_secs(30);
const EVENT_IDX: u64 = 1 << 29;
const SIZE: u16 = 128;

/// A ring, its driver and its descriptors, on some pool.
struct Rig {
    pool: Arc<WorkerPool>,
    device: Arc<TestDevice>,
    tenure: Arc<()>,
    driver: MockDriver,
    map: Arc<MemoryMap>,
    kick: OwnedFd,
    call: OwnedFd,
    call_cell: Arc<CallCell>,
    err: OwnedFd,
    err_cell: Arc<CallCell>,
    broken: Arc<Mutex<Vec<String>>>,
    ring: Option<RunningRing>,
    next_avail: u16,
    next_used: u16,
    /// One byte that says what to do, one byte for the answer, for each descriptor.
    bytes: u64,
    added: u64,
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

fn peer(fd: &OwnedFd) -> PeerFd {
    PeerFd::new(fd.try_clone().unwrap()).unwrap()
}

fn signal(fd: &OwnedFd) {
    rustix::io::write(fd, &1u64.to_ne_bytes()).unwrap();
}

/// Takes the count of an eventfd.
fn count(fd: &OwnedFd) -> u64 {
    let mut bytes = [0; 8];
    match rustix::io::read(fd, &mut bytes) {
        Ok(8) => u64::from_ne_bytes(bytes),
        _ => 0,
    }
}

fn state(fd: &impl AsFd, flags: PollFlags, timeout: Duration) -> PollFlags {
    let mut fds = [PollFd::new(fd, flags)];
    let timeout = Timespec::try_from(timeout).unwrap();
    poll(&mut fds, Some(&timeout)).unwrap();
    fds[0].revents()
}

/// Waits for a state that another thread brings about.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < DEADLINE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_micros(100));
    }
}

impl Rig {
    fn new(pool: &Arc<WorkerPool>) -> Rig {
        Rig::with_features(pool, EVENT_IDX)
    }

    fn with_features(pool: &Arc<WorkerPool>, features: u64) -> Rig {
        let memory = MockMemory::flat(1 << 20);
        let mut driver = MockDriver::new(&memory, 0, SIZE, features);
        let bytes = driver.alloc(2 * u64::from(SIZE), 64);
        let (call, err) = (event(), event());
        let (call_cell, err_cell) = (Arc::new(CallCell::new()), Arc::new(CallCell::new()));
        call_cell
            .swap(Some(peer(&call)), Release::none())
            .wait()
            .unwrap();
        err_cell
            .swap(Some(peer(&err)), Release::none())
            .wait()
            .unwrap();
        Rig {
            pool: pool.clone(),
            device: Arc::new(TestDevice::default()),
            tenure: Arc::default(),
            map: Arc::new(memory.map()),
            driver,
            kick: event(),
            call,
            call_cell,
            err,
            err_cell,
            broken: Arc::default(),
            ring: None,
            next_avail: 0,
            next_used: 0,
            bytes,
            added: 0,
        }
    }

    fn started(pool: &Arc<WorkerPool>) -> Rig {
        let mut rig = Rig::new(pool);
        rig.start();
        rig
    }

    fn plan(&self, kick: Option<PeerFd>, enabled: bool) -> RingStart {
        let broken = self.broken.clone();
        RingStart {
            tenure: self.tenure.clone(),
            name: "test".into(),
            index: 0,
            config: QueueConfig {
                next_avail: self.next_avail,
                next_used: Some(self.next_used),
                ..self.driver.config()
            },
            memory: self.map.clone(),
            kick,
            call: self.call_cell.clone(),
            err: self.err_cell.clone(),
            enabled,
            device: self.device.clone(),
            on_broken: Arc::new(move |_, why| broken.lock().unwrap().push(why)),
        }
    }

    fn start(&mut self) {
        self.start_with(Some(peer(&self.kick)), true);
    }

    fn start_with(&mut self, kick: Option<PeerFd>, enabled: bool) {
        let plan = self.plan(kick, enabled);
        self.ring = Some(self.pool.start(plan).unwrap());
    }

    fn ring(&self) -> &RunningRing {
        self.ring.as_ref().unwrap()
    }

    /// Fills in requests; the device does not see them yet.
    fn add(&mut self, op: Op, n: usize) {
        for _ in 0..n {
            let at = self.bytes + 2 * (self.added % u64::from(SIZE));
            self.added += 1;
            self.driver.memory().write(at, &[op as u8, 0]);
            let buffers = [Buffer::readable(at, 1), Buffer::writable(at + 1, 1)];
            self.driver.add(&buffers).expect("free descriptors");
        }
    }

    /// Makes requests available and kicks if the device wants that.
    fn send(&mut self, op: Op, n: usize) {
        self.add(op, n);
        if self.driver.make_available() {
            signal(&self.kick);
        }
    }

    /// Sleeps for calls, as a driver does, until `n` requests were used.
    fn take(&mut self, n: usize) {
        let mut taken = 0;
        while taken < n {
            while self.driver.take_used().is_some() {
                taken += 1;
            }
            if taken < n && !self.driver.enable_calls() {
                let flags = state(&self.call, PollFlags::IN, DEADLINE);
                assert!(
                    flags.contains(PollFlags::IN),
                    "no call; {taken} of {n} used"
                );
                count(&self.call);
            }
        }
        assert_eq!(taken, n);
    }

    /// Makes the worker run its loop over this ring: two commands with answers, so that between them lies a whole round.
    fn rounds(&self) {
        for _ in 0..2 {
            let before = self.ring().counters().passes;
            self.ring().set_memory(self.map.clone()).unwrap();
            let open = self.ring().gate().is_closed().is_none();
            until("a pass", || !open || self.ring().counters().passes > before);
        }
    }

    /// The worker notes its counters only before it sleeps with no limit: so whoever sees them move has seen it do that.
    fn sleeps_without_limit(&self) {
        let before = self.pool.reactor_counters().enters;
        self.rounds();
        until("the worker sleeps with no limit", || {
            self.pool.reactor_counters().enters > before
        });
    }

    fn stop(&mut self, mode: Close) -> (StopTicket, Receiver<()>) {
        let (done, on_done) = channel();
        let release = Release::run(move || done.send(()).unwrap());
        (self.ring.take().unwrap().stop(mode, release), on_done)
    }

    fn stopped(&mut self, (mut ticket, done): (StopTicket, Receiver<()>)) -> StoppedRing {
        done.recv_timeout(DEADLINE)
            .expect("the ring is handed back");
        let stopped = ticket.take().expect("handed back");
        self.next_avail = stopped.next_avail;
        self.next_used = stopped.next_used;
        stopped
    }

    fn drain(&mut self) -> StoppedRing {
        let stopping = self.stop(Close::Drain);
        self.stopped(stopping)
    }
}

fn pool() -> Arc<WorkerPool> {
    WorkerPool::new(1).unwrap()
}
