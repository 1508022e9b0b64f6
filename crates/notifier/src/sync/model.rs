//! The model descriptor that stands for a real one under loom.
//!
//! A write reads a loom cell, a close writes it. So loom itself reports a close that is not ordered after every write
//! (not only one that happens to be interleaved badly), and a write that is not ordered after the creation.

use super::UnsafeCell;
use crate::call::SignalError;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

struct State {
    closed: UnsafeCell<bool>,
    /// Mirrors `closed` for witnesses that are not ordered with the close. Counts for assertions are std's: loom need not
    /// explore them.
    closes: AtomicU64,
    writes: AtomicU64,
    number: i32,
}

// SAFETY: loom's cell checks on every run that its accesses are ordered, which is the point of the model.
#[allow(unsafe_code)]
unsafe impl Sync for State {}

/// Stands for a descriptor given by the peer. Not clonable: the drop is the close.
pub struct PeerFd(Arc<State>);

/// Looks at a model descriptor without holding it.
#[derive(Clone)]
pub struct Witness(Arc<State>);

impl PeerFd {
    /// A fresh open descriptor and its witness. `number` is what a queued kernel operation would name.
    pub fn model(number: i32) -> (PeerFd, Witness) {
        let state = Arc::new(State {
            closed: UnsafeCell::new(false),
            closes: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            number,
        });
        (PeerFd(state.clone()), Witness(state))
    }

    pub(crate) fn look_at_mode(&mut self) {}

    pub(crate) fn signal(&self) -> Result<(), SignalError> {
        self.0.touch();
        self.0.writes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn number(&self) -> i32 {
        self.0.number
    }
}

impl State {
    #[allow(unsafe_code)]
    fn touch(&self) {
        self.closed.with(|closed| {
            // SAFETY: loom's cell checks on every run that no access with_mut is concurrent with this one.
            assert!(
                !unsafe { *closed },
                "descriptor {} used after its close",
                self.number
            );
        });
    }
}

impl Drop for PeerFd {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        self.0.closed.with_mut(|closed| {
            // SAFETY: loom's cell checks on every run that this access is alone.
            assert!(
                !unsafe { std::mem::replace(&mut *closed, true) },
                "descriptor {} closed twice",
                self.0.number
            );
        });
        self.0.closes.fetch_add(1, Ordering::Relaxed);
    }
}

impl Witness {
    /// That it is closed, and that the close happened before this: loom's cell fails the run if it is merely so by chance.
    #[allow(unsafe_code)]
    pub fn assert_closed(&self) {
        // SAFETY: loom's cell checks on every run that no close is concurrent.
        self.0
            .closed
            .with(|closed| assert!(unsafe { *closed }, "descriptor {} is open", self.0.number));
    }

    /// How often it was closed so far.
    pub fn closes(&self) -> u64 {
        self.0.closes.load(Ordering::Relaxed)
    }

    /// How often it was written so far.
    pub fn writes(&self) -> u64 {
        self.0.writes.load(Ordering::Relaxed)
    }

    /// What a kernel operation does that was submitted with this descriptor's number: fails the run once it is closed.
    pub fn touch(&self) {
        self.0.touch();
    }
}

impl std::fmt::Debug for PeerFd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PeerFd(model {})", self.0.number)
    }
}
