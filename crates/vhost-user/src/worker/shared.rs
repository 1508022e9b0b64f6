//! What worker and claim both see of a ring: where it is, what it counted, and whether it was handed back.

use super::{RingCounters, StoppedRing};
use outboard_notifier::{Close, Release, RingGate};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
};

/// One start of one ring. Written by its worker at the end of each pass.
///
/// The plain numbers are Relaxed: whoever needs them exact (a stopped ring) reads them after `handed_back`, whose Release
/// and Acquire order them; whoever reads earlier gets statistics.
pub(super) struct Shared {
    pub index: u16,
    pub gate: RingGate,
    pub next_avail: AtomicU16,
    pub next_used: AtomicU16,
    pub kicks: AtomicU64,
    pub calls: AtomicU64,
    pub requests: AtomicU64,
    pub passes: AtomicU64,
    pub call_failures: AtomicU64,
    handed_back: AtomicBool,
}

impl Shared {
    pub fn new(index: u16, enabled: bool, next_avail: u16, next_used: u16) -> Shared {
        Shared {
            index,
            gate: RingGate::new(enabled),
            next_avail: AtomicU16::new(next_avail),
            next_used: AtomicU16::new(next_used),
            kicks: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            passes: AtomicU64::new(0),
            call_failures: AtomicU64::new(0),
            handed_back: AtomicBool::new(false),
        }
    }

    pub fn counters(&self) -> RingCounters {
        RingCounters {
            kicks: self.kicks.load(Ordering::Relaxed),
            calls: self.calls.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            passes: self.passes.load(Ordering::Relaxed),
            call_failures: self.call_failures.load(Ordering::Relaxed),
        }
    }

    /// `None`: not handed back yet.
    pub fn stopped(&self) -> Option<StoppedRing> {
        if !self.handed_back.load(Ordering::Acquire) {
            return None;
        }
        Some(StoppedRing {
            index: self.index,
            next_avail: self.next_avail.load(Ordering::Relaxed),
            next_used: self.next_used.load(Ordering::Relaxed),
            drained: self.gate.is_closed() == Some(Close::Drain),
            counters: self.counters(),
        })
    }
}

/// Adds to a number that one thread alone writes.
pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(n),
        Ordering::Relaxed,
    );
}

/// The duty to hand a ring back. It is discharged by being dropped, so it is discharged whatever happens to its holder: a
/// message that is never read, a worker that ends.
pub(super) struct HandBack {
    shared: Arc<Shared>,
    on_done: Release,
}

impl HandBack {
    pub fn new(shared: Arc<Shared>, on_done: Release) -> HandBack {
        HandBack { shared, on_done }
    }
}

impl Drop for HandBack {
    fn drop(&mut self) {
        if !self.shared.gate.is_done() {
            // The worker is gone, or it would have waited for this: nobody will finish what is in flight.
            self.shared.gate.close(Close::Abandon, Release::none());
        }
        // Release: pairs with the Acquire in `stopped`.
        self.shared.handed_back.store(true, Ordering::Release);
        std::mem::take(&mut self.on_done).fire();
    }
}
