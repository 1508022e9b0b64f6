//! The gate of one start of one ring: who may touch the ring, and when nobody does any more.
//!
//! # Contract
//!
//! - One worker passes through: [`RingGate::enter`], look at the ring, publish, [`Pass::leave`]. Everybody else may close,
//!   enable, disable and wait, at any time and from any thread.
//! - A gate is made for one start and closed once; there is no way back from closed. A new start makes a new gate, so
//!   whatever is late (a message in a mailbox, a completion) meets its own closed gate and no other.
//! - After a **drain** is done: no pass of this gate, ever: no store to the used ring or to guest memory (guarantee 7). It
//!   is done when no pass is inside and the last one stated that nothing is in flight.
//! - After an **abandon** is done: the same, at once when no pass is inside. Completions still to come find
//!   [`RingGate::enter`] closed; what they point into is owned by the requests, not by the gate (guarantee 8).
//! - `on_done` of every close runs exactly once, with no lock held, on the thread that made it true or came later.
//! - A drain ends as long as the worker keeps making passes for its completions; if it does not (it left, it panicked), an
//!   abandon always ends (guarantee 10).
//!
//! # States
//!
//! ```text
//!                     set_enabled
//!   Started(disabled) ◄─────────► Running
//!          │  close(Drain)           │
//!          ├────────────────► Draining ── leave(0), or at once if nothing is in flight and nobody inside ──► Done
//!          │ close(Abandon)          │ close(Abandon), or a pass lost                                          ▲
//!          └────────────────► Abandoned ── leave, or at once if nobody is inside ───────────────────────────┘
//! ```
//!
//! All of it, with the number of the pass and the requests in flight, is in one atomic word; `word` has the transitions
//! as pure functions, and each is applied with one compare-exchange. So all transitions of a gate are in one order, and
//! there is no pair of locations whose views could disagree, hence no fence. The compare-exchanges are AcqRel:
//!
//! - `leave`'s Release ↔ the Acquire of a later `close`, wait or `is_done`: stores to the ring happen before done.
//! - the Release of `set_enabled`, `close`, `barrier` ↔ `enter`'s Acquire: a pass that comes after sees what the session
//!   did before (a new memory table, R15); a pass that came before is inside, and the ticket waits for it.
//! - RMWs of others in between continue the release sequences.
//!
//! # Races
//!
//! **R10, completion × drain.** Draining lets passes in. The closer's transition and the leave that states nothing in flight
//! have an order: close last finds nobody inside and nothing in flight, and finishes; leave last finds DRAIN, and finishes.
//! The count is believed only when nobody is inside: it is a leave's statement, and only the worker changes it.
//!
//! **R11, completion after abandon.** `enter` fails in the same RMW that would have let it in.
//!
//! **R12, hang-up during drain.** Abandon is added to drain. One transition sets DONE; both callbacks are on one list
//! under the lock: a closer puts its own there *before* its transition, and who sees DONE afterwards takes the whole list.
//! So none is left behind and none runs twice. If the drain was done first, the abandon finds it so and changes nothing.
//!
//! **R13, start and stop reordered in the mailbox.** The stop closes the gate itself, not through the mailbox; a start that
//! comes later carries a closed gate, and the worker's first `enter` says so.
//!
//! **R14, disable × pop.** A pass may have asked [`Pass::may_pop`] before the disable and pop after it. The disable's
//! transition sees it INSIDE, and the ticket waits until *that* pass has left: the number of the pass tells it
//! from the next. (24 bits: a sleeper that misses 2^24 passes exactly waits for one more.)
//!
//! **R16, the worker panics inside.** The pass is dropped without `leave`. What is in flight is unknown, so nothing can be
//! drained: the gate is abandoned and done, and says so ([`RingGate::is_closed`] is Abandon).
//!
//! **A close or a wait from inside one's own pass.** `close` waits for nothing; the leave will finish. The waits know the
//! thread that is inside and say [`WouldDeadlock`].
//!
//! # Sleeping
//!
//! A waiter takes the lock, sets WAITERS in the word with the same RMW that shows it what to wait for, and gives the lock up only
//! by falling asleep. A leave that finds WAITERS takes the lock before it notifies: so the waiter is asleep by then. A
//! close that finishes the gate holds the lock anyway. Uncontended, a pass costs two compare-exchanges.

mod word;

use crate::call::WouldDeadlock;
use crate::here;
use crate::release::Release;
use crate::sync::{AtomicU64, AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, lock, wait};
use std::fmt;
use std::marker::PhantomData;
use word::Word;

/// See the [module](self).
pub struct RingGate {
    word: AtomicU64,
    /// The thread inside, or 0. Written by the worker only, and read only to be compared with the reader's own name: a thread
    /// always sees its own last store, and nobody else stores its name. So Relaxed is enough.
    worker: AtomicUsize,
    /// `on_done` of every close so far, until done.
    on_done: Mutex<Vec<Release>>,
    changed: Condvar,
}

/// How to close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// No more pops; completions still publish. Done when nothing is in flight.
    Drain,
    /// No store to the ring or to guest memory from "done" on. Done when no pass is inside.
    Abandon,
}

impl RingGate {
    /// A gate for one start. `enabled`: whether pops are allowed from the start.
    pub fn new(enabled: bool) -> RingGate {
        RingGate {
            word: AtomicU64::new(Word::new(enabled).0),
            worker: AtomicUsize::new(0),
            on_done: Mutex::new(Vec::new()),
            changed: Condvar::new(),
        }
    }

    /// Worker side: begins a pass over the ring. None once abandoned or done (and while a pass is inside: there is
    /// one worker, and a pass does not nest).
    #[inline]
    pub fn enter(&self) -> Option<Pass<'_>> {
        self.step(Word::enter)?;
        self.worker.store(here::thread(), Ordering::Relaxed);
        Some(Pass {
            gate: self,
            left: false,
            stays_here: PhantomData,
        })
    }

    /// Allows or forbids pops. The ticket of a forbiddance is done when no pass that may still pop by the old word is inside; the
    /// ticket of a permission at once (poke the worker then: kicks from before must not be lost).
    pub fn set_enabled(&self, on: bool) -> GateTicket<'_> {
        let ticket = self.ticket(|word| word.enable(on));
        if on {
            GateTicket {
                until: Until::Now,
                ..ticket
            }
        } else {
            ticket
        }
    }

    /// Done when no pass is inside that might have begun before this call: what the session changed before (a memory
    /// table), every pass from then on sees, and none uses what was there before.
    pub fn barrier(&self) -> GateTicket<'_> {
        self.ticket(|word| word)
    }

    /// Done when a close has taken full effect. Of a drain this waits for I/O; a session rather uses `on_done`.
    pub fn finished(&self) -> GateTicket<'_> {
        GateTicket {
            gate: self,
            until: Until::Done,
        }
    }

    /// Closes; waits for nothing. `on_done` runs exactly once when this close has taken full effect (drained, or no pass
    /// inside): before this returns if it has already, else on the worker, at the end of its pass.
    ///
    /// A second close with Abandon makes a drain an abandon, and both `on_done` run when it is done. A second Drain adds
    /// nothing but its `on_done`. Once done, `on_done` runs at once and nothing else changes.
    pub fn close(&self, mode: Close, on_done: Release) {
        let mut list = lock(&self.on_done);
        list.push(on_done);
        // After the push, under the lock: who sets DONE takes the list under the lock, and so takes this one too, unless
        // DONE was there before, and then the lines below do.
        if self.apply(|word| word.close(mode)).done() {
            self.finish(list);
        }
    }

    /// How it was closed, if it was. Abandon also if a pass was lost (the worker panicked in it).
    pub fn is_closed(&self) -> Option<Close> {
        self.look().closed()
    }

    /// Whether a close has taken full effect: everything any pass did happened before.
    pub fn is_done(&self) -> bool {
        self.look().done()
    }

    /// What the last pass stated to be in flight.
    pub fn in_flight(&self) -> u32 {
        u32::try_from(self.look().in_flight()).unwrap_or(u32::MAX)
    }

    fn look(&self) -> Word {
        // Acquire: pairs with `leave`'s Release.
        Word(self.word.load(Ordering::Acquire))
    }

    /// One transition, with the word before and after it. None, and no change, if it is not allowed.
    #[inline]
    fn step(&self, next: impl Fn(Word) -> Option<Word>) -> Option<(Word, Word)> {
        let mut before = Word(self.word.load(Ordering::Relaxed));
        loop {
            let after = next(before)?;
            // AcqRel: the pairs are named at the head of the module.
            match self
                .word
                .compare_exchange(before.0, after.0, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return Some((before, after)),
                Err(now) => before = Word(now),
            }
        }
    }

    /// A transition that is always allowed; the word after it.
    fn apply(&self, next: impl Fn(Word) -> Word) -> Word {
        self.step(|word| Some(next(word)))
            .map_or(Word(0), |(_, after)| after)
    }

    /// A transition, and a ticket for the pass it found inside.
    fn ticket(&self, next: impl Fn(Word) -> Word) -> GateTicket<'_> {
        let found = self.apply(next);
        GateTicket {
            gate: self,
            until: if found.inside() {
                Until::Left { pass: found.pass() }
            } else {
                Until::Now
            },
        }
    }

    /// The end of a pass.
    #[inline]
    fn end(&self, next: impl Fn(Word) -> Word) {
        // Before the transition: afterwards another thread may be the worker.
        self.worker.store(0, Ordering::Relaxed);
        if let Some((before, after)) = self.step(|word| Some(next(word)))
            && (before.waiters() || after.done())
        {
            self.wake(after);
        }
    }

    #[cold]
    fn wake(&self, after: Word) {
        // Whoever set WAITERS is asleep now, since the lock was free.
        let list = lock(&self.on_done);
        if after.done() {
            self.finish(list);
        } else {
            drop(list);
            self.changed.notify_all();
        }
    }

    /// Wakes the sleepers and runs the callbacks, all of them, without the lock.
    fn finish(&self, mut list: MutexGuard<'_, Vec<Release>>) {
        let all = std::mem::take(&mut *list);
        drop(list);
        self.changed.notify_all();
        all.into_iter().for_each(Release::fire);
    }
}

/// Waits for passes that were inside when it was made (microseconds, never I/O), or for the end of a close.
///
/// It may be dropped without waiting.
#[must_use = "a pass may still be inside: wait for it, or say that it does not matter by dropping this"]
pub struct GateTicket<'a> {
    gate: &'a RingGate,
    until: Until,
}

#[derive(Debug, Clone, Copy)]
enum Until {
    Now,
    Left { pass: u64 },
    Done,
}

impl Until {
    fn is_over(self, word: Word) -> bool {
        match self {
            Until::Now => true,
            Until::Left { pass } => !word.inside() || word.pass() != pass,
            Until::Done => word.done(),
        }
    }
}

impl GateTicket<'_> {
    /// Whether what it waits for has come.
    pub fn is_done(&self) -> bool {
        self.until.is_over(self.gate.look())
    }

    /// Sleeps until then. `WouldDeadlock` inside a pass of this gate on the same thread.
    pub fn wait(self) -> Result<(), WouldDeadlock> {
        if self.is_done() {
            return Ok(());
        }
        let here = here::thread();
        if here != 0 && self.gate.worker.load(Ordering::Relaxed) == here {
            return Err(WouldDeadlock);
        }
        let mut guard = lock(&self.gate.on_done);
        // Each round sets WAITERS again: a leave takes it away.
        while !self.until.is_over(self.gate.apply(Word::expect)) {
            guard = wait(&self.gate.changed, guard);
        }
        Ok(())
    }
}

impl fmt::Debug for GateTicket<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GateTicket")
            .field("done", &self.is_done())
            .finish()
    }
}

/// The right to touch the ring and guest memory, for one batch.
///
/// To be spent with [`Pass::leave`]. Dropped instead (by a panic), it abandons the gate: see R16 in the [module](self).
#[must_use = "dropping a pass without `leave` abandons the ring"]
pub struct Pass<'a> {
    gate: &'a RingGate,
    left: bool,
    stays_here: PhantomData<*const ()>,
}

impl Pass<'_> {
    /// Whether new requests may be taken: enabled, and not closing. To be asked at entry, and again between batches. A
    /// "yes" is good until the pass ends: whoever forbids it waits for that.
    #[inline]
    pub fn may_pop(&self) -> bool {
        // Relaxed: an old "yes" is as good as one got a moment earlier.
        Word(self.gate.word.load(Ordering::Relaxed)).may_pop()
    }

    /// Whether results are still wanted. False once abandoned: then leave soon, without publishing.
    #[inline]
    pub fn may_publish(&self) -> bool {
        // Relaxed: as above; the abandon is done only when this pass has left.
        Word(self.gate.word.load(Ordering::Relaxed)).may_publish()
    }

    /// Ends the pass and states how many requests the ring has in flight now; the last one out of a closed gate finishes
    /// it, and runs the `on_done`s before this returns.
    #[inline]
    pub fn leave(mut self, in_flight: u32) {
        self.left = true;
        self.gate.end(|word| word.leave(in_flight));
    }
}

impl Drop for Pass<'_> {
    #[inline]
    fn drop(&mut self) {
        if !self.left {
            self.gate.end(Word::lose);
        }
    }
}

impl fmt::Debug for Pass<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pass")
            .field("may_pop", &self.may_pop())
            .field("may_publish", &self.may_publish())
            .finish()
    }
}

impl fmt::Debug for RingGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.look();
        f.debug_struct("RingGate")
            .field("closed", &word.closed())
            .field("done", &word.done())
            .field("inside", &word.inside())
            .field("in_flight", &word.in_flight())
            .finish()
    }
}
