//! One slot of a cell: a descriptor, and the word that says who may touch it.
//!
//! # The word
//!
//! ```text
//!   63           24    23       22       21    20        0
//!  ┌────────────────┬───────┬────────┬────────┬───────────┐
//!  │ generation: 40 │ OWNED │ CLOSED │ ACTIVE │ pins: 21  │
//!  └────────────────┴───────┴────────┴────────┴───────────┘
//! ```
//!
//! | state    | flags          | content                     | who may touch the content                 |
//! |----------|----------------|-----------------------------|-------------------------------------------|
//! | Empty    | CLOSED         | none                        | nobody                                    |
//! | Owned    | CLOSED, OWNED  | being put in or taken out   | the one thread whose RMW set OWNED         |
//! | Active   | ACTIVE         | a registration              | who holds a pin of this generation: `&`   |
//! | Draining | —              | a registration              | who held a pin before: `&`                |
//!
//! # Transitions, each one RMW on the word
//!
//! ```text
//!  Empty ──claim (generation + 1)──► Owned ──activate──► Active ──deactivate──► Draining ──finalize──► Owned ──► Empty
//!           CAS, Acquire                  xor, Relaxed        and, AcqRel          CAS, Acquire       xor, Release
//!
//!  in any state:  pin: fetch_add(1), AcqRel      unpin: fetch_sub(1), Release
//! ```
//!
//! A pin is good only if the word it was added to was Active and of the generation the pinner looked for. Any other pin
//! is a *stray*: it touches nothing and is taken back at once. Strays may sit on a slot in any state, also Empty and Owned,
//! so every transition but `finalize` leaves the pin count as it finds it.
//!
//! # Invariants
//!
//! - **I1** The content is written only in Owned, by the owner. A slot leaves Empty and Draining through one CAS each, so
//!   there is one owner. *Reads* need ACTIVE's owner (who will clear it) or a good pin.
//! - **I2** A good pin keeps its registration: `finalize` needs pins = 0 and no ACTIVE in the same CAS, and after ACTIVE is
//!   cleared no pin is good any more.
//! - **I3** A registration is finalized exactly once: only the CAS Draining → Owned takes it out, and Draining of this
//!   generation is entered once.
//! - **I4** It *is* finalized (R3): say D is the RMW that cleared ACTIVE and U the last unpin of all pins, good and stray,
//!   that began before the finalizing CAS. Both are RMWs on one word, so one comes later and sees both conditions:
//!   D after U sees pins = 0; U after D sees pins = 1 and neither ACTIVE nor CLOSED. Each then tries the CAS. If both try
//!   (a stray came in between) one wins. If a try fails because pins ≠ 0, that pinner's unpin comes later and is the new U.
//!
//! # Orderings
//!
//! - `activate` is Relaxed: a good pin's generation was read from `cur`, whose exchange (Release) comes after the
//!   activation and whose load (Acquire) comes before the pin. That pair shows the registration to who uses it.
//! - `unpin` Release ↔ `finalize` Acquire: every use of the descriptor happens before its close.
//! - `pin` Release ↔ `deactivate` Acquire: what a signaller did before a good pin (it stored to the used ring) is seen by
//!   whoever detaches afterwards, and so by the interrupt which that thread then raises on the new descriptor.
//! - `deactivate` Release ↔ `pin` Acquire: who finds ACTIVE cleared also finds the new `cur` (stored before).
//! - `finalize`'s final Release ↔ `claim` Acquire: the old content is out before a new one goes in.
//!
//! # What is assumed
//!
//! Forty bits of generation: a thread that stands still between reading `cur` and pinning is not overtaken by 2^40
//! registrations in the same slot (twelve days at one per microsecond) and then met by the very same number.

#![allow(unsafe_code)]

use super::SignalError;
use super::registration::Registration;
use crate::latch::Latch;
use crate::sync::{Arc, AtomicU64, Ordering, UnsafeCell};

const PIN: u64 = 1;
const PINS: u64 = (1 << 21) - 1;
/// More pins than threads and queued operations can ever hold honestly: pins leaked with `mem::forget` must not run over
/// into the flags. Half of the field, so that a few thousand threads may overshoot at once.
const PINS_LIMIT: u64 = 1 << 20;
const ACTIVE: u64 = 1 << 21;
const CLOSED: u64 = 1 << 22;
const OWNED: u64 = 1 << 23;
const FLAGS: u64 = ACTIVE | CLOSED | OWNED;
const GENERATION: u64 = 1 << 24;

/// Which registration of a slot is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Generation(pub(super) u64);

/// 40 bits.
pub(super) const GENERATION_BITS: u32 = 40;

fn generation_of(word: u64) -> Generation {
    Generation(word / GENERATION)
}

/// See the module.
pub(super) struct Slot {
    word: AtomicU64,
    content: UnsafeCell<Option<Registration>>,
}

// SAFETY: `content` is reached only under the rules of the module head: exclusively by the owner (I1), shared by holders
// of good pins and by the one who will clear ACTIVE (I2). What the shared readers get at, `PeerFd` and `Arc<Latch>`, is
// Sync; the `Release` in it is Send and is only moved out, by the owner.
unsafe impl Sync for Slot {}
// SAFETY: a `Registration` is Send, the word is plain data.
unsafe impl Send for Slot {}

impl Slot {
    pub(super) fn new() -> Slot {
        Slot {
            word: AtomicU64::new(CLOSED),
            content: UnsafeCell::new(None),
        }
    }

    /// Empty → Owned → Active. Gives the registration back if the slot is taken.
    pub(super) fn install(&self, registration: Registration) -> Result<Generation, Registration> {
        let mut word = self.word.load(Ordering::Relaxed);
        let generation = loop {
            if word & FLAGS != CLOSED {
                return Err(registration);
            }
            // Adding to the topmost field wraps within the word; strays in the pin field stay.
            let claimed = word.wrapping_add(GENERATION) | OWNED;
            // Acquire: pairs with the Release at the end of `finalize`.
            match self
                .word
                .compare_exchange(word, claimed, Ordering::Acquire, Ordering::Relaxed)
            {
                Ok(_) => break generation_of(claimed),
                Err(now) => word = now,
            }
        };
        self.content.with_mut(|content| {
            // SAFETY: I1, this thread set OWNED; nobody else touches the content until `activate` below.
            unsafe { *content = Some(registration) }
        });
        // activate. Relaxed: the registration is published by the exchange of `cur`, which comes after.
        self.word
            .fetch_xor(CLOSED | OWNED | ACTIVE, Ordering::Relaxed);
        Ok(generation)
    }

    /// A pin on that registration, if it is still attached.
    #[inline]
    pub(super) fn pin(&self, generation: Generation) -> Result<Pinned<'_>, Missed> {
        // AcqRel: Acquire pairs with `deactivate` (the new `cur`); Release pairs with
        // the Acquire in `deactivate` (the used ring).
        let before = self.word.fetch_add(PIN, Ordering::AcqRel);
        if before & ACTIVE == 0 || generation_of(before) != generation {
            return Err(Missed::Gone(self.unpin()));
        }
        let pinned = Pinned { slot: self };
        if before & PINS < PINS_LIMIT {
            Ok(pinned)
        } else {
            Err(Missed::Overrun)
        }
    }

    /// Gives a pin back; with the registration if this was the last one of a detached registration.
    #[inline]
    fn unpin(&self) -> Option<Registration> {
        // Release: pairs with the Acquire in `finalize`.
        let before = self.word.fetch_sub(PIN, Ordering::Release);
        if before & FLAGS == 0 && before & PINS == PIN {
            self.finalize(generation_of(before))
        } else {
            None
        }
    }

    /// Active → Draining, and on if nobody is inside. To be called once, by whoever took the registration out of `cur`: that
    /// is who owns the decoupling.
    pub(super) fn deactivate(&self, generation: Generation) -> (Arc<Latch>, Option<Registration>) {
        let latch = self.content.with(|content| {
            // SAFETY: I2, ACTIVE of this generation is still set and only this thread may clear it.
            unsafe { &*content }
                .as_ref()
                .map(|registration| registration.latch().clone())
        });
        // AcqRel: Release pairs with the Acquire in `pin` (who fails there finds the new `cur`); Acquire pairs with the
        // Release in `pin` (what signallers stored before).
        let before = self.word.fetch_and(!ACTIVE, Ordering::AcqRel);
        debug_assert!(
            before & FLAGS == ACTIVE && generation_of(before) == generation,
            "not the owner of the decoupling"
        );
        let last = if before & PINS == 0 {
            self.finalize(generation)
        } else {
            None
        };
        (latch.unwrap_or_else(Latch::new), last)
    }

    /// Draining with no pins → Owned → Empty, for whoever wins. None: somebody else won, or a pin is there and its unpin
    /// will come here again.
    #[cold]
    fn finalize(&self, generation: Generation) -> Option<Registration> {
        let draining = generation.0.wrapping_mul(GENERATION);
        // Acquire: pairs with the Release in every `unpin`.
        self.word
            .compare_exchange(
                draining,
                draining | CLOSED | OWNED,
                Ordering::Acquire,
                Ordering::Relaxed,
            )
            .ok()?;
        let registration = self.content.with_mut(|content| {
            // SAFETY: I1, the exchange made this thread the owner; by I2 nobody holds a good pin.
            unsafe { (*content).take() }
        });
        // Release: pairs with the Acquire in `install`.
        self.word.fetch_xor(OWNED, Ordering::Release);
        registration
    }
}

/// Why there is no good pin.
pub(super) enum Missed {
    /// The registration is no longer attached: look at `cur` again. Carries what fell to this thread to bring to its end: its
    /// stray pin may have been the last one out.
    Gone(Option<Registration>),
    /// Pins were leaked by the hundred thousand.
    Overrun,
}

/// A good pin: the registration stays while this lives. Dropping it is the unpin, and brings the registration to its end if
/// this was the last.
pub(super) struct Pinned<'a> {
    slot: &'a Slot,
}

impl Pinned<'_> {
    #[inline]
    fn with<R>(&self, f: impl FnOnce(&Registration) -> R) -> Option<R> {
        self.slot.content.with(|content| {
            // SAFETY: I2, this is a good pin.
            unsafe { &*content }.as_ref().map(f)
        })
    }

    /// Writes the descriptor.
    #[inline]
    pub(super) fn signal(&self) -> Result<(), SignalError> {
        self.with(|registration| registration.fd().signal())
            .unwrap_or(Err(SignalError::Detached))
    }

    /// The descriptor's number, good while this lives.
    pub(super) fn number(&self) -> i32 {
        self.with(|registration| registration.fd().number())
            .unwrap_or(-1)
    }

    pub(super) fn latch(&self) -> Option<Arc<Latch>> {
        self.with(|registration| registration.latch().clone())
    }
}

impl Drop for Pinned<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(registration) = self.slot.unpin() {
            registration.retire();
        }
    }
}
