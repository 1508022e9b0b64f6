//! Every interleaving, and every reordering that the memory model allows, of the two handshakes.
//!
//! The device's side is the very file that runs on rings; the driver's is written out here as the specification describes it.
//!
//! In a process of its own because loom's coroutines bring a SIGBUS handler, which displaces the guard that unit tests exercise.
#![allow(clippy::unwrap_used)]
#[path = "../src/queue/handshake.rs"]
mod handshake;

use handshake::{Call, Kick, Word, passed};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU16, Ordering, fence};
use std::marker::PhantomData;

trait Fence {
    fn fence(order: Ordering);
}
struct Full;
impl Fence for Full {
    fn fence(order: Ordering) {
        fence(order);
    }
}
/// The mutant: what the proof says if the device had no fence.
struct Missing;
impl Fence for Missing {
    fn fence(_: Ordering) {}
}

struct Cell<F>(AtomicU16, PhantomData<F>);
impl<F: Fence> Word for Cell<F> {
    fn load(&self, order: Ordering) -> u16 {
        self.0.load(order)
    }
    fn store(&self, value: u16, order: Ordering) {
        self.0.store(value, order);
    }
    fn fence(order: Ordering) {
        F::fence(order);
    }
}

/// The four words of the handshakes; `event` serves as used_event or avail_event, `flags` as either side's flags.
struct Words<F> {
    avail_idx: Cell<F>,
    used_idx: Cell<F>,
    event: Cell<F>,
    flags: Cell<F>,
}

/// Indices start short of their wrap.
const START: u16 = 0xffff;
const END: u16 = START.wrapping_add(2);

impl<F: Fence> Words<F> {
    fn new(event: u16, flags: u16) -> Arc<Words<F>> {
        let cell = |value| Cell(AtomicU16::new(value), PhantomData);
        Arc::new(Words {
            avail_idx: cell(START),
            used_idx: cell(START),
            event: cell(event),
            flags: cell(flags),
        })
    }
}

/// The device publishes two elements one by one; the driver goes to sleep at any time. A driver that sleeps with elements left was
/// called for one of them.
fn calls<F: Fence + Send + Sync + 'static>(event_idx: bool) {
    loom::model(move || {
        let words = Words::<F>::new(START.wrapping_sub(9), 1);
        let device = {
            let words = words.clone();
            loom::thread::spawn(move || {
                let mut called_up_to = START;
                for old in [START, START.wrapping_add(1)] {
                    let new = old.wrapping_add(1);
                    let call = if event_idx {
                        Call::Event(&words.event)
                    } else {
                        Call::Flags(&words.flags)
                    };
                    if handshake::publish(&words.used_idx, old, new, call) {
                        called_up_to = new;
                    }
                }
                called_up_to
            })
        };
        let mut taken = START;
        // Each round takes at least one element, so there are at most three.
        loop {
            if event_idx {
                words.event.0.store(taken, Ordering::Relaxed);
            } else {
                words.flags.0.store(0, Ordering::Relaxed);
            }
            fence(Ordering::SeqCst);
            let seen = words.used_idx.0.load(Ordering::Acquire);
            if seen == taken {
                break;
            }
            if !event_idx {
                words.flags.0.store(1, Ordering::Relaxed);
            }
            taken = seen;
        }
        let called_up_to = device.join().unwrap();
        let left = END.wrapping_sub(taken);
        let uncalled = END.wrapping_sub(called_up_to);
        assert!(
            left == 0 || uncalled < left,
            "asleep with {left} elements left and no call for any"
        );
    });
}

/// The driver makes two requests available one by one; the device goes to sleep at any time. A device that sleeps with requests left was
/// kicked for one of them.
fn kicks<F: Fence + Send + Sync + 'static>(event_idx: bool) {
    loom::model(move || {
        let words = Words::<F>::new(START.wrapping_sub(9), 1);
        let driver = {
            let words = words.clone();
            loom::thread::spawn(move || {
                let mut kicked_up_to = START;
                for old in [START, START.wrapping_add(1)] {
                    let new = old.wrapping_add(1);
                    words.avail_idx.0.store(new, Ordering::Release);
                    fence(Ordering::SeqCst);
                    let wanted = if event_idx {
                        passed(words.event.0.load(Ordering::Relaxed), old, new)
                    } else {
                        words.flags.0.load(Ordering::Relaxed) == 0
                    };
                    if wanted {
                        kicked_up_to = new;
                    }
                }
                kicked_up_to
            })
        };
        let kick = || {
            if event_idx {
                Kick::Event(&words.event)
            } else {
                Kick::Flags(&words.flags)
            }
        };
        let mut popped = START;
        while handshake::arm(kick(), popped, &words.avail_idx) {
            handshake::mute(kick());
            // Coherence: at least what `arm` saw.
            popped = Word::load(&words.avail_idx, Ordering::Acquire);
        }
        let kicked_up_to = driver.join().unwrap();
        let left = END.wrapping_sub(popped);
        let unkicked = END.wrapping_sub(kicked_up_to);
        assert!(
            left == 0 || unkicked < left,
            "asleep with {left} requests left and no kick for any"
        );
    });
}

#[test]
fn no_call_is_lost_with_event_idx() {
    calls::<Full>(true);
}

#[test]
fn no_call_is_lost_with_flags() {
    calls::<Full>(false);
}

#[test]
fn no_kick_is_lost_with_event_idx() {
    kicks::<Full>(true);
}

#[test]
fn no_kick_is_lost_with_flags() {
    kicks::<Full>(false);
}

#[test]
#[should_panic(expected = "no call for any")]
fn without_the_fence_a_call_is_lost_with_event_idx() {
    calls::<Missing>(true);
}

#[test]
#[should_panic(expected = "no call for any")]
fn without_the_fence_a_call_is_lost_with_flags() {
    calls::<Missing>(false);
}

#[test]
#[should_panic(expected = "no kick for any")]
fn without_the_fence_a_kick_is_lost_with_event_idx() {
    kicks::<Missing>(true);
}

#[test]
#[should_panic(expected = "no kick for any")]
fn without_the_fence_a_kick_is_lost_with_flags() {
    kicks::<Missing>(false);
}

/// Against its definition, for every event and batch around the wrap.
#[test]
fn an_event_is_passed_exactly_when_its_entry_is_in_the_batch() {
    for old in [0u16, 1, 0x7fff, 0x8000, 0xfffe, 0xffff] {
        for count in [0u16, 1, 2, 3, 255, 256, 0x7fff, 0x8000] {
            let new = old.wrapping_add(count);
            for event in 0..=u16::MAX {
                // Entries old, old + 1, …, new - 1: is the event one of them?
                let inside = event.wrapping_sub(old) < count;
                assert_eq!(
                    passed(event, old, new),
                    inside,
                    "event {event} old {old} new {new}"
                );
            }
        }
    }
}
