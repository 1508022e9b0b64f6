//! Rings that are stopped, given other eventfds, or left behind with requests in flight: after the reply the back end
//! touches nothing any more, and after a hang-up nothing of the old session is left.
//!
//! This is what the project is for. A back end that answers GET_VRING_BASE too early writes to a used ring that the
//! VMM has freed, or signals an eventfd that the VMM has given to somebody else.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use outboard_frontend::driver::{drain, eventfd};
use outboard_frontend::{Driver, QueueOptions, Request};
use outboard_tests::daemon::Site;
use outboard_tests::load::Load;
use outboard_tests::process::{Process, SOON};
use vmm_sys_util::eventfd::EventFd;

const MIB: u64 = 1 << 20;
const DEPTH: usize = 32;
/// Blocks of 4 KiB of each queue's part.
const BLOCKS: usize = 256;
const SECTORS: u64 = BLOCKS as u64 * 8;

/// Eventfds that were taken away from the back end, kept for a while: a late signal shows in their count.
#[derive(Default)]
struct Retired(VecDeque<EventFd>);

impl Retired {
    const KEPT: usize = 64;

    /// Takes an eventfd that nobody may signal any more. What was signalled before is forgotten.
    fn add(&mut self, fd: EventFd) {
        drain(&fd).unwrap();
        self.0.push_back(fd);
        if self.0.len() > Self::KEPT {
            Self::check(&self.0.pop_front().unwrap());
        }
    }

    fn check(fd: &EventFd) {
        assert_eq!(
            drain(fd).unwrap(),
            0,
            "a signal on a call eventfd that was taken away"
        );
    }

    fn check_all(&self) {
        self.0.iter().for_each(Self::check);
    }
}

/// Takes up to `count` answers.
fn take(queue: &mut Driver, load: &mut Load, count: usize) {
    for _ in 0..count.min(load.in_flight()) {
        let done = queue.next(SOON).unwrap();
        load.answered(queue, done);
    }
}

/// A thousand times: load on two rings, stop of one of them at a random point. While it is stopped, the other works,
/// so that whatever the daemon still did for the stopped one would show.
fn stop_under_load(disk: &str) {
    let site = Site::new();
    site.image("disk.raw", 4 * MIB);
    let daemon = site.blk(&["--disk", disk, "--num-queues", "2"]);
    let idle = daemon.idle_fds();
    let mut connection = daemon.connect();
    let mut queues = [0, 1].map(|index| connection.queue(index, QueueOptions::default()).unwrap());
    let mut loads = [0, 1].map(|index| Load::new(index * SECTORS, BLOCKS, 4096, index + 1));
    let mut random = fastrand::Rng::with_seed(3);
    let mut retired = Retired::default();
    let mut with_rings = None;
    connection.start(&mut queues[0]).unwrap();
    for round in 0..1000 {
        let (stopping, starting) = (round % 2, (round + 1) % 2);
        connection.start(&mut queues[starting]).unwrap();
        for (queue, load) in queues.iter_mut().zip(&mut loads) {
            load.submit(queue, DEPTH, usize::MAX);
            queue.kick().unwrap();
            take(queue, load, random.usize(..DEPTH));
        }
        let queue = &mut queues[stopping];
        load_more(queue, &mut loads[stopping]);
        let base = connection.stop(queue).unwrap();
        let state = queue.state();
        assert_eq!(
            state.used_idx, base,
            "round {round}: all that was taken is answered; {state}"
        );
        // The VMM closes and reuses these after the reply.
        let (call, kick) = (eventfd().unwrap(), eventfd().unwrap());
        retired.add(queue.replace_call(call));
        queue.replace_kick(kick);
        take(&mut queues[starting], &mut loads[starting], DEPTH / 2);
        let now = queues[stopping].state();
        assert_eq!(
            now.used_idx, base,
            "round {round}: used.idx moved after the reply; {now}"
        );
        // Rings that never ran have no eventfds at the daemon: count from where both have.
        if round == 1 {
            with_rings = Some(daemon.process.fds());
        }
    }
    assert_eq!(
        Some(daemon.process.fds()),
        with_rings,
        "file descriptors after a thousand stops"
    );
    for (queue, load) in queues.iter_mut().zip(&mut loads) {
        // One of the two runs; starting it once more would be a new life of a ring that lives.
        connection.stop(queue).unwrap();
        connection.start(queue).unwrap();
        take(queue, load, usize::MAX);
        load.run(queue, DEPTH, 1000);
        connection.stop(queue).unwrap();
    }
    retired.check_all();
    drop((queues, connection));
    daemon.wait_idle(&idle);
}

/// Requests that the daemon may or may not have taken when the stop comes.
fn load_more(queue: &mut Driver, load: &mut Load) {
    load.submit(queue, DEPTH, usize::MAX);
    queue.kick().unwrap();
}

#[test]
fn a_thousand_stops_under_load_with_a_disk_that_answers_late() {
    stop_under_load("delay:0ms-3ms:ram:4M");
}

#[test]
fn a_thousand_stops_under_load_with_a_file() {
    stop_under_load("file:{}/disk.raw");
}

#[test]
fn a_thousand_stops_while_the_driver_goes_on_submitting() {
    let site = Site::new();
    let daemon = site.blk(&["--disk", "delay:0ms-2ms:ram:4M"]);
    let mut connection = daemon.connect();
    let mut queue = connection.queue(0, QueueOptions::default()).unwrap();
    connection.start(&mut queue).unwrap();
    let mut setup = queue.setup().unwrap();
    let used_idx = vm_memory::GuestAddress(queue.ring().guest_addresses()[2].0 + 2);
    let memory = connection.memory().clone();
    let used = || u16::from_le_bytes(memory.read(used_idx, 2).unwrap().try_into().unwrap());
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let driver = scope.spawn(|| {
            let mut load = Load::new(0, BLOCKS, 4096, 1);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                load.run(&mut queue, DEPTH, 64);
            }
            queue.counters().completed
        });
        for round in 0..1000 {
            let base = connection.stop_ring(0).unwrap();
            assert_eq!(
                used(),
                base,
                "round {round}: all that was taken is answered"
            );
            // The driver kicks on meanwhile; its kicks wait in the eventfd for the next start.
            connection.barrier().unwrap();
            connection.barrier().unwrap();
            assert_eq!(
                used(),
                base,
                "round {round}: used.idx moved after the reply"
            );
            setup.base = base;
            connection.start_ring(&setup).unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(driver.join().unwrap() >= 64);
    });
}

/// Two thousand swaps with requests in flight, each with a number of answers awaited on the new eventfd: a wait that
/// ends without its signal is an error of the driver.
fn swap_storm(disk: &str, acknowledge: bool) {
    let site = Site::new();
    site.image("disk.raw", 4 * MIB);
    let daemon = site.blk(&["--disk", disk]);
    let mut connection = daemon.connect();
    connection.acknowledge(acknowledge);
    let mut queue = connection.queue(0, QueueOptions::default()).unwrap();
    connection.start(&mut queue).unwrap();
    let mut load = Load::new(0, BLOCKS, 4096, 1);
    let mut random = fastrand::Rng::with_seed(4);
    let mut retired = Retired::default();
    load.run(&mut queue, DEPTH, 100);
    let before = daemon.process.fds();
    for _ in 0..2000 {
        load_more(&mut queue, &mut load);
        take(&mut queue, &mut load, random.usize(..4));
        retired.add(connection.swap_call(&mut queue).unwrap());
        if random.bool() {
            connection.swap_kick(&mut queue).unwrap();
        }
        // Sometimes all of them, so that the driver sleeps for the last.
        let all = random.u8(..4) == 0;
        take(&mut queue, &mut load, if all { usize::MAX } else { 8 });
    }
    take(&mut queue, &mut load, usize::MAX);
    assert_eq!(queue.in_flight(), 0);
    assert!(
        queue.counters().calls > 0,
        "the waits slept on the eventfds"
    );
    assert_eq!(
        daemon.process.fds(),
        before,
        "file descriptors after two thousand swaps"
    );
    connection.stop(&mut queue).unwrap();
    retired.check_all();
}

#[test]
fn call_and_kick_are_swapped_under_load_and_no_interrupt_is_lost() {
    swap_storm("delay:0ms-1ms:ram:4M", true);
    swap_storm("file:{}/disk.raw", true);
}

#[test]
fn a_swap_without_reply_ack_is_done_when_a_later_message_is_answered() {
    swap_storm("delay:0ms-1ms:ram:4M", false);
}

/// Front ends that come, work, and hang up with writes in flight. A write of the old one must not land after a write
/// of the new one was answered: the load would read it.
fn reconnect_storm(disk: &str) {
    let site = Site::new();
    site.image("disk.raw", 4 * MIB);
    let daemon = site.blk(&["--disk", disk, "--num-queues", "2"]);
    let idle = daemon.idle_fds();
    let mut loads = [0, 1].map(|index| Load::new(index * SECTORS, BLOCKS, 4096, index + 1));
    let mut random = fastrand::Rng::with_seed(5);
    for _ in 0..150 {
        let mut connection = daemon.connect();
        for (index, load) in loads.iter_mut().enumerate() {
            let mut queue = connection.queue(index, QueueOptions::default()).unwrap();
            connection.start(&mut queue).unwrap();
            load.run(&mut queue, DEPTH, random.usize(1..100));
            load_more(&mut queue, load);
        }
        drop(connection);
        loads.iter_mut().for_each(Load::hang_up);
    }
    let mut connection = daemon.connect();
    for (index, load) in loads.iter_mut().enumerate() {
        let mut queue = connection.queue(index, QueueOptions::default()).unwrap();
        connection.start(&mut queue).unwrap();
        load.run(&mut queue, DEPTH, 1000);
    }
    drop(connection);
    daemon.wait_idle(&idle);
}

#[test]
fn front_ends_come_and_go_and_old_writes_do_not_come_back() {
    reconnect_storm("delay:0ms-5ms:ram:4M");
    reconnect_storm("file:{}/disk.raw");
}

#[test]
fn a_front_end_killed_under_load_leaves_nothing_behind() {
    let site = Site::new();
    let image = site.image("disk.raw", 4 * MIB);
    let mut daemon = site.blk(&["--blk-file", "{}/disk.raw", "--num-queues", "2"]);
    let idle = daemon.idle_fds();
    let socket = daemon.socket().to_str().unwrap().to_owned();
    let mut load = Load::new(0, BLOCKS, 4096, 1);
    for _ in 0..20 {
        let written = || std::fs::metadata(&image).unwrap().modified().unwrap();
        let before = written();
        let bench = [
            "bench",
            "--socket-path",
            &socket,
            "--rw",
            "randrw",
            "--queues",
            "2",
        ];
        let mut front_end =
            Process::spawn(site.command(&[&bench[..], &["--seconds", "600"]].concat()));
        let deadline = Instant::now() + SOON;
        while written() == before {
            assert!(front_end.is_running(), "{}", front_end.stderr());
            assert!(
                Instant::now() < deadline,
                "the front end writes nothing:\n{}",
                front_end.stderr()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        front_end.signal(libc::SIGKILL);
        front_end.wait();
        daemon.wait_idle(&idle);
        // The dead front end has scribbled over the disk.
        let mut connection = daemon.connect();
        let mut queue = connection.queue(0, QueueOptions::default()).unwrap();
        connection.start(&mut queue).unwrap();
        queue
            .write_zeroes(&[outboard_frontend::Range::new(0, SECTORS as u32)])
            .unwrap();
        load = Load::new(0, BLOCKS, 4096, 1);
        load.run(&mut queue, DEPTH, 200);
        connection.stop(&mut queue).unwrap();
    }
    load.verify(&std::fs::read(&image).unwrap());
    assert!(daemon.process.is_running());
    daemon.wait_idle(&idle);
}

/// Large writes, left behind in flight; then small ones to the same places by the next front end.
fn overwrite_the_dead(cache: &str) {
    const WRITES: u64 = 64;
    const LARGE: usize = 128 << 10;
    let site = Site::new();
    let image = site.image("disk.raw", 8 * MIB);
    let daemon = site.blk(&["--blk-file", "{}/disk.raw", "--cache", cache]);
    for round in 0..40_u8 {
        let (old, new) = ([2 * round; LARGE], [2 * round + 1; 4096]);
        let mut connection = daemon.connect();
        let mut queue = connection
            .queue(
                0,
                QueueOptions {
                    size: 256,
                    ..QueueOptions::default()
                },
            )
            .unwrap();
        connection.start(&mut queue).unwrap();
        for place in 0..WRITES {
            queue.submit(&Request::write(place * 256, &old)).unwrap();
        }
        queue.kick().unwrap();
        // One is answered, so the daemon is in the midst of the others.
        queue.next(SOON).unwrap();
        drop(connection);
        let mut connection = daemon.connect();
        let mut queue = connection.queue(0, QueueOptions::default()).unwrap();
        connection.start(&mut queue).unwrap();
        for place in (0..WRITES).rev() {
            queue.write(place * 256, &new).unwrap();
        }
        // Whatever is left of the first front end lands while this one works on.
        queue.flush().unwrap();
        for place in (0..WRITES).chain(0..WRITES) {
            let found = queue.read(place * 256, 4096).unwrap();
            assert!(
                found == new,
                "{cache}, round {round}: place {place} holds the write of a dead front end"
            );
        }
        connection.stop(&mut queue).unwrap();
    }
    assert_eq!(std::fs::read(&image).unwrap()[..4096], [79; 4096]);
}

#[test]
fn a_write_of_a_dead_front_end_does_not_land_after_one_of_the_next() {
    for cache in ["writeback", "none"] {
        overwrite_the_dead(cache);
    }
}
