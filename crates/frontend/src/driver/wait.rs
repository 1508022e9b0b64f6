//! Completions: taken, waited for, and their absence explained.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::{Completion, Done, Driver, NO_SLOT};
use crate::error::{Error, Result};
use crate::request::STATUS_NONE;
use crate::slots::Slot;
use crate::wire::wait_readable;

impl Driver {
    /// Takes a completion if one is there.
    #[inline]
    pub fn try_next(&mut self) -> Result<Option<Done>> {
        if let Some(done) = self.stash.pop_front() {
            return Ok(Some(done));
        }
        self.take()
    }

    #[inline]
    pub(super) fn take(&mut self) -> Result<Option<Done>> {
        let Some(used) = self.ring.take_used()? else {
            return Ok(None);
        };
        let owner = self
            .owners
            .get_mut(usize::from(used.head))
            .map_or(NO_SLOT, |owner| std::mem::replace(owner, NO_SLOT));
        let slot = (owner != NO_SLOT).then_some(Slot(owner));
        let status = slot.map_or(STATUS_NONE, |slot| self.slots.status(slot));
        self.counters.completed += 1;
        Ok(Some(Done {
            head: used.head,
            slot,
            status,
            used: used.length,
        }))
    }

    /// Waits for a completion.
    pub fn next(&mut self, within: Duration) -> Result<Done> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(done) = self.try_next()? {
                return Ok(done);
            }
            self.wait_until(deadline, within)?;
        }
    }

    /// Waits until a used entry is there, as the queue's [`Completion`] says.
    #[inline]
    pub fn wait_used(&mut self, within: Duration) -> Result<()> {
        // The clock is not looked at where nothing needs to be waited for.
        if self.ring.has_used() {
            Ok(())
        } else {
            self.wait_until(Instant::now() + within, within)
        }
    }

    pub(super) fn wait_until(&mut self, deadline: Instant, within: Duration) -> Result<()> {
        match self.options.completion {
            Completion::Event => self.wait_call(deadline, within),
            Completion::Polled => self.spin(deadline, within),
        }
    }

    fn spin(&mut self, deadline: Instant, within: Duration) -> Result<()> {
        let mut rounds = 0_u32;
        while !self.ring.has_used() {
            rounds = rounds.wrapping_add(1);
            if rounds.is_multiple_of(1024) {
                if Instant::now() >= deadline {
                    return Err(Error::Timeout {
                        after: within,
                        state: self.ring.state(),
                    });
                }
                // The back end may need this very CPU.
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
        Ok(())
    }

    fn wait_call(&mut self, deadline: Instant, within: Duration) -> Result<()> {
        loop {
            if self.ring.arm() {
                break;
            }
            if !wait_readable(fd(&self.call), deadline)? {
                let state = self.ring.state();
                return Err(if self.ring.has_used() {
                    Error::LostCall {
                        after: within,
                        state,
                    }
                } else {
                    Error::Timeout {
                        after: within,
                        state,
                    }
                });
            }
            self.drain_call()?;
            if self.ring.has_used() {
                break;
            }
            self.counters.empty_wakeups += 1;
        }
        self.ring.disarm();
        Ok(())
    }

    /// Reads the call eventfd and returns the number of signals on it.
    pub fn drain_call(&mut self) -> Result<u64> {
        let calls = drain(&self.call)?;
        self.counters.calls += calls;
        Ok(calls)
    }
}

/// Reads an eventfd that does not block and returns its count, 0 if it was empty.
pub fn drain(eventfd: &EventFd) -> Result<u64> {
    match eventfd.read() {
        Ok(count) => Ok(count),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(0),
        Err(error) => Err(Error::io("read of an eventfd")(error)),
    }
}

/// The borrowed fd of an eventfd, which `vmm-sys-util` does not lend.
#[allow(unsafe_code)]
pub(super) fn fd(eventfd: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the fd is open as long as `eventfd` lives, and the result borrows it.
    unsafe { BorrowedFd::borrow_raw(eventfd.as_raw_fd()) }
}
