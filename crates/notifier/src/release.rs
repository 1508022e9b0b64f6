//! What runs once when a registration goes.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A callback that runs exactly once, when the thing it was attached to is gone.
///
/// It runs on the thread of whoever was last out, which may be any thread that signals, detaches, completes or
/// leaves. It runs after the descriptor is closed (or the gate is done) and with none of this crate's locks held,
/// so it may block, and it may use the very cell, source or gate that it was attached to. A caller that holds a
/// lock of its own while it detaches must expect the callback to run under that lock.
///
/// A `Release` that is dropped without having been attached does not run.
#[must_use]
#[derive(Default)]
pub struct Release(Option<Box<dyn FnOnce() + Send>>);

impl Release {
    /// Nothing to run.
    pub fn none() -> Release {
        Release(None)
    }

    /// Runs `f`.
    pub fn run(f: impl FnOnce() + Send + 'static) -> Release {
        Release(Some(Box::new(f)))
    }

    /// Whether there is anything to run.
    pub fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// Runs the callback, for who carries one to the end it was given for.
    ///
    /// A panic in it has been reported by the panic hook and stops here: whoever happened to be
    /// last out (a worker in the middle of a signal) has nothing to do with it and must not die of it.
    pub fn fire(self) {
        let Some(f) = self.0 else { return };
        if cfg!(loom) {
            // An assertion in a scenario's callback has to fail the run.
            f();
        } else {
            let _ = catch_unwind(AssertUnwindSafe(f));
        }
    }
}

impl fmt::Debug for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_none() {
            "Release(none)"
        } else {
            "Release(callback)"
        })
    }
}
