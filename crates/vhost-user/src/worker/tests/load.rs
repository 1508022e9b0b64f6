//! Fairness, batches, and what they cost.

use super::*;
use std::sync::atomic::Ordering;

#[test]
fn a_busy_ring_does_not_starve_another() {
    let pool = pool();
    let log: Arc<Mutex<Vec<(u32, u32)>>> = Arc::default();
    let mut rigs: Vec<_> = (0..2)
        .map(|name| {
            let mut rig = Rig::new(&pool);
            let device = Arc::get_mut(&mut rig.device).unwrap();
            device.log = log.clone();
            device.name = name;
            rig.start_with(Some(peer(&rig.kick)), false);
            rig
        })
        .collect();
    // While the worker is held up elsewhere, both get more to do than one batch, the first one much more.
    let mut gate = Rig::started(&pool);
    gate.send(Op::Block, 1);
    gate.device.wait_blocked();
    for (rig, n) in rigs.iter_mut().zip([64, 24]) {
        rig.add(Op::Now, n);
        let _ = rig.driver.make_available();
        rig.ring().set_enabled(true);
    }
    gate.device.unblock();
    rigs[0].take(64);
    rigs[1].take(24);
    let log = log.lock().unwrap();
    let order: Vec<u32> = log.iter().map(|(name, _)| *name).collect();
    assert_eq!(order.len(), 88);
    let of_other_before_end = order.iter().rposition(|n| *n == 1).unwrap();
    let of_first = order[..of_other_before_end]
        .iter()
        .filter(|n| **n == 0)
        .count();
    assert!(
        of_first <= 32,
        "the second ring waited for {of_first} requests of the first"
    );
}

#[test]
fn a_peer_that_does_not_read_its_call_harms_nobody() {
    let pool = pool();
    let (mut good, mut bad) = (Rig::started(&pool), Rig::started(&pool));
    // Full to the brim.
    rustix::io::write(&bad.call, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    bad.send(Op::Now, 3);
    assert!(state(&bad.err, PollFlags::IN, DEADLINE).contains(PollFlags::IN));
    good.send(Op::Kernel, 20);
    good.take(20);
    until("used", || bad.driver.used_idx() == 3);
    let stopped = bad.drain();
    assert!(stopped.drained);
    assert_eq!(
        (stopped.counters.calls, stopped.counters.call_failures),
        (0, 1)
    );
    assert!(bad.broken.lock().unwrap().is_empty());
    good.drain();
}

#[test]
fn a_ring_without_a_call_is_in_order() {
    let pool = pool();
    let mut rig = Rig::new(&pool);
    rig.call_cell.swap(None, Release::none()).wait().unwrap();
    rig.start();
    rig.send(Op::Now, 3);
    until("used", || rig.driver.used_idx() == 3);
    assert_eq!(rig.drain().counters.call_failures, 0);
    assert_eq!(count(&rig.err), 0);
}

#[test]
fn a_batch_costs_few_enters_few_calls_and_few_kicks() {
    const ROUNDS: u64 = 50;
    const DEPTH: u64 = 32;
    let pool = pool();
    let mut rig = Rig::started(&pool);
    for _ in 0..ROUNDS {
        rig.send(Op::Kernel, DEPTH as usize);
        rig.take(DEPTH as usize);
    }
    let stopped = rig.drain();
    pool.shut_down();
    let reactor = pool.reactor_counters();
    let requests = ROUNDS * DEPTH;
    assert_eq!(stopped.counters.requests, requests);
    // Per round: two submissions of 16, and sleeping; some slack for a driver that comes back in the middle.
    assert!(reactor.enters <= ROUNDS * 5 + 20, "{reactor:?}");
    assert!(stopped.counters.calls <= ROUNDS * 3, "{stopped:?}");
    assert!(stopped.counters.kicks <= ROUNDS * 2, "{stopped:?}");
    assert!(reactor.sqes >= requests && reactor.sqes <= requests + 20);
}

#[test]
fn rings_are_spread_over_the_workers() {
    let pool = WorkerPool::new(2).unwrap();
    let mut blocked = Rig::started(&pool);
    blocked.send(Op::Block, 1);
    blocked.device.wait_blocked();
    // The other worker takes this one: with both on one thread it would not even start.
    let mut other = Rig::started(&pool);
    other.send(Op::Now, 1);
    other.take(1);
    blocked.device.unblock();
    blocked.take(1);
}

#[test]
fn operations_are_submitted_before_other_rings_queue_theirs() {
    let pool = pool();
    let mut rigs: Vec<_> = (0..4).map(|_| Rig::new(&pool)).collect();
    for rig in &mut rigs {
        rig.start_with(Some(peer(&rig.kick)), false);
    }
    let mut gate = Rig::started(&pool);
    gate.send(Op::Block, 1);
    gate.device.wait_blocked();
    for rig in &mut rigs {
        rig.add(Op::Kernel, 64);
        let _ = rig.driver.make_available();
        rig.ring().set_enabled(true);
    }
    gate.device.unblock();
    for rig in &mut rigs {
        rig.take(64);
        // These operations finish as they are submitted. More than two batches in flight were not submitted in time.
        let most = rig.device.most_in_flight.load(Ordering::SeqCst);
        assert!(most <= 32, "{most} in flight");
    }
}

#[test]
fn a_device_at_its_limit_waits_for_completions_without_spinning() {
    let pool = pool();
    let mut rig = Rig::new(&pool);
    Arc::get_mut(&mut rig.device).unwrap().limit = 3;
    rig.start();
    rig.send(Op::Held, 10);
    let mut served = 0;
    while served < 10 {
        let now = 3.min(10 - served);
        until("held", || rig.device.held() == now);
        rig.rounds();
        let before = rig.ring().counters();
        (0..20).for_each(|_| rig.rounds());
        // Each brings about two looks, and one from before may come late.
        assert!(rig.ring().counters().passes <= before.passes + 41, "spins");
        rig.device.release();
        rig.take(now);
        served += now;
    }
    assert_eq!(rig.device.most_in_flight.load(Ordering::SeqCst), 3);
}
