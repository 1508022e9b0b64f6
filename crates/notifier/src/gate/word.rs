//! The gate's one word, and its transitions as pure functions.
//!
//! ```text
//!   63         32 31        8      7..6     5        4      3        2       1         0
//!  ┌─────────────┬───────────┬────────┬─────────┬──────┬─────────┬───────┬─────────┬────────┐
//!  │ in flight   │ pass: 24  │   —    │ WAITERS │ DONE │ ABANDON │ DRAIN │ ENABLED │ INSIDE │
//!  └─────────────┴───────────┴────────┴─────────┴──────┴─────────┴───────┴─────────┴────────┘
//! ```
//!
//! | state             | flags                                  |
//! |-------------------|----------------------------------------|
//! | Started, disabled | none of ENABLED DRAIN ABANDON DONE     |
//! | Running           | ENABLED                                |
//! | Draining          | DRAIN, and INSIDE or in flight > 0     |
//! | Abandoned         | ABANDON, and INSIDE                    |
//! | Done              | DONE (with DRAIN or ABANDON): final    |
//!
//! DONE enters with the very transition that makes it true, so exactly one transition of a gate sets it.

use super::Close;

const INSIDE: u64 = 1;
const ENABLED: u64 = 1 << 1;
const DRAIN: u64 = 1 << 2;
const ABANDON: u64 = 1 << 3;
const DONE: u64 = 1 << 4;
const WAITERS: u64 = 1 << 5;
const PASS: u64 = 1 << 8;
const PASS_MASK: u64 = 0xff_ffff << 8;
const IN_FLIGHT_SHIFT: u32 = 32;
const FLAGS: u64 = PASS - 1;

/// See the module.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Word(pub(super) u64);

impl Word {
    pub(super) fn new(enabled: bool) -> Word {
        Word(if enabled { ENABLED } else { 0 })
    }

    fn has(self, flags: u64) -> bool {
        self.0 & flags != 0
    }

    pub(super) fn inside(self) -> bool {
        self.has(INSIDE)
    }

    pub(super) fn done(self) -> bool {
        self.has(DONE)
    }

    pub(super) fn waiters(self) -> bool {
        self.has(WAITERS)
    }

    pub(super) fn may_pop(self) -> bool {
        self.0 & (ENABLED | DRAIN | ABANDON) == ENABLED
    }

    pub(super) fn may_publish(self) -> bool {
        !self.has(ABANDON)
    }

    pub(super) fn closed(self) -> Option<Close> {
        if self.has(ABANDON) {
            Some(Close::Abandon)
        } else {
            self.has(DRAIN).then_some(Close::Drain)
        }
    }

    /// Which pass is inside, or comes next: raised by every leave.
    pub(super) fn pass(self) -> u64 {
        self.0 & PASS_MASK
    }

    pub(super) fn in_flight(self) -> u64 {
        self.0 >> IN_FLIGHT_SHIFT
    }

    /// None: nothing may touch the ring any more, or a pass is inside already.
    pub(super) fn enter(self) -> Option<Word> {
        (!self.has(ABANDON | DONE | INSIDE)).then_some(Word(self.0 | INSIDE))
    }

    /// Those who sleep are woken with it, so WAITERS goes.
    pub(super) fn leave(self, in_flight: u32) -> Word {
        let flags = self.0 & FLAGS & !(INSIDE | WAITERS);
        let pass = self.0.wrapping_add(PASS) & PASS_MASK;
        Word(u64::from(in_flight) << IN_FLIGHT_SHIFT | pass | flags).settle()
    }

    /// A pass that ended without a word about what is in flight: nothing can be drained any more.
    pub(super) fn lose(self) -> Word {
        let in_flight = u32::try_from(self.in_flight()).unwrap_or(u32::MAX);
        Word(self.0 | ABANDON).leave(in_flight)
    }

    pub(super) fn enable(self, on: bool) -> Word {
        Word(if on {
            self.0 | ENABLED
        } else {
            self.0 & !ENABLED
        })
    }

    /// A drain may become an abandon, not the other way round; what is done stays as it ended.
    pub(super) fn close(self, mode: Close) -> Word {
        match (self.done(), mode) {
            (true, _) => self,
            (false, Close::Drain) => Word(self.0 | DRAIN).settle(),
            (false, Close::Abandon) => Word(self.0 | ABANDON).settle(),
        }
    }

    /// Somebody will sleep, holding the gate's lock until asleep.
    pub(super) fn expect(self) -> Word {
        Word(self.0 | WAITERS)
    }

    /// Done: closed, nobody inside, and drained or abandoned. While somebody is inside, the count in flight is old.
    fn settle(self) -> Word {
        let ended = self.has(ABANDON) || (self.has(DRAIN) && self.in_flight() == 0);
        Word(if ended && !self.inside() {
            self.0 | DONE
        } else {
            self.0
        })
    }
}
