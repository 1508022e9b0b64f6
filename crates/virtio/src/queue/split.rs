//! The split ring's memory (2.7): three areas, resolved once, accessed as atomics.
#![allow(unsafe_code)]
use super::handshake::{Call, Kick};
use super::{QueueConfig, QueueError};
use crate::memory::MemoryLease;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

/// One descriptor, as it was when it was copied (2.7.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) addr: u64,
    pub(super) len: u32,
    flags: u16,
    pub(super) next: u16,
}

impl Descriptor {
    /// Size of a descriptor in guest memory, in bytes.
    pub(super) const SIZE: u32 = 16;

    fn from_words(addr: u64, rest: u64) -> Descriptor {
        let rest = u64::from_le(rest);
        Descriptor {
            addr: u64::from_le(addr),
            len: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        }
    }

    pub(super) fn from_bytes(bytes: [u8; 16]) -> Descriptor {
        let whole = u128::from_le_bytes(bytes);
        Descriptor::from_words((whole as u64).to_le(), ((whole >> 64) as u64).to_le())
    }

    pub(super) fn has_next(&self) -> bool {
        self.flags & 1 != 0
    }
    pub(super) fn is_writable(&self) -> bool {
        self.flags & 2 != 0
    }
    pub(super) fn is_indirect(&self) -> bool {
        self.flags & 4 != 0
    }
}

/// A split ring whose addresses are known to be good.
///
/// Invariant, established by `resolve` and relied upon by every access below: `desc`, `avail` and `used` point to areas of the sizes
/// that 2.7 demands for `size` entries, aligned as it demands, inside mappings that `memory` keeps. The guest writes to them at will, so they are
/// only accessed as atomics; there is never a reference to their bytes other than as such.
pub(super) struct SplitRing {
    size: u16,
    event_idx: bool,
    desc: *mut u8,
    avail: *mut u8,
    used: *mut u8,
    memory: MemoryLease,
}

impl SplitRing {
    pub(super) fn resolve(
        config: &QueueConfig,
        memory: MemoryLease,
    ) -> Result<SplitRing, QueueError> {
        let size = config.size;
        if !size.is_power_of_two() || size > 32768 {
            return Err(QueueError::Size(size));
        }
        let area = |part, addr: u64, align: u64, len: u64| {
            let (host, _) = memory
                .window(addr)
                .and_then(|window| window.host(addr))
                .filter(|(_, room)| *room >= len)
                .ok_or(QueueError::Unmapped { part, addr, len })?;
            // The host address as well: regions need not be aligned, and it is the one that is accessed.
            if !addr.is_multiple_of(align) || !(host as u64).is_multiple_of(align) {
                return Err(QueueError::Misaligned { part, addr, align });
            }
            Ok(host)
        };
        // 2.7: the sizes include the event fields whether EVENT_IDX is negotiated or not.
        let entries = u64::from(size);
        let desc = area("descriptor table", config.desc, 16, 16 * entries)?;
        let avail = area("available ring", config.avail, 2, 6 + 2 * entries)?;
        let used = area("used ring", config.used, 4, 6 + 8 * entries)?;
        let event_idx = config.has(virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX);
        Ok(SplitRing {
            size,
            event_idx,
            desc,
            avail,
            used,
            memory,
        })
    }

    pub(super) fn memory(&self) -> &MemoryLease {
        &self.memory
    }

    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    #[inline]
    fn avail_word(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: every caller's offset is even and below 6 + 2 * size, the length of the available ring (invariant).
        unsafe { AtomicU16::from_ptr(self.avail.add(offset).cast()) }
    }

    #[inline]
    fn used_word(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: every caller's offset is even and below 6 + 8 * size, the length of the used ring (invariant).
        unsafe { AtomicU16::from_ptr(self.used.add(offset).cast()) }
    }

    #[inline]
    pub(super) fn avail_idx(&self) -> &AtomicU16 {
        self.avail_word(2)
    }

    #[inline]
    pub(super) fn used_idx(&self) -> &AtomicU16 {
        self.used_word(2)
    }

    /// The head at a free-running index. To be read after an acquire load of avail.idx that covers it.
    #[inline]
    pub(super) fn avail_head(&self, index: u16) -> u16 {
        u16::from_le(
            self.avail_word(4 + 2 * self.slot(index))
                .load(Ordering::Relaxed),
        )
    }

    #[inline]
    pub(super) fn call(&self) -> Call<'_, AtomicU16> {
        if self.event_idx {
            Call::Event(self.avail_word(4 + 2 * usize::from(self.size)))
        } else {
            Call::Flags(self.avail_word(0))
        }
    }

    #[inline]
    pub(super) fn kick(&self) -> Kick<'_, AtomicU16> {
        if self.event_idx {
            Kick::Event(self.used_word(4 + 8 * usize::from(self.size)))
        } else {
            Kick::Flags(self.used_word(0))
        }
    }

    /// Fills the element at a free-running index. The driver must not look before used.idx is stored (`handshake::publish`).
    #[inline]
    pub(super) fn write_used(&self, index: u16, head: u16, written: u32) {
        let offset = 4 + 8 * self.slot(index);
        // SAFETY: slot < size, so both fields lie within the used ring, and 4 + 8n is a multiple of 4 from an area aligned to 4
        // (invariant).
        let (id, len) = unsafe {
            let element = self.used.add(offset).cast::<u32>();
            (
                AtomicU32::from_ptr(element),
                AtomicU32::from_ptr(element.add(1)),
            )
        };
        id.store(u32::from(head).to_le(), Ordering::Relaxed);
        len.store(written.to_le(), Ordering::Relaxed);
    }

    /// A copy of one descriptor of the ring's own table.
    #[inline]
    pub(super) fn descriptor(&self, index: u16) -> Option<Descriptor> {
        if index >= self.size {
            return None;
        }
        // SAFETY: index < size, so the 16 bytes lie within the table, which is aligned to 16 (invariant).
        let (addr, rest) = unsafe {
            let descriptor = self
                .desc
                .add(usize::from(index) * Descriptor::SIZE as usize)
                .cast::<u64>();
            (
                AtomicU64::from_ptr(descriptor),
                AtomicU64::from_ptr(descriptor.add(1)),
            )
        };
        Some(Descriptor::from_words(
            addr.load(Ordering::Relaxed),
            rest.load(Ordering::Relaxed),
        ))
    }
}

/// A copy of the descriptor at any host address: indirect tables have no alignment (2.7.5.3).
///
/// # Safety
/// 16 bytes at `host` are mapped.
#[inline]
pub(super) unsafe fn read_descriptor(host: *const u8) -> Descriptor {
    // Volatile, as the guest may write at the same time: one copy, torn at worst, and everything is decided on the copy.
    // SAFETY: mapped, says the caller; a byte array has no alignment.
    let bytes = unsafe { host.cast::<[u8; 16]>().read_volatile() };
    Descriptor::from_bytes(bytes)
}
