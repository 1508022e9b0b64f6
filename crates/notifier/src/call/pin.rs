//! A registration held for a write that somebody else makes.

use super::slot::Pinned;
use crate::here;
use crate::latch::Latch;
use crate::sync::Arc;
use std::fmt;
use std::marker::PhantomData;
use std::os::fd::RawFd;

/// Keeps the descriptor it was taken on open and its number from being reused, until it is dropped.
///
/// Stays on its thread, so that this thread's wait for the registration it holds is told [`WouldDeadlock`] instead of
/// hanging. Two threads that each hold a pin and wait for the other's are not detected: hold none while waiting.
/// A pin that is leaked (`mem::forget`) keeps its descriptor open and its ticket waiting for ever.
///
/// [`WouldDeadlock`]: crate::WouldDeadlock
#[must_use]
pub struct CallPin<'a> {
    pinned: Pinned<'a>,
    latch: Option<Arc<Latch>>,
    stays_here: PhantomData<*const ()>,
}

impl<'a> CallPin<'a> {
    pub(super) fn new(pinned: Pinned<'a>) -> CallPin<'a> {
        let latch = pinned.latch();
        if let Some(latch) = &latch {
            here::hold(latch);
        }
        CallPin {
            pinned,
            latch,
            stays_here: PhantomData,
        }
    }

    /// The number to put into a submission queue entry. Good until this is dropped: drop it when the completion has been
    /// reaped, or the ring's own descriptor closed, and not before.
    ///
    /// The eight bytes to write are `1u64` in native order. No operation that may wait for the peer (a write to a
    /// blocking descriptor) should be queued without a way to cancel it.
    pub fn raw_fd(&self) -> RawFd {
        self.pinned.number()
    }

    /// Writes the descriptor, as [`CallCell::signal`](super::CallCell::signal) does, but surely this one.
    pub fn signal(&self) -> Result<(), super::SignalError> {
        self.pinned.signal()
    }
}

impl Drop for CallPin<'_> {
    /// Before the unpin (which is the drop of `pinned`, next): its callbacks already run without the pin.
    fn drop(&mut self) {
        if let Some(latch) = &self.latch {
            here::let_go(latch);
        }
    }
}

impl fmt::Debug for CallPin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CallPin").field(&self.raw_fd()).finish()
    }
}
