//! A one-shot "it is gone" that threads can wait for and callbacks can be hung on.
//!
//! # Contract
//!
//! - `open` is called once, by whoever closed the descriptor, after the close.
//! - Everything that happened before `open` happens before `wait` returns, before `is_done` says true, and before a
//!   callback given to `then` runs.
//! - A callback given to `then` runs exactly once: by the caller of `open`, or by `then` itself if `open` came first. The list and the
//!   flag are under one mutex, so it is one or the other. No lock is held while it runs.

use crate::release::Release;
use crate::sync::{Arc, AtomicBool, Condvar, Mutex, Ordering, lock, wait};

/// See the module.
pub(crate) struct Latch {
    /// A copy of `State::done`, so that asking costs no lock.
    done: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    done: bool,
    then: Vec<Release>,
}

impl Latch {
    pub(crate) fn new() -> Arc<Latch> {
        Arc::new(Latch {
            done: AtomicBool::new(false),
            state: Mutex::new(State {
                done: false,
                then: Vec::new(),
            }),
            changed: Condvar::new(),
        })
    }

    /// Wakes all who wait, and gives what was hung on it, in the order it was hung, to be run by the caller.
    #[must_use]
    pub(crate) fn open(&self) -> Vec<Release> {
        let then = {
            let mut state = lock(&self.state);
            state.done = true;
            // Release: pairs with the Acquire in `is_done`; orders the close before it.
            self.done.store(true, Ordering::Release);
            std::mem::take(&mut state.then)
        };
        self.changed.notify_all();
        then
    }

    pub(crate) fn is_done(&self) -> bool {
        // Acquire: pairs with the Release in `open`.
        self.done.load(Ordering::Acquire)
    }

    pub(crate) fn wait(&self) {
        if self.is_done() {
            return;
        }
        let mut state = lock(&self.state);
        while !state.done {
            state = wait(&self.changed, state);
        }
    }

    /// True if it was set within `limit`.
    #[cfg(not(loom))]
    pub(crate) fn wait_timeout(&self, limit: std::time::Duration) -> bool {
        let state = lock(&self.state);
        let (state, _) = self
            .changed
            .wait_timeout_while(state, limit, |state| !state.done)
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        state.done
    }

    pub(crate) fn then(&self, release: Release) {
        if release.is_none() {
            return;
        }
        let mut state = lock(&self.state);
        if state.done {
            drop(state);
            release.fire();
        } else {
            state.then.push(release);
        }
    }
}
