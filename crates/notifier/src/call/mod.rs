//! The call (or err) descriptor of a ring, which one side signals while the other replaces it.
//!
//! # Contract
//!
//! - [`CallCell::signal`] writes the descriptor that is attached, or says that none is. No lock, no allocation; without
//!   contention two read-modify-writes and one write(2).
//! - [`CallCell::swap`] attaches another descriptor or none, from any thread and from several at once.
//! - When the [`DetachTicket`] is done, the old descriptor is closed and no thread can write it any more. The wait is for
//!   signals in progress, never for I/O and never for a callback.
//! - Each descriptor is closed exactly once, by whoever is last out: the thread that detached it, or the last signaller
//!   still inside. Then its [`Release`] runs, exactly once, under no lock.
//! - A signal that runs beside a swap reaches the old descriptor or the new one. See "the interrupt that must not get lost".
//!
//! # Parts
//!
//! ```text
//!   cur ──► (slot index, generation)        slots[8]: word + registration       (slot.rs: states, invariants, orderings)
//! ```
//!
//! `swap`: **install** the new registration in an empty slot; **exchange** `cur`; fence; **deactivate** the old slot.
//! `signal`: **load** `cur`; **pin** that slot, checking ACTIVE and the generation in the same RMW; write; **unpin**.
//!
//! The exchange hands each registration to exactly one swapper. That one clears its ACTIVE and so owns the decoupling; as in
//! every mutual decoupling, the one atomic bit decides who. Lifetime is kept apart from it: the slot stays Draining while
//! pins are left, whoever let go first.
//!
//! # Races
//!
//! **R1, signal × swap.** The signaller loads `cur` = old. (a) It pins before the swapper deactivates: it writes the old
//! descriptor, which stays open until the unpin. (b) It pins after: it finds ACTIVE cleared, touches nothing, unpins and loads
//! `cur` again. The pin read the deactivation (Release → Acquire), which came after the exchange, so it now loads the new
//! value or a later one. A round is repeated only if another swap came in between: lock-free.
//!
//! **R2, swap × swap × drop.** The exchanges on `cur` have one order; each registration comes out of exactly one of them and
//! is deactivated by that thread alone. It was activated before it was put in (the exchange releases, the next one
//! acquires), so ACTIVE is there to clear. A drop is an exchange for none.
//!
//! **R3, last unpin × detach winner.** Slot invariant I4: both are RMWs on one word; the later one sees that both have
//! happened and finalizes; if a stray pin makes two of them see it, one CAS decides.
//!
//! **R4, a callback detaches its own cell or a sibling.** Callbacks run after the pin is given back, the slot is empty and
//! the descriptor closed, and no lock is held: they may signal, swap and wait as anybody may. The one wait that could never
//! end is that of a thread for a registration which it has pinned itself ([`CallPin`]); it gets [`WouldDeadlock`].
//!
//! **R5, slot recycled between load and pin (ABA).** `install` raises the slot's generation, which the pin compares in its RMW.
//! The stray pin keeps the newer registration for an instant longer, and whoever unpins last finalizes. No harm.
//!
//! # The interrupt that must not get lost
//!
//! The worker stores to the used ring, then signals. The session swaps, then signals the new descriptor once (that is the
//! session's duty: the kernel discards what was counted on a descriptor whose route is being taken down). One of the two
//! interrupts must come after the store, as the guest sees it. If the worker's signal goes to the new descriptor, it does. Else:
//!
//! - It pinned the old slot: the session's deactivation comes after that pin and acquires it, and the store with it.
//! - It found none attached: two locations (used ring, `cur`) are each written by one side and read by the other. Both
//!   sides fence (SeqCst) between their write and their read: [`CallCell::swap`] after the exchange; `signal`, when it
//!   is about to say Detached, before it looks at `cur` a second time. So either it finds the new one after all, or the
//!   session's interrupt comes after the store. The fence costs nothing while a descriptor is attached.

mod pin;
mod registration;
mod slot;
mod ticket;

pub use pin::CallPin;
pub use ticket::{DetachTicket, Detached, WouldDeadlock};

use crate::PeerFd;
use crate::release::Release;
use crate::sync::{AtomicU64, Ordering, fence};
use registration::Registration;
use slot::{GENERATION_BITS, Generation, Missed, Pinned, Slot};
use std::fmt;
use std::io;

/// How many registrations a cell can hold that are not yet closed, the attached one among them. (Under loom no scenario
/// needs more than three, and each costs.)
const SLOTS: usize = if cfg!(loom) { 3 } else { 8 };

/// See the [module](self).
pub struct CallCell {
    /// What is attached: a [`Current`].
    cur: AtomicU64,
    /// Writes that got through, counted without an RMW: see [`CallCell::signals`].
    signals: AtomicU64,
    slots: [Slot; SLOTS],
    /// How many of the slots are used. All, but for tests that need to see them run out.
    limit: usize,
}

/// Why a signal did not get through.
#[derive(Debug)]
pub enum SignalError {
    /// No descriptor is attached.
    Detached,
    /// The counter is full, or the descriptor would block: the peer does not read it. Nothing is lost on an eventfd: it
    /// is readable as it is. On a ring it means that the peer is broken or hostile.
    Full,
    /// A Unix signal broke a write that blocked, because the peer made the descriptor blocking and full. Treat it like `Full`.
    Interrupted,
    /// write(2) failed.
    Failed(io::Error),
}

/// The content of `cur`: generation, and slot index + 1 in the low byte; 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Current(u64);

impl Current {
    const NONE: Current = Current(0);

    fn new(index: usize, generation: Generation) -> Current {
        Current(generation.0 << (64 - GENERATION_BITS) | (index as u64 + 1))
    }

    fn get(self) -> Option<(usize, Generation)> {
        let index = (self.0 & 0xff).checked_sub(1)?;
        Some((index as usize, Generation(self.0 >> (64 - GENERATION_BITS))))
    }
}

impl CallCell {
    /// A cell with nothing attached.
    pub fn new() -> CallCell {
        CallCell::with_slots(SLOTS)
    }

    /// A cell that uses only so many of its slots, for tests that want them recycled or exhausted.
    #[doc(hidden)]
    pub fn with_slots(limit: usize) -> CallCell {
        CallCell {
            cur: AtomicU64::new(Current::NONE.0),
            signals: AtomicU64::new(0),
            slots: std::array::from_fn(|_| Slot::new()),
            limit: limit.min(SLOTS),
        }
    }

    /// Writes the attached descriptor: one interrupt.
    ///
    /// Never blocks, but for the residue told in the module on [`PeerFd`]. If this thread turns out to be the last
    /// one inside a detached registration, it closes the descriptor and runs the [`Release`] before it returns.
    #[inline]
    pub fn signal(&self) -> Result<(), SignalError> {
        let Some(pinned) = self.pin_current() else {
            return Err(SignalError::Detached);
        };
        pinned.signal()?;
        self.signals.store(
            self.signals.load(Ordering::Relaxed).wrapping_add(1),
            Ordering::Relaxed,
        );
        Ok(())
    }

    /// Keeps the attached registration until the pin is dropped, for a write that somebody else will make: an io_uring
    /// write that was queued with the descriptor's number, until its completion is reaped (race R6). None: nothing attached.
    pub fn pin(&self) -> Option<CallPin<'_>> {
        self.pin_current().map(CallPin::new)
    }

    /// Whether a descriptor is attached. Out of date as soon as it is said.
    pub fn is_attached(&self) -> bool {
        Current(self.cur.load(Ordering::Acquire)) != Current::NONE
    }

    /// How many writes reached a descriptor since creation, for statistics: exact while one thread at a time signals, as a
    /// worker does; signals of two threads at the same instant may count as one. (Exactness would cost a third RMW.)
    pub fn signals(&self) -> u64 {
        self.signals.load(Ordering::Relaxed)
    }

    /// Detaches what is attached, attaches `new` (or nothing), and gives a ticket for the old one.
    ///
    /// - `swap(Some(fd), on_release)`: `on_release` belongs to `fd`. It runs once when *that* descriptor has been closed: after
    ///   a later swap, or when the cell is dropped.
    /// - `swap(None, on_release)`: nothing new is there to go, so `on_release` runs once when the *old* one has been closed;
    ///   at once if nothing was attached. (After the close; before or after the old one's own callback.) The same as [`DetachTicket::on_done`].
    ///
    /// If nobody is inside, the old descriptor is closed and its callback run by this thread before this returns. So do
    /// not hold a lock that a callback takes.
    ///
    /// On a started ring, signal once after attaching: see the module.
    ///
    /// **Bound.** A cell holds at most eight descriptors that are not yet closed. If all the others are still pinned
    /// (seven signallers or queued writes that the peer has managed to block), the old one is detached all the same, the new
    /// one is refused: it is closed and its `on_release` run at once, nothing is attached, and
    /// [`DetachTicket::refused`] says so. A peer that brings this about is to be disconnected.
    pub fn swap(&self, new: Option<PeerFd>, on_release: Release) -> DetachTicket {
        let (next, refused, after) = match new {
            None => (Current::NONE, None, on_release),
            Some(fd) => match self.install(Registration::new(fd, on_release)) {
                Ok(current) => (current, None, Release::none()),
                Err(registration) => (Current::NONE, Some(registration), Release::none()),
            },
        };
        // AcqRel: Release pairs with the Acquire in `pin_current` and in the next exchange (the slot is active before it can
        // be found); Acquire pairs with the previous exchange's Release (the old slot's activation).
        let old = Current(self.cur.swap(next.0, Ordering::AcqRel));
        // Pairs with the fence in `pin_current`: the interrupt that must not get lost.
        fence(Ordering::SeqCst);
        let ticket = self.detach(old, refused.is_some());
        if let Some(registration) = refused {
            registration.retire();
        }
        ticket.hang(after);
        ticket
    }

    /// Puts the registration into an empty slot; gives it back if there is none.
    fn install(&self, mut registration: Registration) -> Result<Current, Registration> {
        for (index, slot) in self.slots.iter().enumerate().take(self.limit) {
            match slot.install(registration) {
                Ok(generation) => return Ok(Current::new(index, generation)),
                Err(back) => registration = back,
            }
        }
        Err(registration)
    }

    /// Decouples what an exchange took out of `cur`.
    fn detach(&self, old: Current, refused: bool) -> DetachTicket {
        let Some((slot, generation)) = self.find(old) else {
            return DetachTicket::new(None, refused);
        };
        let (latch, last) = slot.deactivate(generation);
        if let Some(registration) = last {
            registration.retire();
        }
        DetachTicket::new(Some(latch), refused)
    }

    #[inline]
    fn find(&self, current: Current) -> Option<(&Slot, Generation)> {
        let (index, generation) = current.get()?;
        Some((self.slots.get(index)?, generation))
    }

    /// Pins what is attached; None if nothing is.
    #[inline]
    fn pin_current(&self) -> Option<Pinned<'_>> {
        loop {
            // Acquire: pairs with the Release of the exchange in `swap`.
            let mut current = Current(self.cur.load(Ordering::Acquire));
            if current == Current::NONE {
                // Pairs with the fence in `swap`: the interrupt that must not get lost.
                fence(Ordering::SeqCst);
                current = Current(self.cur.load(Ordering::Acquire));
            }
            let (slot, generation) = self.find(current)?;
            match slot.pin(generation) {
                Ok(pinned) => return Some(pinned),
                Err(Missed::Gone(None)) => {}
                Err(Missed::Gone(Some(registration))) => registration.retire(),
                Err(Missed::Overrun) => return None,
            }
        }
    }
}

impl Default for CallCell {
    fn default() -> Self {
        CallCell::new()
    }
}

impl Drop for CallCell {
    /// Nobody is inside: pins borrow the cell.
    fn drop(&mut self) {
        let _ = self.swap(None, Release::none());
    }
}

impl fmt::Debug for CallCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallCell")
            .field("attached", &self.is_attached())
            .field("signals", &self.signals())
            .finish()
    }
}

impl fmt::Display for SignalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SignalError::Detached => f.write_str("no descriptor is attached"),
            SignalError::Full => {
                f.write_str("the peer does not read its descriptor: the counter is full")
            }
            SignalError::Interrupted => {
                f.write_str("the descriptor blocked and the write was interrupted")
            }
            SignalError::Failed(_) => f.write_str("cannot write the descriptor"),
        }
    }
}

impl std::error::Error for SignalError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            SignalError::Failed(error) => Some(error),
            _ => None,
        }
    }
}
