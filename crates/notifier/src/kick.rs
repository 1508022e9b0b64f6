//! The kick descriptor of a ring, watched by an io_uring poll.
//!
//! # Contract
//!
//! A [`KickSource`] belongs to the one thread that drives the ring of submissions; it owns the [`PeerFd`] and knows when the
//! kernel may still come upon its *number*. Only then not is it closed. Somebody else may wait for that with a [`KickTicket`].
//! A source holds no lock and shares nothing but its ticket's latch: all its races are between the kernel's completions and the
//! owner's wishes, and the owner meets both one after the other.
//!
//! ```text
//!            arm                       begin_detach
//!   Idle ──► Arming ──► Armed ───────► Cancelling ──last completion──► (Reaped) ──► Closed
//!    ▲          │         │ completion without F_MORE: re-arm, or failed
//!    ├──────────┘         │
//!    ├────────────────────┘
//!    └── begin_detach ────────────────────────────────────────────────► (Reaped) ──► Closed
//! ```
//!
//! - **Arming** lasts while the owner's closure queues the operation. **Armed**: an entry that names the number is queued, or
//!   an operation submitted with it runs. At most one at a time, so its last completion (without F_MORE) proves that none is left.
//! - Each arming has its own token, out of one sequence for the whole process. It goes into the entry's `user_data`, and a
//!   completion that does not bring the current one is `Stale`.
//! - **Reaped** is the instant between the last completion and the close; nobody sees it.
//!
//! # Races
//!
//! **R6, a queued entry with a raw number; the descriptor closed; the number reused.** Once an entry is queued, the source
//! closes only after the last completion. Unsubmitted entries count as queued: they cannot be taken back, so a cancel is
//! queued behind them and the completion awaited.
//!
//! **R7, kick completion after the cancel.** In Cancelling a completion with F_MORE is `Stale`: reported to nobody. The
//! cancel's own completion is not the source's (its `user_data` is the owner's) and proves nothing: the poll's last one does,
//! whether it says ECANCELED or came before the cancel was looked at.
//!
//! **R8, kick of an old generation after re-setup.** The token.
//!
//! **R9, kick replaced while armed.** Two sources: the old one Cancelling, the new one Armed, each with its own token. The old
//! descriptor may be the same file as the new one (the VMM gave it twice): nothing here depends on the file.
//!
//! # The owner's end
//!
//! A source that is dropped while Armed or Cancelling closes its descriptor and completes its ticket: every ticket ends. The
//! owner's duty is to close the ring's own descriptor *first* (a field declared before the sources is dropped before them):
//! then an entry not yet submitted never will be, and submitted polls hold the file, not the number. The kernel lets go of
//! those files a little later, on its own (it tears a ring down asynchronously).

use crate::PeerFd;
use crate::call::{Detached, WouldDeadlock};
use crate::here;
use crate::latch::Latch;
use crate::release::Release;
use crate::sync::Arc;
use std::fmt;
use std::os::fd::RawFd;
use std::sync::atomic::AtomicU32;

/// Not part of any handshake: only distinctness matters.
static NEXT_TOKEN: AtomicU32 = AtomicU32::new(1);

/// One watched descriptor. See the [module](self).
pub struct KickSource {
    /// None: closed.
    fd: Option<PeerFd>,
    state: State,
    token: u32,
    latch: Arc<Latch>,
    release: Release,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Arming,
    Armed,
    Cancelling,
    Closed,
}

/// What the owner has to do about a completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum KickEvent {
    /// Signalled; the poll goes on.
    Fire,
    /// Signalled, and that was the poll's last completion (the completion queue was full, or the kernel chose to): arm again.
    FireRearm,
    /// The poll ended with this errno, unasked. Nothing is armed; the source may be armed again or detached.
    Failed(i32),
    /// Of no importance any more.
    Stale,
    /// The last completion of a source that is being detached: the descriptor is closed, the ticket done, the callback run.
    /// The owner may forget the source.
    Closed,
}

/// What [`KickSource::begin_detach`] leaves to do.
#[derive(Debug)]
#[must_use]
pub struct Detaching {
    /// For whoever asked.
    pub ticket: KickTicket,
    /// The token of the poll for which a cancel has to be queued (by `user_data`, so that it names no descriptor); then keep
    /// the source until a completion says [`KickEvent::Closed`]. None: closed already, or asked for before.
    pub cancel: Option<u32>,
}

impl KickSource {
    /// Takes the descriptor. `on_release` runs once when it has been closed.
    pub fn new(fd: PeerFd, on_release: Release) -> KickSource {
        KickSource {
            fd: Some(fd),
            state: State::Idle,
            token: 0,
            latch: Latch::new(),
            release: on_release,
        }
    }

    /// Idle → Arming → Armed: lends `queue` the descriptor's number and the token for one multishot poll. `queue` returns Ok if
    /// an entry with them is now queued, Err if surely none is.
    ///
    /// Ok(false), without calling `queue`, unless the source is Idle: an operation is out already, or a detach was asked for.
    pub fn arm<E>(&mut self, queue: impl FnOnce(RawFd, u32) -> Result<(), E>) -> Result<bool, E> {
        let (State::Idle, Some(fd)) = (self.state, &self.fd) else {
            return Ok(false);
        };
        let number = fd.number();
        self.token = NEXT_TOKEN.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        // Should `queue` panic, Arming remains, and counts as armed: an entry may have been queued.
        self.state = State::Arming;
        match queue(number, self.token) {
            Ok(()) => {
                self.state = State::Armed;
                Ok(true)
            }
            Err(error) => {
                self.state = State::Idle;
                Err(error)
            }
        }
    }

    /// Whether a poll is queued or running.
    pub fn is_armed(&self) -> bool {
        matches!(self.state, State::Arming | State::Armed | State::Cancelling)
    }

    /// Whether the descriptor is closed.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// A completion of the poll with this token: `result` as in the CQE (an event mask or `-errno`), `more` its F_MORE.
    pub fn completion(&mut self, token: u32, result: i32, more: bool) -> KickEvent {
        if token != self.token {
            return KickEvent::Stale;
        }
        match self.state {
            State::Arming | State::Armed if more => KickEvent::Fire,
            State::Arming | State::Armed => {
                self.state = State::Idle;
                if result < 0 {
                    KickEvent::Failed(result.saturating_neg())
                } else {
                    KickEvent::FireRearm
                }
            }
            State::Cancelling if !more => {
                self.close();
                KickEvent::Closed
            }
            State::Cancelling | State::Idle | State::Closed => KickEvent::Stale,
        }
    }

    /// Asks for the end. From now on no completion says `Fire`. Closes at once if nothing was armed.
    pub fn begin_detach(&mut self) -> Detaching {
        let ticket = KickTicket {
            latch: self.latch.clone(),
            owner: here::thread(),
        };
        let cancel = match self.state {
            State::Idle => {
                self.close();
                None
            }
            State::Arming | State::Armed => {
                self.state = State::Cancelling;
                Some(self.token)
            }
            State::Cancelling | State::Closed => None,
        };
        Detaching { ticket, cancel }
    }

    /// Nothing names the number any more: the close, then those who wait, then the callbacks.
    fn close(&mut self) {
        let Some(fd) = self.fd.take() else { return };
        self.state = State::Closed;
        drop(fd);
        let after = self.latch.open();
        std::mem::take(&mut self.release).fire();
        after.into_iter().for_each(Release::fire);
    }
}

impl Drop for KickSource {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for KickSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KickSource")
            .field("state", &self.state)
            .field("token", &self.token)
            .finish()
    }
}

/// Sent to whoever asked for the detach: done when no queued kernel operation names the descriptor and it is closed.
///
/// It may be dropped without waiting: the detach goes on by itself.
#[must_use = "the descriptor may still be watched: wait for it, or say that it does not matter by dropping this"]
pub struct KickTicket {
    latch: Arc<Latch>,
    /// The thread that reaps the completions.
    owner: usize,
}

impl KickTicket {
    /// Sleeps until the descriptor is closed. The thread that owns the source cannot: nobody else would reap the completion.
    pub fn wait(self) -> Result<Detached, WouldDeadlock> {
        if !self.latch.is_done() && self.owner == here::thread() {
            return Err(WouldDeadlock);
        }
        self.latch.wait();
        Ok(Detached)
    }

    /// Whether the descriptor is closed.
    pub fn is_done(&self) -> bool {
        self.latch.is_done()
    }

    /// Runs `release` when the descriptor is closed; at once if it is already. For who must not sleep.
    pub fn on_done(self, release: Release) {
        self.latch.then(release);
    }
}

impl fmt::Debug for KickTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KickTicket")
            .field("done", &self.is_done())
            .finish()
    }
}
