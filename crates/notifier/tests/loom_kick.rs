//! The kick source between three parties: the session that wants a descriptor back, the reactor that owns the source, and a
//! kernel that completes polls whenever it likes and comes upon descriptors by their number.
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

use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use outboard_notifier::{KickEvent, KickSource, KickTicket, PeerFd, Release, Witness};
use std::collections::VecDeque;

/// What the reactor submits.
enum Entry {
    Poll { file: Witness, token: u32 },
    Cancel { token: u32 },
}

/// token, result, F_MORE
type Completion = (u32, i32, bool);

/// A queue between two threads.
struct Queue<T> {
    items: Mutex<VecDeque<T>>,
    changed: Condvar,
}

impl<T> Queue<T> {
    fn new() -> Arc<Queue<T>> {
        Arc::new(Queue {
            items: Mutex::new(VecDeque::new()),
            changed: Condvar::new(),
        })
    }

    fn put(&self, item: T) {
        self.items.lock().unwrap().push_back(item);
        self.changed.notify_all();
    }

    fn take(&self) -> T {
        let mut items = self.items.lock().unwrap();
        loop {
            match items.pop_front() {
                Some(item) => return item,
                None => items = self.changed.wait(items).unwrap(),
            }
        }
    }
}

fn bounded(preemptions: usize) -> loom::model::Builder {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder
}

const POLLIN: i32 = 1;
const ECANCELED: i32 = 125;

/// Polls that fire once each as soon as they are submitted, and end when they are cancelled.
fn kernel(submissions: &Queue<Entry>, completions: &Queue<Completion>, mut cancels: usize) {
    let mut polls: Vec<(Witness, u32)> = Vec::new();
    while cancels > 0 {
        match submissions.take() {
            Entry::Poll { file, token } => {
                file.touch();
                completions.put((token, POLLIN, true));
                polls.push((file, token));
            }
            Entry::Cancel { token } => {
                for (file, token) in polls.extract_if(.., |(_, polled)| *polled == token) {
                    file.touch();
                    completions.put((token, -ECANCELED, false));
                }
                cancels -= 1;
            }
        }
    }
}

fn watch(submissions: &Queue<Entry>, number: i32) -> (KickSource, Witness, u32) {
    let (fd, witness) = PeerFd::model(number);
    let mut source = KickSource::new(fd, Release::none());
    let mut armed = 0;
    let queued = source.arm(|fd, token| {
        assert_eq!(fd, number);
        armed = token;
        submissions.put(Entry::Poll {
            file: witness.clone(),
            token,
        });
        Ok::<(), ()>(())
    });
    assert_eq!(queued, Ok(true));
    (source, witness, armed)
}

fn unwatch(submissions: &Queue<Entry>, source: &mut KickSource) -> KickTicket {
    let detaching = source.begin_detach();
    if let Some(token) = detaching.cancel {
        submissions.put(Entry::Cancel { token });
    }
    detaching.ticket
}

/// R6, R7: a kick races with the cancel: the descriptor is closed after the kernel's last use of its number, nothing is reported
/// after the detach began, and the session's wait ends after the close. Preemption bound 2.
#[test]
fn r7_kick_completion_x_cancel() {
    bounded(2).check(|| {
        let (submissions, completions, tickets) = (Queue::new(), Queue::new(), Queue::new());
        let (mut source, witness, token) = watch(&submissions, 7);
        let kernel = {
            let (submissions, completions) = (submissions.clone(), completions.clone());
            thread::spawn(move || kernel(&submissions, &completions, 1))
        };
        let session = {
            let (tickets, witness) = (tickets.clone(), witness.clone());
            thread::spawn(move || {
                let ticket: KickTicket = tickets.take();
                ticket.wait().expect("the session does not own the source");
                witness.assert_closed();
            })
        };
        tickets.put(unwatch(&submissions, &mut source));
        loop {
            let (of, result, more) = completions.take();
            assert_eq!(of, token);
            match source.completion(of, result, more) {
                KickEvent::Stale => assert!(more),
                KickEvent::Closed => break assert!(!more),
                other => panic!("{other:?} after the detach began"),
            }
        }
        kernel.join().unwrap();
        session.join().unwrap();
    });
}

/// R8, R9: the kick is replaced while armed, and the owner mixes nothing up: completions of the old generation mean nothing to
/// the new source, whose own kick is reported. Preemption bound 2.
#[test]
fn r8_r9_kick_replaced_while_armed() {
    bounded(2).check(|| {
        let (submissions, completions) = (Queue::new(), Queue::new());
        let (mut old, old_witness, old_token) = watch(&submissions, 7);
        let kernel = {
            let (submissions, completions) = (submissions.clone(), completions.clone());
            thread::spawn(move || kernel(&submissions, &completions, 2))
        };
        let ticket = unwatch(&submissions, &mut old);
        let (mut new, new_witness, new_token) = watch(&submissions, 8);
        assert_ne!(old_token, new_token);
        let mut fired = 0;
        while !(old.is_closed() && fired == 1) {
            let (token, result, more) = completions.take();
            // The owner asks both, as if they shared one place in its table.
            match (
                old.completion(token, result, more),
                new.completion(token, result, more),
            ) {
                (KickEvent::Stale, KickEvent::Fire) => fired += 1,
                (KickEvent::Stale, KickEvent::Stale) => assert_eq!(token, old_token),
                (KickEvent::Closed, KickEvent::Stale) => assert_eq!(old_witness.closes(), 1),
                other => panic!("{other:?}"),
            }
        }
        assert!(ticket.is_done());
        assert_eq!((fired, new_witness.closes()), (1, 0));
        let ticket = unwatch(&submissions, &mut new);
        while !new.is_closed() {
            let (token, result, more) = completions.take();
            let _ = new.completion(token, result, more);
        }
        assert!(ticket.is_done());
        kernel.join().unwrap();
    });
}

/// The owner goes with a poll outstanding (its ring is closed first): the session's wait ends all the same.
#[test]
fn owner_gone_x_wait() {
    loom::model(|| {
        let submissions = Queue::new();
        let (mut source, witness, _) = watch(&submissions, 7);
        let ticket = unwatch(&submissions, &mut source);
        let seen = witness.clone();
        let session = thread::spawn(move || {
            ticket.wait().expect("the session does not own the source");
            seen.assert_closed();
        });
        drop(source);
        session.join().unwrap();
        witness.assert_closed();
    });
}
