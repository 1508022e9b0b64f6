//! Who wakes whom: the two handshakes by which driver and device suppress each other's notifications without losing one.
//!
//! Both have the shape of Dekker's algorithm. Each side writes one word and then reads the other's; a full fence between write and
//! read on *both* sides makes it impossible that both read the old value.
//!
//! | | the one that produces | the one that goes to sleep |
//! |-|-|-|
//! | **call** (we produce used elements, the driver sleeps) | store used.idx; fence; load used_event or avail.flags | store used_event or avail.flags; fence; load used.idx |
//! | **kick** (the driver makes requests available, we sleep) | store avail.idx; fence; load avail_event or used.flags | store avail_event or used.flags; fence; load avail.idx |
//!
//! So either the producer sees that it must notify, or the sleeper sees the new index and stays awake. The driver's fences are its
//! side of the specification (2.7.13.4.1, 2.7.14; `virtio_mb` in Linux' `virtqueue_kick_prepare` and `virtqueue_enable_cb`). Ours are here, and
//! nowhere else in the crate is a fence needed.
//!
//! The functions are generic over the word, so that the loom tests run the same lines that the ring runs on guest memory.
use std::sync::atomic::{AtomicU16, Ordering, fence};

/// A 16-bit little-endian field of the ring, shared with the driver.
pub(super) trait Word {
    fn load(&self, order: Ordering) -> u16;
    fn store(&self, value: u16, order: Ordering);
    fn fence(order: Ordering);
}

impl Word for AtomicU16 {
    #[inline(always)]
    fn load(&self, order: Ordering) -> u16 {
        u16::from_le(AtomicU16::load(self, order))
    }
    #[inline(always)]
    fn store(&self, value: u16, order: Ordering) {
        AtomicU16::store(self, value.to_le(), order);
    }
    #[inline(always)]
    fn fence(order: Ordering) {
        fence(order);
    }
}

/// 2.7.10: the index moved from `old` to `new`; did it pass the entry that the other side wants to hear of? All modulo 2^16;
/// right for any batch of at most 2^16 - 1, and a batch is never larger than the queue size.
#[inline]
pub(super) fn passed(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// What the driver said about calls.
pub(super) enum Call<'a, W> {
    /// VIRTIO_F_EVENT_IDX: avail.used_event.
    Event(&'a W),
    /// Otherwise avail.flags, of which bit 0 is VIRTQ_AVAIL_F_NO_INTERRUPT.
    Flags(&'a W),
}

/// Where we tell the driver about kicks.
pub(super) enum Kick<'a, W> {
    /// VIRTIO_F_EVENT_IDX: used.avail_event.
    Event(&'a W),
    /// Otherwise used.flags, of which bit 0 is VIRTQ_USED_F_NO_NOTIFY.
    Flags(&'a W),
}

/// Shows the driver the used elements from `old` to `new`; true if it wants a call for any of them.
#[inline]
pub(super) fn publish<W: Word>(used_idx: &W, old: u16, new: u16, call: Call<'_, W>) -> bool {
    // Release: the elements, and all the data the device wrote, come before the index. Pairs with the driver's read
    // barrier between loading used.idx and reading the element.
    used_idx.store(new, Ordering::Release);
    // Orders the store of used.idx before the load below; pairs with the driver's full barrier between re-enabling calls and its
    // last look at used.idx.
    W::fence(Ordering::SeqCst);
    match call {
        Call::Event(used_event) => passed(used_event.load(Ordering::Relaxed), old, new),
        Call::Flags(flags) => flags.load(Ordering::Relaxed) & 1 == 0,
    }
}

/// Asks for a kick at the next request after `next`; true if there already is one.
#[inline]
pub(super) fn arm<W: Word>(kick: Kick<'_, W>, next: u16, avail_idx: &W) -> bool {
    match kick {
        Kick::Event(avail_event) => avail_event.store(next, Ordering::Relaxed),
        Kick::Flags(flags) => flags.store(0, Ordering::Relaxed),
    }
    // Orders the store above before the load below; pairs with the driver's full barrier between storing avail.idx and
    // looking whether we want a kick.
    W::fence(Ordering::SeqCst);
    // Acquire: as in `Queue::pop`, which may follow without another load.
    avail_idx.load(Ordering::Acquire) != next
}

/// Asks for no kicks. A hint, so it needs no order; with EVENT_IDX an event once passed asks for nothing more until it is armed
/// anew (or 2^16 requests later, a superfluous kick), so there is nothing to say.
#[inline]
pub(super) fn mute<W: Word>(kick: Kick<'_, W>) {
    match kick {
        Kick::Event(_) => {}
        Kick::Flags(flags) => flags.store(1, Ordering::Relaxed),
    }
}
