//! Which thread is this, and which registrations does it hold pinned?
//!
//! Only for telling a wait that could never end from one that will. Nothing on the signal path comes through here:
//! `CallCell::signal` runs no foreign code between pin and unpin, so it needs no book-keeping.

use crate::latch::Latch;
use crate::sync::thread_local;
use std::cell::RefCell;

thread_local! {
    /// Its address is the thread's name, and its content the registrations (by the address of their latch, which the pin
    /// keeps alive) that a `CallPin` of this thread holds. One entry per pin.
    static HELD: RefCell<Vec<usize>> = RefCell::default();
}

/// A value that is this thread's alone while it lives, and never 0. (0 if the thread is past destroying its locals.)
pub(crate) fn thread() -> usize {
    HELD.try_with(|held| std::ptr::from_ref(held) as usize)
        .unwrap_or(0)
}

fn name(latch: &Latch) -> usize {
    std::ptr::from_ref(latch) as usize
}

/// This thread pinned the registration once more.
pub(crate) fn hold(latch: &Latch) {
    let _ = HELD.try_with(|held| held.borrow_mut().push(name(latch)));
}

/// This thread gave back one pin.
pub(crate) fn let_go(latch: &Latch) {
    let _ = HELD.try_with(|held| {
        let mut held = held.borrow_mut();
        if let Some(at) = held.iter().rposition(|&one| one == name(latch)) {
            held.swap_remove(at);
        }
    });
}

/// Whether this thread holds a pin on the registration.
pub(crate) fn holds(latch: &Latch) -> bool {
    HELD.try_with(|held| held.borrow().contains(&name(latch)))
        .unwrap_or(false)
}
