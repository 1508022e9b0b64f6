//! Drained, abandoned, broken, lost.

use super::*;
use std::sync::atomic::Ordering;

#[test]
fn a_drained_ring_gives_its_indices_and_lets_go_of_its_kick() {
    let pool = pool();
    let mut rig = Rig::new(&pool);
    // As a pipe: its writer sees the last reader go.
    let (reader, writer) = std::io::pipe().unwrap();
    rig.start_with(Some(PeerFd::new(reader.into()).unwrap()), true);
    rig.kick = writer.into();
    for _ in 0..10 {
        rig.send(Op::Now, 7);
        rig.take(7);
    }
    assert!(!state(&rig.kick, PollFlags::OUT, Duration::ZERO).contains(PollFlags::ERR));
    // Looked at by the hand-back itself: a moment later it might be true by chance.
    let (done, on_done) = channel();
    let writer = rig.kick.try_clone().unwrap();
    let look = Release::run(move || {
        let closed = state(&writer, PollFlags::OUT, Duration::ZERO).contains(PollFlags::ERR);
        done.send(closed).unwrap();
    });
    let mut ticket = rig.ring.take().unwrap().stop(Close::Drain, look);
    let closed = on_done.recv_timeout(DEADLINE).unwrap();
    assert!(closed, "handed back with the kick still open");
    let stopped = ticket.take().unwrap();
    assert_eq!((stopped.next_avail, stopped.next_used), (70, 70));
    assert!(stopped.drained);
    assert_eq!(stopped.counters.requests, 70);
    assert!(stopped.counters.calls >= 1 && stopped.counters.kicks >= 1);
    until("the handler goes", || {
        rig.device.handlers.load(Ordering::SeqCst) == 0
    });
}

#[test]
fn a_stop_under_io_a_thousand_times_freezes_the_ring_and_loses_nothing() {
    let pool = pool();
    let mut rig = Rig::new(&pool);
    let ops = [Op::Now, Op::Kernel, Op::Slow, Op::Kernel];
    let (mut sent, mut taken) = (0usize, 0usize);
    let mut old_calls = Vec::new();
    for round in 0..1000 {
        rig.start();
        let n = 1 + round % 16;
        if rig.driver.free_descriptors() >= 2 * n {
            rig.send(ops[round % ops.len()], n);
            sent += n;
        }
        if round % 3 == 0 {
            rig.rounds();
        }
        let stopped = rig.drain();
        assert!(stopped.drained);
        // Nobody else moves used.idx, so it may be compared at leisure: here, and after the next rounds.
        let frozen = rig.driver.used_idx();
        assert_eq!(frozen, stopped.next_used, "round {round}");
        // What was in flight at the stop was finished: every popped request is used.
        assert_eq!(stopped.next_used, stopped.next_avail);
        // As the session does: the call descriptor goes after the ring was handed back.
        rig.call_cell.swap(None, Release::none()).wait().unwrap();
        count(&rig.call);
        signal(&rig.kick);
        let fresh = event();
        rig.call_cell
            .swap(Some(peer(&fresh)), Release::none())
            .wait()
            .unwrap();
        old_calls.push((std::mem::replace(&mut rig.call, fresh), frozen));
        assert_eq!(rig.driver.used_idx(), frozen);
        while rig.driver.take_used().is_some() {
            taken += 1;
        }
        if old_calls.len() > 64 {
            for (call, _) in old_calls.drain(..) {
                assert_eq!(count(&call), 0, "a signal after the stop");
            }
        }
    }
    // What no start had the time to pop is served by a start that gets no kick.
    rig.start();
    signal(&rig.call);
    rig.take(sent - taken);
    rig.drain();
    assert_eq!(usize::from(rig.next_avail), sent % 65536);
}

#[test]
fn a_drain_waits_for_io_and_publishes_it() {
    let pool = pool();
    let mut rig = Rig::started(&pool);
    rig.send(Op::Held, 5);
    until("held", || rig.device.held() == 5);
    let (mut ticket, done) = rig.stop(Close::Drain);
    assert_eq!(ticket.take(), None);
    // Not popped any more.
    rig.add(Op::Now, 3);
    let _ = rig.driver.make_available();
    signal(&rig.kick);
    count(&rig.call);
    rig.device.release();
    let stopped = rig.stopped((ticket, done));
    assert!(stopped.drained);
    assert_eq!((stopped.next_avail, stopped.next_used), (5, 5));
    assert_eq!(rig.driver.used_idx(), 5);
    assert_eq!(
        count(&rig.call),
        1,
        "the last signal comes before the hand-back"
    );
}

#[test]
fn an_abandon_hands_back_at_once_and_the_ghost_keeps_what_io_needs() {
    let pool = pool();
    let mut rig = Rig::started(&pool);
    rig.send(Op::Held, 5);
    until("held", || rig.device.held() == 5);
    count(&rig.call);
    let stopping = rig.stop(Close::Abandon);
    let stopped = rig.stopped(stopping);
    assert!(!stopped.drained);
    assert_eq!((stopped.next_avail, stopped.next_used), (5, 0));
    let handlers = rig.device.handlers.clone();
    assert_eq!(handlers.load(Ordering::SeqCst), 1, "the ghost is needed");
    // The session's references go; the ghost has its own.
    let map = Arc::downgrade(&rig.map);
    rig.map = Arc::new(MemoryMap::empty());
    assert!(
        map.upgrade().is_some(),
        "memory that I/O points into was unmapped"
    );
    let tenure = Arc::downgrade(&rig.tenure);
    rig.tenure = Arc::default();
    assert!(
        tenure.upgrade().is_some(),
        "the device was given away with I/O in flight"
    );
    rig.device.release();
    until("the ghost goes", || handlers.load(Ordering::SeqCst) == 0);
    until("the map goes", || map.upgrade().is_none());
    until("the device is free", || tenure.upgrade().is_none());
    assert_eq!(rig.driver.used_idx(), 0);
    assert_eq!(count(&rig.call), 0);
    assert_eq!(
        rig.driver.memory().read(rig.bytes + 1, 1),
        [0],
        "guest memory was written"
    );
}

#[test]
fn a_drain_that_nobody_waits_for_any_more_becomes_an_abandon() {
    let pool = pool();
    let mut rig = Rig::started(&pool);
    rig.send(Op::Held, 2);
    until("held", || rig.device.held() == 2);
    let (ticket, done) = rig.stop(Close::Drain);
    ticket.abandon();
    let stopped = rig.stopped((ticket, done));
    assert!(!stopped.drained);
    rig.device.release();
    until("the ghost goes", || {
        rig.device.handlers.load(Ordering::SeqCst) == 0
    });
    assert_eq!(rig.driver.used_idx(), 0);
}

#[test]
fn dropping_the_claim_abandons() {
    let pool = pool();
    let mut rig = Rig::started(&pool);
    rig.send(Op::Held, 1);
    until("held", || rig.device.held() == 1);
    drop(rig.ring.take());
    rig.device.release();
    until("the ghost goes", || {
        rig.device.handlers.load(Ordering::SeqCst) == 0
    });
    assert_eq!(rig.driver.used_idx(), 0);
    // The same worker goes on.
    rig.next_avail = 1;
    rig.start();
    rig.send(Op::Now, 1);
    rig.take(1);
}

#[test]
fn a_broken_ring_stops_alone_and_says_why_once() {
    let pool = pool();
    let (mut good, mut bad) = (Rig::started(&pool), Rig::started(&pool));
    bad.send(Op::Held, 2);
    until("held", || bad.device.held() == 2);
    bad.send(Op::Break, 1);
    assert!(state(&bad.err, PollFlags::IN, DEADLINE).contains(PollFlags::IN));
    until("reported", || !bad.broken.lock().unwrap().is_empty());
    for _ in 0..3 {
        bad.send(Op::Break, 1);
        signal(&bad.kick);
        bad.rounds();
    }
    assert_eq!(bad.broken.lock().unwrap().len(), 1);
    assert!(
        bad.broken.lock().unwrap()[0].contains("flight"),
        "the reason is told"
    );
    assert_eq!(count(&bad.err), 1);
    good.send(Op::Kernel, 50);
    good.take(50);
    // What was in flight when it broke still completes, so a stop can drain.
    bad.device.release();
    bad.take(2);
    assert!(good.broken.lock().unwrap().is_empty());
    assert_eq!(count(&good.err), 0);
    good.drain();
}

#[test]
fn a_panic_costs_its_own_ring_only() {
    for at_reap in [false, true] {
        let pool = pool();
        let (mut good, mut bad) = (Rig::started(&pool), Rig::new(&pool));
        Arc::get_mut(&mut bad.device).unwrap().panics_at_reap = at_reap;
        bad.start();
        bad.send(Op::Held, 2);
        until("held", || bad.device.held() == 2);
        bad.send(Op::Panic, 1);
        until("reported", || !bad.broken.lock().unwrap().is_empty());
        assert_eq!(count(&bad.err), 1);
        good.send(Op::Kernel, 50);
        good.take(50);
        // Completions for the lost handler wake nobody for ever.
        bad.device.release();
        let stopping = bad.stop(Close::Drain);
        assert!(!bad.stopped(stopping).drained);
        good.send(Op::Slow, 5);
        good.take(5);
        assert_eq!(bad.driver.used_idx(), 0);
        let handlers = bad.device.handlers.clone();
        if at_reap {
            // Kept until the reactor has awaited everything.
            assert_eq!(handlers.load(Ordering::SeqCst), 1);
            let before = pool.reactor_counters().sleeps;
            good.rounds();
            until(
                "the worker sleeps in spite of the wreck's completions",
                || pool.reactor_counters().sleeps > before,
            );
            pool.shut_down();
        }
        until("the handler goes", || handlers.load(Ordering::SeqCst) == 0);
    }
}

#[test]
fn the_end_of_the_pool_hands_everything_back() {
    let pool = pool();
    let mut running = Rig::new(&pool);
    let (reader, writer) = std::io::pipe().unwrap();
    running.start_with(Some(PeerFd::new(reader.into()).unwrap()), true);
    running.kick = writer.into();
    running.send(Op::Held, 1);
    until("held", || running.device.held() == 1);
    let mut stopping = Rig::started(&pool);
    stopping.send(Op::Held, 1);
    until("held", || stopping.device.held() == 1);
    let drain = stopping.stop(Close::Drain);
    pool.shut_down();
    assert!(!stopping.stopped(drain).drained);
    assert!(state(&running.kick, PollFlags::OUT, Duration::ZERO).contains(PollFlags::ERR));
    // Whatever is asked of a worker that is gone is answered.
    running.ring().set_enabled(true);
    running.ring().swap_kick(Some(peer(&event())));
    running.ring().set_memory(running.map.clone()).unwrap();
    let late = running.stop(Close::Drain);
    assert!(!running.stopped(late).drained);
    let plan = running.plan(None, true);
    assert!(pool.start(plan).is_err());
    assert_eq!(running.driver.used_idx(), 0);
    assert!(
        running.broken.lock().unwrap().is_empty(),
        "a shutdown is no fault"
    );
}

#[test]
fn a_ring_that_cannot_start_is_refused_with_a_reason_and_keeps_nothing() {
    let pool = pool();
    let mut rig = Rig::new(&pool);
    let refused = |rig: &Rig, change: &dyn Fn(&mut RingStart)| {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut plan = rig.plan(Some(PeerFd::new(reader.into()).unwrap()), true);
        change(&mut plan);
        let why = rig.pool.start(plan).err().expect("refused").to_string();
        let writer: OwnedFd = writer.into();
        assert!(
            state(&writer, PollFlags::OUT, Duration::ZERO).contains(PollFlags::ERR),
            "kick kept"
        );
        assert!(why.starts_with("test queue 0: "), "{why}");
        why
    };
    assert!(refused(&rig, &|plan| plan.config.desc = 1 << 40).contains("memory"));
    assert!(refused(&rig, &|plan| plan.config.size = 3).contains("power of two"));
    let with = |change: &dyn Fn(&mut TestDevice)| {
        let mut device = TestDevice::default();
        change(&mut device);
        Arc::new(device)
    };
    let refusing = with(&|d| d.refuses = true);
    assert!(refused(&rig, &|plan| plan.device = refusing.clone()).contains("as told"));
    let panicking = with(&|d| d.panics_at_open = true);
    assert!(refused(&rig, &|plan| plan.device = panicking.clone()).contains("panicked"));
    rig.start();
    rig.send(Op::Now, 1);
    rig.take(1);
}
