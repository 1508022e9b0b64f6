//! Rings: started, swapped, stopped, abandoned.

use crate::{
    guest::{FEATURES, Guest, MEMORY, SIZE, count, region_of},
    harness::{Bench, QUEUES, eventually, sessions},
    raw::*,
};
use outboard_virtio::mock::{Descriptor, MockMemory};
use rustix::{
    event::{PollFd, PollFlags, poll},
    pipe::{PipeFlags, pipe_with},
    time::Timespec,
};
use std::{
    os::fd::{AsFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
};

fn pipe() -> (OwnedFd, OwnedFd) {
    pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap()
}

/// What poll says of the descriptor now.
fn now(fd: &OwnedFd) -> PollFlags {
    let mut fds = [PollFd::new(fd, PollFlags::IN | PollFlags::OUT)];
    poll(
        &mut fds,
        Some(&Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    )
    .unwrap();
    fds[0].revents()
}

#[test]
fn requests_go_through_and_are_signalled() {
    let bench = Bench::new();
    let front = bench.connect();
    let mut guest = Guest::new(0);
    guest.boot(&front);
    let mut calls = count(&guest.call);
    for _ in 0..200 {
        guest.driver.enable_calls();
        guest.round_trip();
        eventually("an interrupt", || {
            calls = count(&guest.call);
            calls > 0
        });
    }
    assert_eq!(guest.stop(&front), 200);
    drop((front, guest));
    bench.quiet();
}

#[test]
fn without_protocol_features_a_ring_starts_enabled() {
    let bench = Bench::new();
    let front = bench.connect();
    let mut guest = Guest::new(0);
    front.negotiate(FEATURES & !F_PROTOCOL);
    guest.give_memory(&front);
    guest.give_ring(&front);
    guest.give_call(&front);
    guest.give_kick(&front);
    guest.round_trip();
    assert_eq!(
        front.ack(SET_VRING_ENABLE, &state(0, 1), &[]),
        1,
        "means nothing here"
    );
    drop((front, guest));
    bench.quiet();
}

#[test]
fn a_kick_before_enable_is_not_lost() {
    let bench = Bench::new();
    for _ in 0..20 {
        let front = bench.connect();
        let mut guest = Guest::new(0);
        front.negotiate(FEATURES);
        guest.give_memory(&front);
        guest.give_ring(&front);
        guest.give_call(&front);
        guest.offer();
        guest.kick();
        guest.give_kick(&front);
        guest.enable(&front, true);
        guest.used();
    }
    bench.quiet();
}

/// Whatever comes last, the ring starts when everything is there.
#[test]
fn set_up_in_another_order() {
    let bench = Bench::new();
    let front = bench.connect();
    front.negotiate(FEATURES);
    let mut guest = Guest::new(0);
    guest.give_kick(&front);
    guest.give_call(&front);
    guest.give_ring(&front);
    guest.enable(&front, true);
    guest.offer();
    guest.give_memory(&front);
    guest.used();
    guest.round_trip();

    let mut other = Guest::over(&guest.memory, 1);
    other.give_kick(&front);
    other.give_ring(&front);
    other.offer();
    other.enable(&front, true);
    other.used();
    drop((front, guest, other));
    bench.quiet();
}

/// The kick before the memory, and the memory region by region: the ring starts when the region that it lies in comes.
#[test]
fn a_ring_waits_for_the_region_it_lies_in() {
    let bench = Bench::new();
    let front = bench.connect();
    front.negotiate(FEATURES);
    let mut guest = Guest::new(0);
    guest.give_kick(&front);
    guest.give_ring(&front);
    guest.enable(&front, true);
    guest.offer();
    let elsewhere = 1 << 40;
    let ([at, size, user, offset], file) = region_of(&guest.memory);
    let other = [at + elsewhere, size, user + elsewhere, offset];
    front.ok(ADD_MEM_REG, &single(other), &[file.as_fd()]);
    guest.give_memory(&front);
    guest.used();
    guest.round_trip();
    drop((front, guest, file));
    bench.quiet();
}

/// A firmware uses one ring and tells of the others only in part.
#[test]
fn rings_set_up_in_part_do_not_start() {
    let bench = Bench::new();
    let front = bench.connect();
    let mut guest = Guest::new(0);
    guest.boot(&front);
    let call = eventfd();
    for index in 1..u32::from(QUEUES) {
        front.ring_fd(SET_VRING_CALL, index.into(), Some(&call));
        front.ok(SET_VRING_ENABLE, &state(index, 1), &[]);
    }
    front.ok(SET_VRING_NUM, &state(1, 128), &[]);
    front.ring_fd(SET_VRING_KICK, 2, Some(&call));
    guest.round_trip();
    for index in 0..QUEUES {
        front.ok(SET_VRING_ENABLE, &state(index.into(), 0), &[]);
    }
    assert_eq!(guest.stop(&front), 1);
    // The operating system sets up everything.
    let mut guests: Vec<_> = (0..QUEUES)
        .map(|i| Guest::over(&guest.memory, i.into()))
        .collect();
    for guest in &guests {
        guest.start(&front);
    }
    for guest in &mut guests {
        guest.round_trip();
    }
    drop((front, guest, call, guests));
    bench.quiet();
}

#[test]
fn without_a_kick_descriptor_the_ring_is_looked_at() {
    let bench = Bench::new();
    let front = bench.connect();
    let mut guest = Guest::new(0);
    front.negotiate(FEATURES);
    guest.give_memory(&front);
    guest.give_ring(&front);
    guest.give_call(&front);
    front.ring_fd(SET_VRING_KICK, 0, None::<OwnedFd>);
    guest.enable(&front, true);
    for _ in 0..50 {
        guest.round_trip();
    }
    // And with one again.
    guest.give_kick(&front);
    guest.round_trip();
    assert_eq!(guest.stop(&front), 51);
    drop((front, guest));
    bench.quiet();
}

/// When ENABLE 0 is answered nothing more is popped.
#[test]
fn a_disabled_ring_pops_nothing() {
    let bench = Bench::new();
    let front = bench.connect();
    let mut guest = Guest::new(0);
    guest.boot(&front);
    for round in 0..50 {
        guest.round_trip();
        guest.enable(&front, false);
        guest.offer();
        guest.kick();
        front.alive();
        assert_eq!(guest.driver.used_idx(), 2 * round + 1);
        guest.enable(&front, true);
        guest.used();
    }
    guest.enable(&front, false);
    guest.offer();
    guest.kick();
    assert_eq!(
        guest.stop(&front),
        100,
        "the last request is still the driver's"
    );
    assert_eq!(guest.driver.used_idx(), 100);
    drop((front, guest));
    bench.quiet();
}

#[test]
fn a_call_swapped_in_under_held_io_is_signalled_once_and_the_old_one_is_gone() {
    let bench = Bench::new();
    let mut guest = Guest::new(0);
    bench.mark();
    let front = bench.connect();
    guest.boot(&front);
    let (reader, writer) = pipe();
    bench.echo.hold.store(true, Ordering::SeqCst);
    guest.offer();
    eventually("the request is in flight", || bench.echo.held() == 1);
    front.ring_fd(SET_VRING_CALL, 0, Some(&writer));
    drop(writer);
    assert!(
        now(&reader).contains(PollFlags::IN),
        "signalled once when attached"
    );
    // Answered although the I/O is held: that alone is half of the test.
    guest.call = eventfd();
    guest.give_call(&front);
    assert!(
        now(&reader).contains(PollFlags::HUP),
        "when the swap is answered the old descriptor is closed"
    );
    assert_eq!(count(&guest.call), 1);
    front.ring_fd(SET_VRING_CALL, 0, None::<OwnedFd>);
    bench.echo.release();
    guest.used();
    drop((front, reader));
    bench.quiet();
    assert_eq!(count(&guest.call), 0, "detached before the completion");
}

#[test]
fn a_stop_lets_every_descriptor_go_before_it_answers() {
    let bench = Bench::new();
    let front = bench.connect();
    let mut guest = Guest::new(0);
    for round in 0..50 {
        let (kick_reader, kick_writer) = pipe();
        let (call_reader, call_writer) = pipe();
        let (err_reader, err_writer) = pipe();
        if round == 0 {
            guest.boot(&front);
        } else {
            guest.start(&front);
        }
        front.ring_fd(SET_VRING_ERR, 0, Some(&err_writer));
        front.ring_fd(SET_VRING_CALL, 0, Some(&call_writer));
        front.ring_fd(SET_VRING_KICK, 0, Some(&kick_reader));
        drop((kick_reader, call_writer, err_writer));
        guest.kick = kick_writer;
        guest.round_trip();
        guest.stop(&front);
        assert!(now(&call_reader).contains(PollFlags::HUP), "call");
        assert!(now(&err_reader).contains(PollFlags::HUP), "err");
        assert!(now(&guest.kick).contains(PollFlags::ERR), "kick");
        guest.kick = eventfd();
    }
    drop((front, guest));
    bench.quiet();
}

/// A helper that the daemon starts must not inherit a guest's interrupt.
#[test]
fn received_descriptors_are_close_on_exec() {
    let bench = Bench::new();
    let mut guest = Guest::new(0);
    let front = bench.connect();
    guest.boot(&front);
    let (reader, writer) = pipe();
    let inode = rustix::fs::fstat(&reader).unwrap().st_ino;
    let memory = rustix::fs::fstat(region_of(&guest.memory).1)
        .unwrap()
        .st_ino;
    front.ring_fd(SET_VRING_CALL, 0, Some(&writer));
    drop(writer);
    guest.round_trip();
    let mut seen = 0;
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let path = entry.unwrap().path();
        let Ok(stat) = rustix::fs::stat(&path) else {
            continue;
        };
        if stat.st_ino != inode && stat.st_ino != memory {
            continue;
        }
        seen += 1;
        let number = path.file_name().unwrap().to_str().unwrap();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap();
        let flags = info
            .lines()
            .find_map(|line| line.strip_prefix("flags:"))
            .unwrap();
        let flags = u32::from_str_radix(flags.trim(), 8).unwrap();
        assert_ne!(flags & 0o2000000, 0, "{} may be inherited", path.display());
    }
    // the guest's two and the session's one of the memory, our reader and the session's writer of the pipe
    assert!(seen >= 4, "{seen}");
    drop((front, guest, reader));
    bench.quiet();
}

/// The answer waits for the requests in flight, and they are published and signalled by then.
#[test]
fn get_vring_base_answers_when_the_ring_is_drained() {
    let bench = Bench::new();
    let front = bench.connect();
    let mut guest = Guest::new(0);
    guest.boot(&front);
    bench.echo.hold.store(true, Ordering::SeqCst);
    for _ in 0..8 {
        guest.offer();
    }
    guest.kick();
    eventually("the requests are in flight", || bench.echo.held() == 8);
    count(&guest.call);
    assert!(front.send(GET_VRING_BASE, 0, &state(0, 0), &[]));
    std::thread::scope(|scope| {
        let answered = scope.spawn(|| {
            let reply = front.reply();
            // Seen at the moment of the answer.
            (
                reply,
                guest.driver.used_idx(),
                count(&guest.call),
                bench.echo.held(),
            )
        });
        // A wrong answer would come now. (Nothing depends on it for the right one.)
        std::thread::sleep(std::time::Duration::from_millis(30));
        assert!(!answered.is_finished());
        bench.echo.release();
        let (reply, used, calls, held) = answered.join().unwrap();
        assert_eq!((reply.code, reply.body), (GET_VRING_BASE, state(0, 8)));
        assert_eq!((used, held), (8, 0));
        assert!(
            calls > 0,
            "the guest is owed an interrupt for what was published"
        );
    });
    drop((front, guest));
    bench.quiet();
}

/// A driver that wants no interrupts now is still owed one at the end: it may be about to ask for them.
#[test]
fn a_stop_signals_once_more_what_was_used() {
    let bench = Bench::new();
    let front = bench.connect();
    let mut guest = Guest::new(0);
    guest.boot(&front);
    count(&guest.call);
    guest.driver.set_used_event(0x8000);
    guest.round_trip();
    front.alive();
    assert_eq!(count(&guest.call), 0, "not asked for");
    guest.stop(&front);
    assert_eq!(count(&guest.call), 1);
    drop((front, guest));
    bench.quiet();
}

#[test]
fn a_hang_up_during_the_drain_abandons() {
    let bench = Bench::new();
    for _ in 0..20 {
        let mut guest = Guest::new(0);
        bench.mark();
        let front = bench.connect();
        guest.boot(&front);
        bench.echo.hold.store(true, Ordering::SeqCst);
        guest.offer();
        eventually("the request is in flight", || bench.echo.held() == 1);
        count(&guest.call);
        assert!(front.send(GET_VRING_BASE, 0, &state(0, 0), &[]));
        drop(front);
        // Although the request is never answered.
        eventually("the session ends", || sessions() == 1);
        bench.echo.release();
        bench.quiet();
        assert_eq!(guest.driver.used_idx(), 0, "published after the hang-up");
        assert_eq!(count(&guest.call), 0, "signalled after the hang-up");
    }
}

#[test]
fn a_hang_up_under_io_abandons_and_the_next_front_end_waits_for_its_end() {
    let bench = Bench::new();
    for _ in 0..20 {
        bench.echo.hold.store(true, Ordering::SeqCst);
        let mut guest = Guest::new(0);
        bench.mark();
        let front = bench.connect();
        guest.boot(&front);
        guest.offer();
        eventually("the request is in flight", || bench.echo.held() == 1);
        drop(front);
        bench.echo.hold.store(false, Ordering::SeqCst);
        // Its I/O is still in flight: a write would land on what was answered to the next one, which has to wait.
        let (bench, released) = (&bench, &AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let front = bench.connect();
                let mut next = Guest::new(0);
                next.boot(&front);
                next.round_trip();
                assert!(released.load(Ordering::SeqCst), "served too early");
            });
            // A chance to be served too early; one that never comes proves nothing and costs nothing.
            std::thread::sleep(std::time::Duration::from_millis(10));
            released.store(true, Ordering::SeqCst);
            bench.echo.release();
        });
        bench.quiet();
        assert_eq!(guest.driver.used_idx(), 0);
    }
}

/// A back end that died between publishing and signalling leaves a driver that waits for an interrupt, and with EVENT_IDX
/// will not ask for another: whoever serves the ring next owes it.
#[test]
fn a_start_signals_what_the_back_end_before_may_have_owed() {
    let bench = Bench::new();
    let mut guest = Guest::new(0);
    let front = bench.connect();
    guest.boot(&front);
    guest.offer();
    eventually("the request is used", || guest.driver.used_idx() == 1);
    bench.gone(front);
    // The interrupt never got there; the driver, which has not looked, asks for one after the first element still.
    count(&guest.call);
    let front = bench.connect();
    guest.boot(&front);
    eventually("the interrupt", || count(&guest.call) > 0);
    guest.used();
    guest.round_trip();
    drop((front, guest));
    bench.quiet();
}

#[test]
fn a_stopped_ring_goes_on_where_it_was() {
    let bench = Bench::new();
    let front = bench.connect();
    front.negotiate(FEATURES);
    // Over the wrap of the index.
    let memory = MockMemory::flat(MEMORY);
    let mut guest = Guest::starting_at(&memory, 0, 65500);
    guest.give_memory(&front);
    let mut base = 65500_u16;
    for _ in 0..50 {
        guest.start(&front);
        guest.round_trip();
        guest.round_trip();
        base = base.wrapping_add(2);
        assert_eq!(guest.stop(&front), u32::from(base));
    }
    // SET_VRING_BASE not sent again: it goes on from where it stopped.
    guest.give_kick(&front);
    guest.round_trip();
    drop((front, memory, guest));
    bench.quiet();
}

#[test]
fn get_vring_base_of_a_ring_that_does_not_run() {
    let bench = Bench::new();
    let front = bench.connect();
    front.negotiate(FEATURES);
    let guest = Guest::new(1);
    assert_eq!(guest.stop(&front), 0);
    front.ok(SET_VRING_BASE, &state(1, 77), &[]);
    let (reader, writer) = pipe();
    front.ring_fd(SET_VRING_CALL, 1, Some(&writer));
    drop(writer);
    assert_eq!(guest.stop(&front), 77);
    assert!(now(&reader).contains(PollFlags::HUP));
    // It has no way to say no.
    assert!(front.send(
        GET_VRING_BASE,
        NEED_REPLY,
        &state(u32::from(QUEUES), 0),
        &[]
    ));
    assert_eq!(front.closed(), []);
    drop((front, guest, reader));
    bench.quiet();
}

#[test]
fn resets_wait_for_requests_in_flight_and_disable_the_rings() {
    let bench = Bench::new();
    for reset in [RESET_OWNER, RESET_DEVICE] {
        let front = bench.connect();
        let mut guest = Guest::new(0);
        guest.boot(&front);
        bench.echo.hold.store(true, Ordering::SeqCst);
        guest.offer();
        eventually("the request is in flight", || bench.echo.held() == 1);
        bench.echo.hold.store(false, Ordering::SeqCst);
        assert!(front.send(reset, NEED_REPLY, &[], &[]));
        bench.echo.release();
        assert_eq!(front.reply().u64(), 0);
        assert_eq!(guest.driver.used_idx(), 1, "a request was still in flight");
        // Stopped and disabled: a new kick descriptor alone starts nothing that pops.
        guest.used();
        let mut next = Guest::over(&guest.memory, 0);
        front.ok(SET_FEATURES, &FEATURES.to_ne_bytes(), &[]);
        next.give_ring(&front);
        next.give_kick(&front);
        next.offer();
        next.kick();
        front.alive();
        assert_eq!(next.driver.used_idx(), 0);
        next.enable(&front, true);
        next.used();
        drop((front, guest, next));
        bench.quiet();
    }
}

#[test]
fn stop_of_the_server_drains_the_rings() {
    let bench = Bench::new();
    let front = bench.connect();
    let mut guest = Guest::new(0);
    guest.boot(&front);
    bench.echo.hold.store(true, Ordering::SeqCst);
    guest.offer();
    eventually("the request is in flight", || bench.echo.held() == 1);
    bench.server.stop();
    bench.echo.release();
    assert_eq!(front.closed(), []);
    assert_eq!(guest.used().1, 8, "what was in flight is answered");
    assert!(bench.server.wait(Some(PATIENCE)));
}

/// The front end leaves while the server waits for its drain.
#[test]
fn stop_of_the_server_sees_the_hang_up() {
    let bench = Bench::new();
    let front = bench.connect();
    let mut guest = Guest::new(0);
    guest.boot(&front);
    bench.echo.hold.store(true, Ordering::SeqCst);
    guest.offer();
    eventually("the request is in flight", || bench.echo.held() == 1);
    bench.server.stop();
    drop(front);
    assert!(
        bench.server.wait(Some(PATIENCE)),
        "although the request is never answered"
    );
    assert_eq!(guest.driver.used_idx(), 0);
}

#[test]
fn memory_changes_under_a_running_ring() {
    let bench = Bench::new();
    let front = bench.connect();
    let memory = MockMemory::new(&[(0, MEMORY), (1 << 30, 65536)]);
    let mut guest = Guest::over(&memory, 0);
    guest.boot(&front);
    guest.round_trip();
    let files = memory.files();
    let regions: Vec<Region> = files
        .iter()
        .map(|(r, _)| [r.guest_addr, r.size, r.user_addr, r.file_offset])
        .collect();
    for _ in 0..20 {
        front.ok(ADD_MEM_REG, &single(regions[1]), &[files[1].1.as_fd()]);
        // When the addition is answered the ring reaches the new region.
        memory.write(1 << 30, b"new here");
        let buffers = [
            outboard_virtio::mock::Buffer::readable(1 << 30, 8),
            outboard_virtio::mock::Buffer::writable((1 << 30) + 4096, 8),
        ];
        let head = guest.driver.add(&buffers).unwrap();
        guest.driver.make_available();
        guest.kick();
        assert_eq!(guest.used(), (head, 8));
        assert_eq!(memory.read((1 << 30) + 4096, 8), b"new here");
        memory.write((1 << 30) + 4096, &[0; 8]);
        front.ok(REM_MEM_REG, &single(regions[1]), &[]);
        guest.driver.enable_calls();
    }
    // The whole table anew: the same memory mapped afresh.
    let fds: Vec<_> = files.iter().map(|(_, f)| f.as_fd()).collect();
    front.ok(SET_MEM_TABLE, &table(&regions), &fds);
    guest.kick();
    drop(files);
    drop((front, memory, guest));
    bench.quiet();
}

#[test]
fn taking_a_running_rings_memory_away_ends_the_session() {
    let bench = Bench::new();
    let front = bench.connect();
    let guest = Guest::new(0);
    guest.boot(&front);
    let (region, _) = region_of(&guest.memory);
    assert!(front.send(REM_MEM_REG, NEED_REPLY, &single(region), &[]));
    assert_eq!(front.closed(), []);
    drop((front, guest));
    // The ring's addresses now mean something else, and what they meant before is still there.
    let front = bench.connect();
    let guest = Guest::new(0);
    guest.boot(&front);
    let ([at, size, user, offset], file) = region_of(&guest.memory);
    let elsewhere = 1 << 30;
    let moved = [
        [at, size, user + elsewhere, offset],
        [at + elsewhere, size, user, offset],
    ];
    assert!(front.send(
        SET_MEM_TABLE,
        NEED_REPLY,
        &table(&moved),
        &[file.as_fd(), file.as_fd()]
    ));
    assert_eq!(front.closed(), []);
    drop((front, guest, file));
    bench.quiet();
}

#[test]
fn memory_that_is_truncated_ends_the_session() {
    let bench = Bench::new();
    let front = bench.connect();
    let guest = Guest::new(0);
    guest.boot(&front);
    let (_, file) = region_of(&guest.memory);
    rustix::fs::ftruncate(&file, 0).unwrap();
    drop(file);
    guest.kick();
    assert_eq!(front.closed(), []);
    drop((front, guest));
    bench.quiet();
    // Others are served as before.
    let front = bench.connect();
    let mut guest = Guest::new(0);
    guest.boot(&front);
    guest.round_trip();
}

#[test]
fn a_broken_ring_says_so_and_leaves_the_others_alone() {
    let bench = Bench::new();
    let front = bench.connect();
    let mut guest = Guest::new(0);
    guest.boot(&front);
    let mut other = Guest::over(&guest.memory, 1);
    other.start(&front);
    let err = eventfd();
    front.ring_fd(SET_VRING_ERR, 0, Some(&err));
    // A chain that points at itself.
    let flags = Descriptor::NEXT;
    guest.driver.write_descriptor(
        0,
        Descriptor {
            addr: 0,
            len: 1,
            flags,
            next: 0,
        },
    );
    guest.driver.offer(0);
    guest.driver.make_available();
    guest.kick();
    eventually("the error is signalled", || count(&err) > 0);
    other.round_trip();
    guest.stop(&front);
    other.round_trip();
    // Reset, it works again.
    let mut fresh = Guest::over(&guest.memory, 0);
    fresh.start(&front);
    fresh.round_trip();
    drop((front, guest, other, err, fresh));
    bench.quiet();
}

#[test]
fn numbers_out_of_range_are_refused() {
    let bench = Bench::new();
    let front = bench.connect();
    let guest = Guest::new(0);
    front.negotiate(FEATURES);
    guest.give_memory(&front);
    for size in [0, 3, 65, 255, 257, 512, 32768, 65536, u32::MAX] {
        assert_eq!(
            front.ack(SET_VRING_NUM, &state(0, size), &[]),
            1,
            "size {size}"
        );
    }
    for index in [u32::from(QUEUES), 255, 256, 65536, u32::MAX] {
        assert_eq!(
            front.ack(SET_VRING_NUM, &state(index, 64), &[]),
            1,
            "ring {index}"
        );
        assert_eq!(
            front.ack(SET_VRING_BASE, &state(index, 0), &[]),
            1,
            "ring {index}"
        );
        assert_eq!(
            front.ack(SET_VRING_ENABLE, &state(index, 1), &[]),
            1,
            "ring {index}"
        );
        assert_eq!(
            front.ack(SET_VRING_ADDR, &addresses(index, 0, 0, 0, 0), &[]),
            1,
            "ring {index}"
        );
    }
    for code in [SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR] {
        let fd = eventfd();
        assert_eq!(
            front.ack(code, &u64::from(QUEUES).to_ne_bytes(), &[fd.as_fd()]),
            1
        );
        assert_eq!(front.ack(code, &0x1ff_u64.to_ne_bytes(), &[]), 1);
    }
    for base in [65536, u32::MAX] {
        assert_eq!(
            front.ack(SET_VRING_BASE, &state(0, base), &[]),
            1,
            "base {base}"
        );
    }
    for on in [2, u32::MAX] {
        assert_eq!(
            front.ack(SET_VRING_ENABLE, &state(0, on), &[]),
            1,
            "enable {on}"
        );
    }
    for (flags, descriptor, used, available) in [
        (0, 8, 0, 0),
        (0, 0, 2, 0),
        (0, 0, 0, 1),
        (1, 0, 0, 0),
        (2, 0, 0, 0),
        (0, u64::MAX, 0, 0),
    ] {
        let body = addresses(0, flags, descriptor, used, available);
        assert_eq!(
            front.ack(SET_VRING_ADDR, &body, &[]),
            1,
            "{flags} {descriptor} {used} {available}"
        );
    }
    // Addresses in no memory are seen when the ring would start.
    front.ok(SET_VRING_NUM, &state(0, 64), &[]);
    for (descriptor, used, available) in [
        (0, 0, 0),
        (1 << 62, 1 << 62, 1 << 62),
        (u64::MAX - 15, 0, 0),
    ] {
        front.ok(
            SET_VRING_ADDR,
            &addresses(0, 0, descriptor, used, available),
            &[],
        );
        let kick = eventfd();
        assert_eq!(
            front.ack(SET_VRING_KICK, &0_u64.to_ne_bytes(), &[kick.as_fd()]),
            1
        );
    }
    // A ring that begins in memory and ends beyond it.
    let user = region_of(&guest.memory).0[2];
    let end = user + MEMORY - 16;
    front.ok(SET_VRING_ADDR, &addresses(0, 0, end, user, user), &[]);
    assert_eq!(
        front.ack(SET_VRING_KICK, &0_u64.to_ne_bytes(), &[eventfd().as_fd()]),
        1
    );
    // And after all that it works.
    let mut guest = guest;
    guest.start(&front);
    guest.round_trip();
    drop((front, guest));
    bench.quiet();
}

#[test]
fn what_cannot_change_while_a_ring_runs_is_refused() {
    let bench = Bench::new();
    let front = bench.connect();
    let mut guest = Guest::new(0);
    guest.boot(&front);
    assert_eq!(front.ack(SET_VRING_NUM, &state(0, 128), &[]), 1);
    assert_eq!(front.ack(SET_VRING_BASE, &state(0, 5), &[]), 1);
    assert_eq!(front.ack(SET_VRING_ADDR, &addresses(0, 0, 0, 0, 0), &[]), 1);
    assert_eq!(front.ack(SET_FEATURES, &F_VERSION_1.to_ne_bytes(), &[]), 1);
    // Said again, as front ends do when they turn logging on or off.
    front.ok(SET_VRING_NUM, &state(0, u32::from(SIZE)), &[]);
    front.ok(SET_VRING_ADDR, &guest.addresses(), &[]);
    front.ok(SET_FEATURES, &FEATURES.to_ne_bytes(), &[]);
    guest.round_trip();
    // One ring stopped, another running: the first may change.
    let mut other = Guest::over(&guest.memory, 1);
    other.start(&front);
    guest.stop(&front);
    front.ok(SET_VRING_NUM, &state(0, 128), &[]);
    other.round_trip();
    drop((front, guest, other));
    bench.quiet();
}

#[test]
fn a_kick_replaced_on_a_running_ring() {
    let bench = Bench::new();
    let front = bench.connect();
    let mut guest = Guest::new(0);
    guest.boot(&front);
    for _ in 0..50 {
        let (reader, writer) = pipe();
        front.ring_fd(SET_VRING_KICK, 0, Some(&reader));
        drop(reader);
        guest.kick = eventfd();
        // Between the two nobody kicks: the ring is looked at when the new one comes.
        guest.offer();
        guest.give_kick(&front);
        assert!(
            now(&writer).contains(PollFlags::ERR),
            "the old descriptor is closed when the new one is answered"
        );
        guest.used();
    }
    drop((front, guest));
    bench.quiet();
}
