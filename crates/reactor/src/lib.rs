//! Where a worker thread sleeps: one io_uring for kicks, timers, wake-ups and disk completions.
//!
//! A [`Reactor`] belongs to one thread. Everything that can give that thread work wakes the same [`Reactor::wait`]:
//!
//! | source | how it is armed | reported as |
//! |---|---|---|
//! | a kick descriptor | [`Reactor::watch`]: multishot poll, never read | [`Wake::Kick`] |
//! | another thread | [`Reactor::waker`] | [`Wake::Mailbox`] |
//! | an operation of the kernel | [`IoPort::push`] | [`Wake::Port`], then [`IoPort::pop`] |
//! | a timer | [`IoPort::timer`] | as above |
//! | work done inline | [`IoPort::complete_now`] | as above |
//! | a foreign thread's completion | [`IoPort::remote`] | as above |
//!
//! # Cost
//! One `io_uring_enter` both submits what was queued (at most [`Config::batch`] entries, so that results of the first
//! are published while the last are prepared) and sleeps. A wait that may not sleep and has nothing to submit costs no
//! system call. Nothing is armed that fires by itself: an idle reactor sleeps until something happens.
//!
//! # Lifetimes
//! The kernel holds file numbers and addresses of queued operations. Watched descriptors are therefore owned by the
//! reactor and closed after their final completion ([`Reactor::unwatch`]); memory and files of port operations are
//! their users' ([`IoPort`]). Dropping the reactor cancels what is outstanding and waits for it, so what the operations
//! named may be let go after the reactor, never before.

pub mod buffers;
mod core;
mod port;
mod remote;
mod setup;
mod tag;
mod timer;
mod watch;

pub use buffers::Buffers;
pub use port::{IoPort, PortCompletion, PortId};
pub use remote::RemotePort;
pub use watch::WatchId;

/// The crate whose entries [`IoPort::push`] takes.
pub use io_uring;

use crate::core::Core;
use outboard_notifier::{Event, KickTicket, PeerFd};
use std::{cell::RefCell, io, rc::Rc, sync::Arc, time::Duration};

/// Sizes of a reactor.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Entries of the submission ring, rounded up to a power of two (2 to 4096). The completion ring has four times as
    /// many.
    pub entries: u32,
    /// Entries submitted per `io_uring_enter` at most.
    pub batch: u32,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            entries: 256,
            batch: 16,
        }
    }
}

/// What a wait returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// The waker was notified.
    Mailbox,
    /// The watched descriptor with this key was signalled, at least once since the last report.
    Kick {
        /// As given to [`Reactor::watch`].
        key: u64,
    },
    /// The kernel cannot watch this descriptor any more (it failed; a peer can bring that about): poll the ring
    /// instead. Reported once; the watch still has to be ended with [`Reactor::unwatch`].
    WatchLost {
        /// As given to [`Reactor::watch`].
        key: u64,
    },
    /// Completions or expired timers wait in this port. Reported by every wait until they are popped.
    Port {
        /// [`IoPort::id`].
        port: PortId,
    },
}

/// Counts since the reactor was made.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Calls of `io_uring_enter`.
    pub enters: u64,
    /// Those of them that were allowed to sleep.
    pub sleeps: u64,
    /// Entries submitted.
    pub sqes: u64,
    /// Completions taken.
    pub cqes: u64,
    /// Wakes reported.
    pub wakes: u64,
}

/// One thread's ring: made, used and dropped on that thread.
pub struct Reactor {
    core: Rc<RefCell<Core>>,
}

impl Reactor {
    /// Fails with a text that says what to do when the kernel refuses io_uring.
    pub fn new(config: Config) -> io::Result<Reactor> {
        let core = Rc::new(RefCell::new(Core::new(&config)?));
        Ok(Reactor { core })
    }

    /// Wakes `wait` from any thread.
    pub fn waker(&self) -> Arc<Event> {
        self.core.borrow().waker()
    }

    /// Polls a descriptor for input until `unwatch`. It is never read, and belongs to the reactor from here on. A
    /// descriptor that is readable already is reported at once. Fails with the 65,537th watch at a time.
    pub fn watch(&mut self, fd: PeerFd, key: u64) -> io::Result<WatchId> {
        self.core.borrow_mut().watch(fd, key)
    }

    /// Ends a watch. After this returns, `wait` reports no kick of it. The ticket is done when the last queued kernel
    /// operation on the descriptor was reaped and the descriptor closed, which needs further calls of `wait` here: never
    /// wait for the ticket on this thread. `None`: there is no such watch (any more).
    pub fn unwatch(&mut self, id: WatchId) -> Option<KickTicket> {
        self.core.borrow_mut().unwatch(id)
    }

    /// A private completion queue for one user (a disk queue).
    pub fn port(&self) -> IoPort {
        IoPort::new(self.core.clone(), None)
    }

    /// The user of this port (and its siblings) will never pop again, though it still exists: what completes there is
    /// dropped and wakes nobody. Its operations still count as outstanding until the kernel is done with them.
    pub fn discard(&mut self, port: PortId) {
        self.core.borrow_mut().ports.discard(port);
    }

    /// Submits at most a batch of queued operations and sleeps until something happened or `timeout` passed
    /// (`Some(ZERO)`: only looks; `None`: no limit). Appends at most 20 wakes to `wakes`; may append none (a signal).
    ///
    /// Does not sleep while a port has completions to pop or more than a batch is queued.
    pub fn wait(&mut self, wakes: &mut Vec<Wake>, timeout: Option<Duration>) -> io::Result<()> {
        self.core.borrow_mut().wait(wakes, timeout)
    }

    /// As many operations are queued as one `io_uring_enter` submits: time to `wait` (with `Some(ZERO)`, if there is more to
    /// do), lest they wait for others.
    pub fn batch_is_full(&self) -> bool {
        self.core.borrow_mut().batch_is_full()
    }

    /// Counts since the reactor was made.
    pub fn counters(&self) -> Counters {
        self.core.borrow().counters
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        self.core.borrow_mut().close();
    }
}

#[cfg(test)]
mod tests;
