//! Guest memory without a guest: one memfd, mapped shared, seen by the back end as one or several regions.
//!
//! Addresses come in two kinds, as in a VMM. *Guest addresses* stand in descriptors; *user addresses* (of this
//! process) stand in SET_VRING_ADDR and in the memory table. A bump allocator hands guest memory out and never takes
//! it back: a test lives shortly, and a reused address would hide a late write of the back end.

#![allow(unsafe_code)]

use std::fs::File;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{ByteValued, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::error::{Error, Result};

/// Guest addresses of regions are multiples of this; also the distance that keeps regions from touching each other.
const REGION_ALIGN: u64 = 2 << 20;

/// The memory of the guest that is not there.
pub struct Memory {
    map: GuestMemoryMmap,
    regions: Vec<Region>,
}

struct Region {
    start: u64,
    size: u64,
    /// Offset of the first byte that was not handed out.
    next: AtomicU64,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.regions.iter().map(|r| r.start..r.start + r.size))
            .finish()
    }
}

impl Memory {
    /// Makes one memfd and maps it as regions of the given sizes in bytes (rounded up to 4 KiB). The first region
    /// starts at guest address 0; a hole lies between any two, so that a range across regions is never contiguous.
    pub fn new(sizes: &[u64]) -> Result<Arc<Self>> {
        let fd = memfd_create("outboard-frontend", MemfdFlags::CLOEXEC)
            .map_err(Error::errno("memfd_create for guest memory"))?;
        let file = Arc::new(File::from(fd));
        let mut ranges = Vec::with_capacity(sizes.len());
        let mut regions = Vec::with_capacity(sizes.len());
        let (mut start, mut offset) = (0_u64, 0_u64);
        for size in sizes {
            let size = size.next_multiple_of(4096).max(4096);
            let length = usize::try_from(size)
                .map_err(|_| Error::Memory(format!("a region of {size} bytes is too large")))?;
            let part = FileOffset::from_arc(Arc::clone(&file), offset);
            ranges.push((GuestAddress(start), length, Some(part)));
            regions.push(Region {
                start,
                size,
                next: AtomicU64::new(0),
            });
            offset += size;
            start = (start + size).next_multiple_of(REGION_ALIGN) + REGION_ALIGN;
        }
        ftruncate(&*file, offset).map_err(Error::errno("ftruncate of guest memory"))?;
        let map = GuestMemoryMmap::from_ranges_with_files(ranges)
            .map_err(|error| Error::Memory(format!("cannot map {sizes:?} bytes: {error}")))?;
        Ok(Arc::new(Self { map, regions }))
    }

    /// The mapping, for everything that `vm-memory` can do with it.
    #[must_use]
    pub fn map(&self) -> &GuestMemoryMmap {
        &self.map
    }

    /// Number of regions.
    #[must_use]
    pub fn regions(&self) -> usize {
        self.regions.len()
    }

    /// First guest address and size in bytes of a region.
    #[must_use]
    pub fn region(&self, index: usize) -> Option<(GuestAddress, u64)> {
        self.regions
            .get(index)
            .map(|region| (GuestAddress(region.start), region.size))
    }

    /// Hands out `length` bytes, aligned to the power of two `align`, from the first region with room.
    pub fn alloc(&self, length: u64, align: u64) -> Result<GuestAddress> {
        (0..self.regions.len())
            .find_map(|index| self.alloc_in(index, length, align).ok())
            .ok_or_else(|| Error::Memory(format!("no region has {length} bytes left: {self:?}")))
    }

    /// Hands out `length` bytes from one region: the way to put rings and buffers into different regions.
    pub fn alloc_in(&self, index: usize, length: u64, align: u64) -> Result<GuestAddress> {
        let region = self
            .regions
            .get(index)
            .ok_or_else(|| Error::Memory(format!("there is no region {index}")))?;
        let place = |next: u64| {
            let begin = next.checked_next_multiple_of(align)?;
            let end = begin.checked_add(length)?;
            (end <= region.size).then_some((begin, end))
        };
        // Relaxed: the allocator orders nothing; whoever shares an address with another thread synchronizes that.
        let before = region
            .next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
                place(next).map(|p| p.1)
            })
            .map_err(|_| Error::Memory(format!("region {index} has no {length} bytes left")))?;
        let begin = place(before).map_or(0, |p| p.0);
        Ok(GuestAddress(region.start + begin))
    }

    /// Copies bytes into guest memory.
    pub fn write(&self, to: GuestAddress, bytes: &[u8]) -> Result<()> {
        self.map.write_slice(bytes, to).map_err(|error| {
            Error::Memory(format!("write of {} bytes at {to:?}: {error}", bytes.len()))
        })
    }

    /// Copies bytes out of guest memory.
    pub fn read(&self, from: GuestAddress, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.map.read_slice(&mut bytes, from).map_err(|error| {
            Error::Memory(format!("read of {length} bytes at {from:?}: {error}"))
        })?;
        Ok(bytes)
    }

    /// What the memory table says of the regions.
    pub(crate) fn table(&self) -> Result<Vec<VhostUserMemoryRegionInfo>> {
        self.map
            .iter()
            .map(|region| {
                VhostUserMemoryRegionInfo::from_guest_region(region)
                    .map_err(|error| Error::Memory(format!("region has no file: {error}")))
            })
            .collect()
    }

    /// A view of contiguous guest memory with direct access.
    pub(crate) fn window(self: &Arc<Self>, at: GuestAddress, length: usize) -> Result<Window> {
        let slice = self
            .map
            .get_slice(at, length)
            .map_err(|error| Error::Memory(format!("no {length} bytes at {at:?}: {error}")))?;
        let base = NonNull::new(slice.ptr_guard_mut().as_ptr())
            .ok_or_else(|| Error::Memory("mapped at address zero".into()))?;
        Ok(Window {
            base,
            length,
            at,
            _memory: Arc::clone(self),
        })
    }
}

/// Direct access to a range of guest memory that the back end reads and writes at the same time.
///
/// Every access checks its range (a bug of the driver panics, nothing the back end writes can move it), is volatile
/// or atomic, and makes no reference to plain data: the bytes can change at any moment.
#[derive(Debug)]
pub(crate) struct Window {
    base: NonNull<u8>,
    length: usize,
    at: GuestAddress,
    _memory: Arc<Memory>,
}

// SAFETY: the pointer goes into a mapping that `_memory` keeps alive and that belongs to no thread; all accesses are
// atomic or volatile, as they must be for memory shared with another process.
unsafe impl Send for Window {}

impl Window {
    /// The guest address of the first byte.
    pub(crate) fn guest_address(&self) -> GuestAddress {
        self.at
    }

    /// The address of the first byte in this process.
    pub(crate) fn user_address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    #[inline]
    fn pointer(&self, offset: usize, length: usize, align: usize) -> *mut u8 {
        assert!(
            offset <= self.length && length <= self.length - offset,
            "access of {length} bytes at {offset} in a window of {}",
            self.length
        );
        // SAFETY: `offset` is within the range that `Memory::window` found mapped (checked above).
        let pointer = unsafe { self.base.as_ptr().add(offset) };
        assert!(
            pointer.addr().is_multiple_of(align),
            "misaligned access at {offset}"
        );
        pointer
    }

    /// The 16-bit field at `offset`, for ordered access.
    #[inline]
    pub(crate) fn atomic_u16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: in range and aligned (checked by `pointer`); lives as long as `self`, which holds the mapping; both
        // sides access ring indices atomically only.
        unsafe { AtomicU16::from_ptr(self.pointer(offset, 2, 2).cast()) }
    }

    /// Stores a value.
    #[inline]
    pub(crate) fn store<T: ByteValued>(&self, offset: usize, value: T) {
        let pointer = self
            .pointer(offset, size_of::<T>(), align_of::<T>())
            .cast::<T>();
        // SAFETY: in range and aligned (checked by `pointer`); `T` is plain data.
        unsafe { pointer.write_volatile(value) }
    }

    /// Loads a value.
    #[inline]
    pub(crate) fn load<T: ByteValued>(&self, offset: usize) -> T {
        let pointer = self
            .pointer(offset, size_of::<T>(), align_of::<T>())
            .cast::<T>();
        // SAFETY: in range and aligned (checked by `pointer`); any bytes make a valid `T: ByteValued`.
        unsafe { pointer.read_volatile() }
    }

    /// Copies bytes in.
    pub(crate) fn copy_in(&self, offset: usize, bytes: &[u8]) {
        let pointer = self.pointer(offset, bytes.len(), 1);
        // SAFETY: in range (checked by `pointer`); `bytes` is memory of Rust's and so cannot overlap guest memory.
        unsafe { pointer.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }

    /// Copies bytes out.
    pub(crate) fn copy_out(&self, offset: usize, bytes: &mut [u8]) {
        let pointer = self.pointer(offset, bytes.len(), 1);
        // SAFETY: in range (checked by `pointer`); `bytes` is memory of Rust's and so cannot overlap guest memory.
        unsafe { pointer.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) }
    }

    /// Fills a range with one byte.
    pub(crate) fn fill(&self, offset: usize, length: usize, byte: u8) {
        let pointer = self.pointer(offset, length, 1);
        // SAFETY: in range (checked by `pointer`).
        unsafe { pointer.write_bytes(byte, length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_do_not_touch_and_allocations_stay_inside() {
        let memory = Memory::new(&[8192, 1 << 21]).unwrap();
        let (second, _) = memory.region(1).unwrap();
        assert!(second.0 > 8192, "a hole must lie between the regions");
        assert_eq!(memory.alloc(100, 16).unwrap(), GuestAddress(0));
        assert_eq!(memory.alloc(16, 16).unwrap(), GuestAddress(112));
        assert_eq!(
            memory.alloc(8192, 1).unwrap(),
            second,
            "does not fit region 0 any more"
        );
        assert!(memory.alloc_in(0, 8192, 1).is_err());
        assert!(memory.alloc(u64::MAX, 4096).is_err());
    }

    #[test]
    fn two_mappings_of_one_region_see_the_same_bytes() {
        let memory = Memory::new(&[4096, 4096]).unwrap();
        let (second, _) = memory.region(1).unwrap();
        let table = memory.table().unwrap();
        assert_eq!(table[1].mmap_offset, 4096);
        memory.write(second, b"hello").unwrap();
        let window = memory.window(second, 16).unwrap();
        let mut bytes = [0; 5];
        window.copy_out(0, &mut bytes);
        assert_eq!(&bytes, b"hello");
        assert_eq!(window.user_address(), table[1].userspace_addr);
        assert!(memory.window(second, 8192).is_err());
    }
}
