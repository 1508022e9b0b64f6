//! Every interleaving of the cell's races, on model descriptors that fail the run when they are written after their close,
//! closed twice, or closed without every write being ordered before.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p outboard-notifier --release --test 'loom_*'`
//!
//! Exhaustive, unless a scenario states a preemption bound.
#![cfg(loom)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use loom::sync::Arc;
use loom::thread;
use outboard_notifier::{CallCell, PeerFd, Release, SignalError, Witness, WouldDeadlock};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Counts for assertions: std's, which loom does not explore.
type Count = std::sync::Arc<AtomicUsize>;

/// A cell that recycles its slots as soon as it can, with descriptor 1 attached.
fn cell_with_one(slots: usize) -> (Arc<CallCell>, Witness, Count) {
    let cell = Arc::new(CallCell::with_slots(slots));
    let (fd, witness) = PeerFd::model(1);
    let (release, ran) = counted();
    assert!(
        cell.swap(Some(fd), release).is_done(),
        "nothing was attached before"
    );
    (cell, witness, ran)
}

/// A release that counts its runs.
fn counted() -> (Release, Count) {
    let ran = Count::default();
    let count = ran.clone();
    (Release::run(move || _ = count.fetch_add(1, Relaxed)), ran)
}

fn bounded(preemptions: usize) -> loom::model::Builder {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder
}

/// R1: a signal beside a swap reaches the old descriptor or the new one, once, and the old one is closed when the ticket is done.
#[test]
fn r1_signal_x_swap_reaches_old_or_new() {
    loom::model(|| {
        let (cell, old, _) = cell_with_one(2);
        let (fd, new) = PeerFd::model(2);
        let signaller = {
            let cell = cell.clone();
            thread::spawn(move || {
                cell.signal()
                    .expect("something is attached at every moment")
            })
        };
        cell.swap(Some(fd), Release::none())
            .wait()
            .expect("no pin is held");
        old.assert_closed();
        signaller.join().unwrap();
        assert_eq!(old.writes() + new.writes(), 1);
        assert_eq!(new.closes(), 0);
    });
}

/// The worker stores to the used ring and signals; the session swaps and interrupts once. True if an interrupt follows the store.
fn an_interrupt_follows_the_store(cell: Arc<CallCell>) -> bool {
    let used = Arc::new(loom::sync::atomic::AtomicUsize::new(0));
    let (fd, new) = PeerFd::model(2);
    let worker = {
        let (cell, used) = (cell.clone(), used.clone());
        thread::spawn(move || {
            used.store(1, Relaxed);
            cell.signal().is_ok()
        })
    };
    drop(cell.swap(Some(fd), Release::none()));
    // The session's interrupt on the new descriptor: here the guest looks at the used ring.
    let guest_saw = used.load(Relaxed);
    worker.join().unwrap();
    // What was written to the old descriptor the kernel may have discarded.
    guest_saw == 1 || new.writes() == 1
}

/// R1: no interrupt is lost across a swap from one descriptor to another (guarantee 5).
#[test]
fn r1_signal_x_swap_loses_no_interrupt() {
    loom::model(|| {
        let (cell, ..) = cell_with_one(2);
        assert!(an_interrupt_follows_the_store(cell));
    });
}

/// R1: nor when nothing was attached before: store and look on both sides, held together by fences.
#[test]
fn r1_signal_x_first_attach_loses_no_interrupt() {
    loom::model(|| {
        assert!(an_interrupt_follows_the_store(Arc::new(
            CallCell::with_slots(2)
        )))
    });
}

/// R2: two swaps and the drop of the cell: every descriptor is closed once and every release runs once. Preemption bound 3.
#[test]
fn r2_swap_x_swap_x_drop_closes_each_once() {
    bounded(3).check(|| {
        let (cell, first, first_ran) = cell_with_one(3);
        let swappers: Vec<_> = [2, 3]
            .into_iter()
            .map(|number| {
                let (fd, witness) = PeerFd::model(number);
                let (release, ran) = counted();
                let cell = cell.clone();
                (
                    thread::spawn(move || _ = cell.swap(Some(fd), release).wait()),
                    witness,
                    ran,
                )
            })
            .collect();
        drop(cell);
        let mut gone = vec![(first, first_ran)];
        for (thread, witness, ran) in swappers {
            thread.join().unwrap();
            gone.push((witness, ran));
        }
        for (witness, ran) in gone {
            assert_eq!((witness.closes(), ran.load(Relaxed)), (1, 1));
        }
    });
}

/// R2: a third descriptor in a cell of two slots is refused: closed, its release run, the old one gone all the same. Preemption bound 3.
#[test]
fn r2_swap_x_swap_without_a_free_slot_is_refused() {
    bounded(3).check(|| {
        let (cell, first, _) = cell_with_one(2);
        let other = {
            let (fd, witness) = PeerFd::model(2);
            let cell = cell.clone();
            thread::spawn(move || {
                let ticket = cell.swap(Some(fd), Release::none());
                let refused = ticket.refused();
                ticket.wait().expect("no pin is held");
                (refused, witness)
            })
        };
        let (fd, mine) = PeerFd::model(3);
        let (release, ran) = counted();
        let ticket = cell.swap(Some(fd), release);
        let refused = ticket.refused();
        if refused {
            assert_eq!((mine.closes(), ran.load(Relaxed)), (1, 1));
        }
        ticket.wait().expect("no pin is held");
        let (other_refused, other) = other.join().unwrap();
        assert!(
            !(refused && other_refused),
            "one of them found the second slot"
        );
        assert_eq!(first.closes(), 1);
        assert_eq!(
            mine.closes() + other.closes(),
            u64::from(!cell.is_attached()) + 1
        );
    });
}

/// R3: last unpin × detach: one of them closes, the other does not, and the release runs once, after the close.
#[test]
fn r3_last_unpin_x_detach_winner() {
    loom::model(|| {
        let cell = Arc::new(CallCell::with_slots(1));
        let (fd, witness) = PeerFd::model(1);
        let ran = Count::default();
        let (count, closed) = (ran.clone(), witness.clone());
        drop(cell.swap(
            Some(fd),
            Release::run(move || {
                closed.assert_closed();
                count.fetch_add(1, Relaxed);
            }),
        ));
        let signaller = {
            let cell = cell.clone();
            thread::spawn(move || cell.signal())
        };
        cell.swap(None, Release::none())
            .wait()
            .expect("no pin is held");
        witness.assert_closed();
        match signaller.join().unwrap() {
            Ok(()) => assert_eq!(witness.writes(), 1),
            Err(SignalError::Detached) => assert_eq!(witness.writes(), 0),
            Err(error) => panic!("{error}"),
        }
        assert_eq!(ran.load(Relaxed), 1);
    });
}

/// R3, the whole cast: two signallers, a swapper and a dropper. Preemption bound 2.
#[test]
fn r3_two_signallers_x_swapper_x_dropper() {
    bounded(2).check(|| {
        let (cell, old, old_ran) = cell_with_one(2);
        let (fd, new) = PeerFd::model(2);
        let (release, new_ran) = counted();
        let signallers: Vec<_> = (0..2)
            .map(|_| {
                let cell = cell.clone();
                thread::spawn(move || cell.signal().expect("attached until everybody has left"))
            })
            .collect();
        let swapper = {
            let cell = cell.clone();
            thread::spawn(move || _ = cell.swap(Some(fd), release).wait())
        };
        drop(cell);
        signallers
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        swapper.join().unwrap();
        assert_eq!(old.writes() + new.writes(), 2);
        assert_eq!((old.closes(), old_ran.load(Relaxed)), (1, 1));
        assert_eq!((new.closes(), new_ran.load(Relaxed)), (1, 1));
    });
}

/// R3: a pin held over the detach keeps the descriptor; the kernel's late write finds it open; then the pin's end closes it.
#[test]
fn r3_pin_outlives_the_detach() {
    loom::model(|| {
        let (cell, witness, ran) = cell_with_one(1);
        // A pin that was given back is no reason to refuse the wait below.
        drop(cell.pin().expect("attached"));
        let writer = {
            let (cell, kernel) = (cell.clone(), witness.clone());
            thread::spawn(move || {
                if let Some(pin) = cell.pin() {
                    assert_eq!(pin.raw_fd(), 1);
                    kernel.touch();
                    drop(pin);
                }
            })
        };
        cell.swap(None, Release::none())
            .wait()
            .expect("this thread holds no pin");
        witness.assert_closed();
        writer.join().unwrap();
        assert_eq!(ran.load(Relaxed), 1);
    });
}

/// R4: a callback detaches what took its own place, and waits for it, beside a signal. Preemption bound 3.
#[test]
fn r4_callback_detaches_its_sibling() {
    bounded(3).check(|| {
        let cell = Arc::new(CallCell::with_slots(2));
        let (one, first) = PeerFd::model(1);
        let (two, second) = PeerFd::model(2);
        let (own, waited) = (cell.clone(), Count::default());
        let done = waited.clone();
        drop(cell.swap(
            Some(one),
            Release::run(move || {
                own.swap(None, Release::none())
                    .wait()
                    .expect("no pin is held in a callback");
                done.fetch_add(1, Relaxed);
            }),
        ));
        let signaller = {
            let cell = cell.clone();
            thread::spawn(move || _ = cell.signal())
        };
        let _ = cell.swap(Some(two), Release::none()).wait();
        signaller.join().unwrap();
        assert_eq!(
            (first.closes(), second.closes(), waited.load(Relaxed)),
            (1, 1, 1)
        );
        assert!(!cell.is_attached());
    });
}

/// R4: who waits for what it has pinned itself is told so; another thread's wait ends with the pin.
#[test]
fn r4_wait_for_ones_own_pin_would_deadlock() {
    loom::model(|| {
        let (cell, witness, _) = cell_with_one(1);
        let pin = cell.pin().expect("attached");
        let ticket = cell.swap(None, Release::none());
        let other = thread::spawn(move || _ = ticket.wait().expect("that thread holds no pin"));
        // Detaching again gives a ticket for nothing; the one that matters is the other thread's. So pin and wait here too:
        let (fd, _) = PeerFd::model(2);
        assert!(
            cell.swap(Some(fd), Release::none()).refused(),
            "the only slot is pinned"
        );
        drop(pin);
        other.join().unwrap();
        assert_eq!(witness.closes(), 1);

        let (fd, again) = PeerFd::model(3);
        drop(cell.swap(Some(fd), Release::none()));
        let pin = cell.pin().expect("attached");
        assert_eq!(cell.swap(None, Release::none()).wait(), Err(WouldDeadlock));
        assert_eq!(again.closes(), 0);
        drop(pin);
        assert_eq!(again.closes(), 1);
    });
}

/// R5: the slot is recycled between the load and the pin: a signal never reaches a descriptor that is not attached yet. Preemption bound 4.
#[test]
fn r5_slot_recycled_before_the_pin() {
    bounded(4).check(|| {
        let (cell, old, _) = cell_with_one(1);
        let (fd, new) = PeerFd::model(2);
        let seen = new.clone();
        let signaller = {
            let cell = cell.clone();
            thread::spawn(move || {
                if cell.signal().is_ok() && seen.writes() == 1 {
                    assert!(cell.is_attached(), "written before it was attached");
                }
            })
        };
        let _ = cell.swap(None, Release::none()).wait();
        // The stray pin of a late signaller does not keep the slot from being used.
        assert!(!cell.swap(Some(fd), Release::none()).refused());
        signaller.join().unwrap();
        assert_eq!((old.closes(), new.closes()), (1, 0));
        assert!(old.writes() + new.writes() <= 1);
    });
}

/// R5: a stray pin on a recycled slot that is detached in its turn: whoever is last brings it to its end. Preemption bound 3.
#[test]
fn r5_stray_pin_x_second_detach() {
    bounded(3).check(|| {
        let (cell, old, _) = cell_with_one(1);
        let signaller = {
            let cell = cell.clone();
            thread::spawn(move || _ = cell.signal())
        };
        let _ = cell.swap(None, Release::none()).wait();
        let (fd, new) = PeerFd::model(2);
        let (release, ran) = counted();
        drop(cell.swap(Some(fd), release));
        let _ = cell.swap(None, Release::none()).wait();
        assert_eq!((old.closes(), new.closes()), (1, 1));
        signaller.join().unwrap();
        assert_eq!(ran.load(Relaxed), 1);
    });
}

/// `swap(None, release)` and `on_done` run theirs once, after the close, wherever the close happens.
#[test]
fn on_done_runs_once_after_the_close() {
    loom::model(|| {
        let (cell, witness, own) = cell_with_one(1);
        let signaller = {
            let cell = cell.clone();
            thread::spawn(move || _ = cell.signal())
        };
        let ran = Count::default();
        let (count, closed) = (ran.clone(), witness.clone());
        drop(cell.swap(
            None,
            Release::run(move || {
                closed.assert_closed();
                count.fetch_add(1, Relaxed);
            }),
        ));
        signaller.join().unwrap();
        assert_eq!((ran.load(Relaxed), own.load(Relaxed)), (1, 1));
    });
}
