//! Every interleaving of the gate's races. The used ring is a loom cell: a store to it that is not ordered before the
//! closer's look, or that is concurrent with it, fails the run.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p outboard-notifier --release --test 'loom_*'`
//!
//! Exhaustive, unless a scenario states a preemption bound.
#![cfg(loom)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
#![allow(unsafe_code)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use outboard_notifier::{Close, Release, RingGate};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Counts for assertions: std's, which loom does not explore.
type Count = std::sync::Arc<AtomicUsize>;

fn bounded(preemptions: usize) -> loom::model::Builder {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder
}

/// A gate, and the ring that only its passes may touch.
struct Ring {
    gate: RingGate,
    used: UnsafeCell<u32>,
}

// SAFETY: that the gate makes this true is what is checked, by loom's cell.
unsafe impl Sync for Ring {}
// SAFETY: plain data.
unsafe impl Send for Ring {}

impl Ring {
    fn new(enabled: bool) -> Arc<Ring> {
        Arc::new(Ring {
            gate: RingGate::new(enabled),
            used: UnsafeCell::new(0),
        })
    }

    /// Worker: one more used entry.
    fn publish(&self) {
        // SAFETY: loom checks that no other access is concurrent.
        self.used.with_mut(|used| unsafe { *used += 1 });
    }

    /// Session, once nobody touches the ring any more: how many there are.
    fn used(&self) -> u32 {
        // SAFETY: loom checks that no store is concurrent.
        self.used.with(|used| unsafe { *used })
    }

    /// A release that looks at the ring (so it must be quiet) and counts its runs.
    fn watched(ring: &Arc<Ring>) -> (Release, Count) {
        let ran = Count::default();
        let (ring, count) = (ring.clone(), ran.clone());
        let release = Release::run(move || {
            ring.used();
            assert!(ring.gate.is_done());
            count.fetch_add(1, Relaxed);
        });
        (release, ran)
    }
}

/// R10: completion × drain: the drain ends after the pass that publishes the last completion, and sees it.
#[test]
fn r10_completion_x_drain() {
    loom::model(|| {
        let ring = Ring::new(true);
        // One request was popped.
        ring.gate.enter().expect("running").leave(1);
        let worker = {
            let ring = ring.clone();
            thread::spawn(move || {
                let pass = ring.gate.enter().expect("draining lets completions in");
                assert!(pass.may_publish());
                ring.publish();
                pass.leave(0);
            })
        };
        let (release, ran) = Ring::watched(&ring);
        ring.gate.close(Close::Drain, release);
        ring.gate.finished().wait().expect("not in a pass");
        assert_eq!(
            ring.used(),
            1,
            "the completion was published before the drain was done"
        );
        worker.join().unwrap();
        assert_eq!(ran.load(Relaxed), 1);
        assert_eq!(ring.gate.is_closed(), Some(Close::Drain));
        assert!(ring.gate.enter().is_none());
    });
}

/// R10: pop × drain: a pass that pops while the drain is asked for is waited for, with what it popped. Preemption bound 3.
#[test]
fn r10_pop_x_drain() {
    bounded(3).check(|| {
        let ring = Ring::new(true);
        let worker = {
            let ring = ring.clone();
            thread::spawn(move || {
                let Some(pass) = ring.gate.enter() else {
                    return 0;
                };
                let popped = u32::from(pass.may_pop());
                pass.leave(popped);
                if popped == 1 {
                    let pass = ring.gate.enter().expect("one is in flight");
                    ring.publish();
                    pass.leave(0);
                }
                popped
            })
        };
        let (release, ran) = Ring::watched(&ring);
        ring.gate.close(Close::Drain, release);
        ring.gate.finished().wait().expect("not in a pass");
        let used = ring.used();
        assert_eq!(
            worker.join().unwrap(),
            used,
            "what was popped was published before the drain was done"
        );
        assert_eq!(ran.load(Relaxed), 1);
    });
}

/// R11: completion after abandon: either the pass is over before the abandon is done, or it never begins.
#[test]
fn r11_completion_x_abandon() {
    loom::model(|| {
        let ring = Ring::new(true);
        ring.gate.enter().expect("running").leave(1);
        let worker = {
            let ring = ring.clone();
            thread::spawn(move || {
                if let Some(pass) = ring.gate.enter() {
                    if pass.may_publish() {
                        ring.publish();
                    }
                    pass.leave(0);
                }
            })
        };
        let (release, ran) = Ring::watched(&ring);
        ring.gate.close(Close::Abandon, release);
        ring.gate.finished().wait().expect("not in a pass");
        ring.used();
        worker.join().unwrap();
        assert_eq!(ran.load(Relaxed), 1);
        assert_eq!(ring.gate.is_closed(), Some(Close::Abandon));
    });
}

/// R12: hang-up during a drain: both callbacks run, once each, when nobody is inside, whether the drain made it or not. Preemption bound 3.
#[test]
fn r12_hang_up_during_drain() {
    bounded(3).check(|| {
        let ring = Ring::new(true);
        ring.gate.enter().expect("running").leave(1);
        let worker = {
            let ring = ring.clone();
            thread::spawn(move || {
                if let Some(pass) = ring.gate.enter() {
                    ring.publish();
                    pass.leave(0);
                }
            })
        };
        let hang_up = {
            let ring = ring.clone();
            thread::spawn(move || {
                let (release, ran) = Ring::watched(&ring);
                ring.gate.close(Close::Abandon, release);
                ran
            })
        };
        let (release, drained) = Ring::watched(&ring);
        ring.gate.close(Close::Drain, release);
        let abandoned = hang_up.join().unwrap();
        ring.gate.finished().wait().expect("not in a pass");
        ring.used();
        worker.join().unwrap();
        assert_eq!((drained.load(Relaxed), abandoned.load(Relaxed)), (1, 1));
    });
}

/// R14: ENABLE 0 × pop: when the ticket is done, no pass pops any more. Preemption bound 3.
#[test]
fn r14_disable_x_pop() {
    bounded(3).check(|| {
        let ring = Ring::new(true);
        let worker = {
            let ring = ring.clone();
            thread::spawn(move || {
                for _ in 0..2 {
                    let pass = ring.gate.enter().expect("not closed");
                    if pass.may_pop() {
                        ring.publish();
                    }
                    pass.leave(0);
                }
            })
        };
        ring.gate.set_enabled(false).wait().expect("not in a pass");
        // Nobody pops: the session may look without the gate.
        ring.used();
        worker.join().unwrap();
    });
}

/// R15: memory table × pass: after the barrier no pass uses the old table; a later pass sees the new one. Preemption bound 3.
#[test]
fn r15_memory_swap_x_pass() {
    bounded(3).check(|| {
        let ring = Ring::new(true);
        let table = Arc::new(loom::sync::atomic::AtomicUsize::new(0));
        let worker = {
            let (ring, table) = (ring.clone(), table.clone());
            thread::spawn(move || {
                for _ in 0..2 {
                    let pass = ring.gate.enter().expect("not closed");
                    if table.load(Relaxed) == 0 {
                        // The old table's memory.
                        ring.publish();
                    }
                    pass.leave(0);
                }
            })
        };
        table.store(1, Relaxed);
        ring.gate.barrier().wait().expect("not in a pass");
        // The old table's memory is unmapped here.
        ring.used();
        worker.join().unwrap();
    });
}

/// R16: the worker dies inside: the drain ends, as an abandon.
#[test]
fn r16_lost_pass_x_drain() {
    loom::model(|| {
        let ring = Ring::new(true);
        // A drain would have to wait for this one.
        ring.gate.enter().expect("running").leave(1);
        let worker = {
            let ring = ring.clone();
            thread::spawn(move || {
                let pass = ring.gate.enter().expect("one is in flight");
                ring.publish();
                drop(pass);
            })
        };
        let (release, ran) = Ring::watched(&ring);
        ring.gate.close(Close::Drain, release);
        ring.gate.finished().wait().expect("not in a pass");
        ring.used();
        worker.join().unwrap();
        assert_eq!(ran.load(Relaxed), 1);
        assert_eq!(ring.gate.is_closed(), Some(Close::Abandon));
        assert!(ring.gate.enter().is_none());
    });
}
