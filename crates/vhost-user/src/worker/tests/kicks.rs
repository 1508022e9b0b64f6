//! No kick is lost, whatever happens to the ring or the descriptor meanwhile.

use super::*;

#[test]
fn requests_from_before_the_start_need_no_kick() {
    let pool = pool();
    let mut rig = Rig::new(&pool);
    rig.add(Op::Now, 20);
    let _ = rig.driver.make_available();
    rig.start();
    rig.take(20);
}

#[test]
fn a_disabled_ring_pops_nothing_and_keeps_its_kicks() {
    let pool = pool();
    let mut rig = Rig::new(&pool);
    rig.start_with(Some(peer(&rig.kick)), false);
    rig.send(Op::Now, 4);
    signal(&rig.kick);
    rig.rounds();
    assert_eq!(rig.ring().counters().requests, 0);
    rig.ring().set_enabled(true);
    rig.take(4);
    for _ in 0..200 {
        rig.ring().set_enabled(false);
        let before = rig.ring().counters().requests;
        rig.send(Op::Now, 4);
        signal(&rig.kick);
        rig.rounds();
        assert_eq!(
            rig.ring().counters().requests,
            before,
            "popped while disabled"
        );
        rig.ring().set_enabled(true);
        rig.take(4);
    }
}

#[test]
fn a_disabled_ring_still_completes() {
    let pool = pool();
    let mut rig = Rig::started(&pool);
    rig.send(Op::Held, 3);
    until("held", || rig.device.held() == 3);
    rig.ring().set_enabled(false);
    rig.device.release();
    rig.take(3);
}

#[test]
fn a_kick_swap_under_load_loses_no_request_and_closes_the_old_one() {
    let pool = pool();
    let mut rig = Rig::started(&pool);
    for round in 0..300 {
        let n = 1 + round % 5;
        rig.add(Op::Kernel, n);
        let (reader, writer) = std::io::pipe().unwrap();
        let old = std::mem::replace(&mut rig.kick, writer.into());
        let _ = rig.driver.make_available();
        // The wanted kick goes to neither, or to the old one, which nobody watches any more after this.
        if round % 2 == 0 {
            let _ = rustix::io::write(&old, &1u64.to_ne_bytes());
        }
        rig.ring()
            .swap_kick(Some(PeerFd::new(reader.into()).unwrap()));
        if round > 0 {
            let flags = state(&old, PollFlags::OUT, Duration::ZERO);
            assert!(flags.contains(PollFlags::ERR), "the old kick is still open");
        }
        rig.take(n);
        // And the new one works.
        rig.send(Op::Now, 1);
        rig.take(1);
    }
}

#[test]
fn a_ring_without_a_kick_is_polled_and_can_get_one() {
    let pool = pool();
    let mut rig = Rig::new(&pool);
    rig.start_with(None, true);
    for op in [Op::Now, Op::Kernel, Op::Slow] {
        for _ in 0..20 {
            rig.add(op, 6);
            let _ = rig.driver.make_available();
            rig.take(6);
        }
    }
    assert_eq!(rig.ring().counters().kicks, 0);
    let kick = peer(&rig.kick);
    rig.ring().swap_kick(Some(kick));
    for _ in 0..20 {
        rig.send(Op::Now, 6);
        rig.take(6);
    }
    rig.ring().swap_kick(None);
    rig.add(Op::Now, 6);
    let _ = rig.driver.make_available();
    rig.take(6);
    rig.drain();
}

#[test]
fn a_polled_ring_that_is_disabled_lets_its_worker_sleep() {
    let pool = pool();
    let mut rig = Rig::new(&pool);
    rig.start_with(None, false);
    rig.rounds();
    rig.sleeps_without_limit();
}

#[test]
fn idle_rings_cost_no_pass_and_no_wakeup() {
    let pool = pool();
    let mut rigs: Vec<_> = (0..20).map(|_| Rig::started(&pool)).collect();
    for rig in &mut rigs {
        rig.send(Op::Kernel, 3);
        rig.take(3);
    }
    rigs.iter().for_each(Rig::rounds);
    let passes = |rigs: &[Rig]| rigs.iter().map(|r| r.ring().counters().passes).sum::<u64>();
    let before = passes(&rigs);
    // Another ring of the same worker has work; the idle ones are not even looked at.
    let mut busy = Rig::started(&pool);
    for _ in 0..20 {
        busy.send(Op::Kernel, 3);
        busy.take(3);
    }
    busy.sleeps_without_limit();
    assert_eq!(passes(&rigs), before);
}

#[test]
fn a_new_memory_map_is_followed_and_an_impossible_one_refused() {
    let pool = pool();
    let mut rig = Rig::started(&pool);
    rig.send(Op::Held, 2);
    until("held", || rig.device.held() == 2);
    let old = Arc::downgrade(&rig.map);
    rig.map = Arc::new(rig.driver.memory().map());
    rig.ring().set_memory(rig.map.clone()).unwrap();
    assert!(old.upgrade().is_some(), "requests in flight point into it");
    rig.send(Op::Now, 4);
    rig.take(4);
    rig.device.release();
    rig.take(2);
    let refusal = rig.ring().set_memory(Arc::new(MemoryMap::empty()));
    assert!(refusal.unwrap_err().to_string().contains("memory"));
    // The ring goes on in the old one until it is stopped.
    rig.send(Op::Now, 4);
    rig.take(4);
    assert_eq!(rig.drain().next_avail, 10);
}

#[test]
fn kicks_are_muted_while_the_ring_is_served_and_wanted_when_it_is_empty() {
    let pool = pool();
    // Without EVENT_IDX the wish is a flag that can be read.
    let mut rig = Rig::with_features(&pool, 0);
    rig.start();
    rig.rounds();
    assert!(!rig.driver.kicks_muted());
    rig.send(Op::Block, 1);
    rig.device.wait_blocked();
    assert!(rig.driver.kicks_muted());
    rig.device.unblock();
    rig.take(1);
    rig.rounds();
    assert!(!rig.driver.kicks_muted());
}
