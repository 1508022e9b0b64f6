//! The driver's side of a split virtqueue (virtio 1.3, section 2.7), without any notification fd.
//!
//! # Orderings
//!
//! * `publish` stores `avail.idx` with release: descriptors and ring entries before it, paired with the back end's
//!   acquire load of `avail.idx`.
//! * Between that store and the load of `avail_event` (or `used.flags`) stands a SeqCst fence, paired with the fence
//!   that the back end has between arming its event and looking at `avail.idx` once more: one of the two sees the
//!   other, so a kick is never missing.
//! * `arm` is the mirror image: store `used_event` (or clear NO_INTERRUPT), SeqCst fence, load `used.idx`. If `arm`
//!   says that nothing is there, the next used entry must come with a call.
//! * `used.idx` is loaded with acquire, before the used element and before the buffers it completes.
//!
//! The free list and the chain lengths live in this process, never in guest memory, so that a hostile back end can
//! be found out ([`Error::BadUsed`]) and a hostile test can scribble over the table.

mod hostile;
mod types;

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_USED_F_NO_NOTIFY,
};
use vm_memory::GuestAddress;

use crate::error::{Error, Result};
use crate::memory::{Memory, Window};
pub use types::{Descriptor, RingAddresses, RingState, Segment, Used, need_event};
use types::{UsedElement, flags};

/// Mark in `chains` for a head that a hostile test published by hand: no descriptors to give back.
const RAW: u16 = u16::MAX;

/// A split ring in guest memory, driver's side.
#[derive(Debug)]
pub struct SplitRing {
    size: u16,
    event_idx: bool,
    descriptors: Window,
    avail: Window,
    used: Window,
    /// `avail.idx` with everything added, published or not.
    next_avail: u16,
    /// `avail.idx` as in memory.
    published: u16,
    last_used: u16,
    in_flight: u16,
    /// Free descriptors, a stack.
    free: Vec<u16>,
    /// For each head in flight the number of descriptors of its chain, 0 if not in flight.
    chains: Vec<u16>,
    /// The driver's own copy of the `next` links.
    links: Vec<u16>,
}

const AVAIL_RING: usize = 4;
const USED_RING: usize = 4;

impl SplitRing {
    /// Lays a ring of `size` descriptors (a power of two up to 32768) out in a region of guest memory.
    pub fn new(memory: &Arc<Memory>, region: usize, size: u16, event_idx: bool) -> Result<Self> {
        if !size.is_power_of_two() {
            return Err(Error::BadRequest(format!(
                "queue size {size} is not a power of two"
            )));
        }
        let count = usize::from(size);
        let part = |length: usize| {
            // A page each: no false sharing between what the driver writes and what the device writes.
            let at = memory.alloc_in(region, length as u64, 4096)?;
            memory.window(at, length)
        };
        let mut ring = Self {
            size,
            event_idx,
            descriptors: part(16 * count)?,
            avail: part(AVAIL_RING + 2 * count + 2)?,
            used: part(USED_RING + 8 * count + 2)?,
            next_avail: 0,
            published: 0,
            last_used: 0,
            in_flight: 0,
            free: Vec::with_capacity(count),
            chains: vec![0; count],
            links: vec![0; count],
        };
        ring.reset();
        Ok(ring)
    }

    /// Forgets everything in flight and starts from index 0, as a driver does after a device reset.
    pub fn reset(&mut self) {
        let count = usize::from(self.size);
        self.descriptors.fill(0, 16 * count, 0);
        self.avail.fill(0, AVAIL_RING + 2 * count + 2, 0);
        self.used.fill(0, USED_RING + 8 * count + 2, 0);
        (
            self.next_avail,
            self.published,
            self.last_used,
            self.in_flight,
        ) = (0, 0, 0, 0);
        self.free.clear();
        self.free.extend((0..self.size).rev());
        self.chains.fill(0);
        self.disarm();
    }

    /// Number of descriptors.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where the ring lies.
    #[must_use]
    pub fn addresses(&self) -> RingAddresses {
        RingAddresses {
            descriptors: self.descriptors.user_address(),
            avail: self.avail.user_address(),
            used: self.used.user_address(),
        }
    }

    /// Guest addresses of descriptor table, driver area and device area.
    #[must_use]
    pub fn guest_addresses(&self) -> [GuestAddress; 3] {
        [
            self.descriptors.guest_address(),
            self.avail.guest_address(),
            self.used.guest_address(),
        ]
    }

    /// Chains in flight.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Descriptors that are free.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// The indices as they are now.
    #[must_use]
    pub fn state(&self) -> RingState {
        RingState {
            size: self.size,
            avail_idx: self.avail.atomic_u16(2).load(Ordering::Acquire),
            used_idx: self.used_idx(),
            last_used: self.last_used,
            used_event: self.used_event().load(Ordering::Relaxed),
            avail_event: self.avail_event().load(Ordering::Relaxed),
            in_flight: self.in_flight,
        }
    }

    /// `used.idx` as the device stored it.
    #[must_use]
    pub fn used_idx(&self) -> u16 {
        self.used.atomic_u16(2).load(Ordering::Acquire)
    }

    fn used_event(&self) -> &std::sync::atomic::AtomicU16 {
        self.avail
            .atomic_u16(AVAIL_RING + 2 * usize::from(self.size))
    }

    fn avail_event(&self) -> &std::sync::atomic::AtomicU16 {
        self.used.atomic_u16(USED_RING + 8 * usize::from(self.size))
    }

    /// Adds a chain of direct descriptors; it becomes visible with [`publish`](Self::publish).
    #[inline]
    pub fn add(&mut self, segments: &[Segment]) -> Result<u16> {
        if segments.is_empty() || segments.len() > self.free.len() {
            return Err(Error::RingFull {
                wanted: segments.len(),
                state: self.state(),
            });
        }
        // From the last to the first, so that each knows its successor.
        let mut next = 0;
        for (position, segment) in segments.iter().enumerate().rev() {
            let last = position + 1 == segments.len();
            let Some(index) = self.free.pop() else { break };
            self.put(
                index,
                segment.address,
                segment.length,
                flags(segment, last),
                next,
            );
            next = index;
        }
        self.expose(next, segments.len() as u16);
        Ok(next)
    }

    /// Adds a chain through an indirect table, which is written to `table` (and must have room there).
    #[inline]
    pub(crate) fn add_indirect(
        &mut self,
        table: &Window,
        at: usize,
        segments: &[Segment],
    ) -> Result<u16> {
        let Some(index) = self.free.pop() else {
            return Err(Error::RingFull {
                wanted: 1,
                state: self.state(),
            });
        };
        for (position, segment) in segments.iter().enumerate() {
            let last = position + 1 == segments.len();
            let descriptor = Descriptor {
                address: segment.address.0,
                length: segment.length,
                flags: flags(segment, last),
                next: if last { 0 } else { position as u16 + 1 },
            };
            table.store(at + 16 * position, descriptor);
        }
        let address = GuestAddress(table.guest_address().0 + at as u64);
        self.put(
            index,
            address,
            16 * segments.len() as u32,
            VRING_DESC_F_INDIRECT as u16,
            0,
        );
        self.expose(index, 1);
        Ok(index)
    }

    #[inline]
    fn put(&mut self, index: u16, address: GuestAddress, length: u32, flags: u16, next: u16) {
        let descriptor = Descriptor {
            address: address.0,
            length,
            flags,
            next,
        };
        self.descriptors.store(16 * usize::from(index), descriptor);
        if let Some(link) = self.links.get_mut(usize::from(index)) {
            *link = next;
        }
    }

    #[inline]
    fn expose(&mut self, head: u16, count: u16) {
        if let Some(chain) = self.chains.get_mut(usize::from(head)) {
            *chain = count;
        }
        self.put_avail(head);
        self.in_flight += 1;
    }

    #[inline]
    fn put_avail(&mut self, head: u16) {
        let position = usize::from(self.next_avail & (self.size - 1));
        self.avail
            .atomic_u16(AVAIL_RING + 2 * position)
            .store(head, Ordering::Relaxed);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Makes all added chains visible and says whether the device wants a kick for them.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let old = self.published;
        if self.next_avail == old {
            return false;
        }
        self.published = self.next_avail;
        self.avail
            .atomic_u16(2)
            .store(self.next_avail, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.event_idx {
            need_event(
                self.avail_event().load(Ordering::Relaxed),
                self.next_avail,
                old,
            )
        } else {
            self.used.atomic_u16(0).load(Ordering::Relaxed) & VRING_USED_F_NO_NOTIFY as u16 == 0
        }
    }

    /// Says whether used entries wait to be taken.
    #[inline]
    #[must_use]
    pub fn has_used(&self) -> bool {
        self.used_idx() != self.last_used
    }

    /// Takes the next used entry and frees its descriptors.
    #[inline]
    pub fn take_used(&mut self) -> Result<Option<Used>> {
        let waiting = self.used_idx().wrapping_sub(self.last_used);
        if waiting == 0 {
            return Ok(None);
        }
        if waiting > self.in_flight {
            let what = format!(
                "{waiting} used entries for {} chains in flight",
                self.in_flight
            );
            return Err(Error::BadUsed {
                what,
                state: self.state(),
            });
        }
        let position = usize::from(self.last_used & (self.size - 1));
        let element: UsedElement = self.used.load(USED_RING + 8 * position);
        let count = self
            .chains
            .get_mut(element.id as usize)
            .map_or(0, std::mem::take);
        if count == 0 {
            let what = format!(
                "entry {position} completes {}, which is not in flight",
                element.id
            );
            return Err(Error::BadUsed {
                what,
                state: self.state(),
            });
        }
        let head = element.id as u16;
        if count != RAW {
            let mut index = head;
            for _ in 0..count {
                self.free.push(index);
                index = self.links.get(usize::from(index)).copied().unwrap_or(0);
            }
        }
        self.last_used = self.last_used.wrapping_add(1);
        self.in_flight -= 1;
        Ok(Some(Used {
            head,
            length: element.length,
        }))
    }

    /// Asks for a call at the next used entry. Returns whether entries are there already: then no call may come.
    #[inline]
    pub fn arm(&mut self) -> bool {
        if self.event_idx {
            self.used_event().store(self.last_used, Ordering::Relaxed);
        } else {
            self.avail.atomic_u16(0).store(0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        self.has_used()
    }

    /// Asks for no calls. With EVENT_IDX that is a `used_event` as far away as the index can be.
    #[inline]
    pub fn disarm(&mut self) {
        if self.event_idx {
            self.used_event()
                .store(self.last_used.wrapping_sub(1), Ordering::Relaxed);
        } else {
            self.avail
                .atomic_u16(0)
                .store(VRING_AVAIL_F_NO_INTERRUPT as u16, Ordering::Relaxed);
        }
    }

    /// The avail index at which a back end that knows nothing of this ring must start: the first entry that was not
    /// completed. The entries from there on are rewritten to the chains still in flight, lowest head first, because a
    /// back end that died may have completed others out of order before it.
    pub fn requeue_in_flight(&mut self) -> u16 {
        let base = self.published.wrapping_sub(self.in_flight);
        self.next_avail = base;
        for head in 0..self.size {
            if self
                .chains
                .get(usize::from(head))
                .is_some_and(|count| *count != 0)
            {
                self.put_avail(head);
            }
        }
        base
    }
}

#[cfg(test)]
mod tests;
