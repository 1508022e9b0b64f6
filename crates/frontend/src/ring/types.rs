//! What lies in a ring's memory, and what the driver's side says about it.

use std::fmt;

use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{ByteValued, GuestAddress};

/// One entry of a descriptor table, as it stands in memory (little-endian machines only).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest address.
    pub address: u64,
    /// Length in bytes.
    pub length: u32,
    /// VIRTQ_DESC_F_NEXT, WRITE, INDIRECT.
    pub flags: u16,
    /// Index of the next descriptor if NEXT is set.
    pub next: u16,
}

/// One entry of the used ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct UsedElement {
    pub(super) id: u32,
    pub(super) length: u32,
}

#[allow(unsafe_code)]
mod plain_data {
    use super::{ByteValued, Descriptor, UsedElement};
    // SAFETY: two structs of integers with no padding; any bytes are valid.
    unsafe impl ByteValued for Descriptor {}
    // SAFETY: as above.
    unsafe impl ByteValued for UsedElement {}
}

/// A buffer of a chain: where, how long, and who writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest address.
    pub address: GuestAddress,
    /// Length in bytes; a chain may carry an empty buffer only if a test wants to be hostile.
    pub length: u32,
    /// The device writes it (VIRTQ_DESC_F_WRITE).
    pub writable: bool,
}

/// Flag of the descriptor at `position` of `count`.
pub(super) fn flags(segment: &Segment, last: bool) -> u16 {
    let next = if last { 0 } else { VRING_DESC_F_NEXT as u16 };
    let write = if segment.writable {
        VRING_DESC_F_WRITE as u16
    } else {
        0
    };
    next | write
}

/// virtio 1.3, 2.7.10: has the index passed `event` on its way from `old` to `new`?
#[must_use]
pub fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Where the three parts of a ring lie, as SET_VRING_ADDR wants them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    /// Descriptor table, in this process.
    pub descriptors: u64,
    /// Driver area, in this process.
    pub avail: u64,
    /// Device area, in this process.
    pub used: u64,
}

/// A snapshot of the indices, for errors and tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingState {
    /// Number of descriptors.
    pub size: u16,
    /// `avail.idx` in memory.
    pub avail_idx: u16,
    /// `used.idx` in memory.
    pub used_idx: u16,
    /// The next used entry that the driver will take.
    pub last_used: u16,
    /// The driver's `used_event`.
    pub used_event: u16,
    /// The device's `avail_event`.
    pub avail_event: u16,
    /// Chains in flight, as the driver counts.
    pub in_flight: u16,
}

impl fmt::Display for RingState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            size,
            avail_idx,
            used_idx,
            last_used,
            used_event,
            avail_event,
            in_flight,
        } = self;
        write!(
            f,
            "ring of {size}: avail.idx {avail_idx}, used.idx {used_idx}, taken up to {last_used}, in flight \
             {in_flight}, used_event {used_event}, avail_event {avail_event}"
        )
    }
}

/// A used entry that the driver took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Head of the chain.
    pub head: u16,
    /// Bytes the device says it wrote.
    pub length: u32,
}
