//! Guest memory: an immutable map of regions, shared by `Arc`, replaced as a whole.
//!
//! The front end describes its memory in regions, each a range of a file (SET_MEM_TABLE, ADD_MEM_REG, REM_MEM_REG). A [`MemoryMap`] is one
//! such table, checked and mapped. It never changes: a change of the table makes a new map that shares the mappings of the
//! regions that stay. Who translates an address holds a map, and what it got stays mapped as long as it holds it; so an operation in
//! flight survives any change of the table, and no reader ever takes a lock.
//!
//! The front end keeps the files and may write, punch or truncate them at any time. Bytes of guest memory are therefore only ever
//! copied, and a truncation is caught by a process-wide SIGBUS handler (`guard`), after which the map says
//! [`MemoryMap::is_damaged`].
mod error;
mod guard;
mod region;
#[cfg(test)]
mod tests;

pub use error::{MemoryError, OutOfMemory};
use region::Region;
pub(crate) use region::Window;
use std::{fmt, fs::File, rc::Rc, sync::Arc};

/// The most regions a table may hold: what vhost itself accepts from QEMU, and what we answer to GET_MAX_MEM_SLOTS.
pub const MAX_REGIONS: usize = 509;

/// The most bytes of a table: a quarter of a process' 2^47. Memory that is only promised costs nothing but addresses, and without
/// addresses left, neither another guest's memory nor our own heap could be mapped.
pub const MAX_BYTES: u64 = 1 << 45;

/// One region as vhost-user describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionInfo {
    /// First guest physical address.
    pub guest_addr: u64,
    /// Length in bytes.
    pub size: u64,
    /// First address in the front end's own address space. Ring addresses come in these; for us they are only names.
    pub user_addr: u64,
    /// Where in the file the region starts, in bytes; any alignment.
    pub file_offset: u64,
}

impl fmt::Display for RegionInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RegionInfo {
            guest_addr,
            size,
            user_addr,
            file_offset,
        } = self;
        write!(
            f,
            "memory region (guest {guest_addr:#x}, size {size:#x}, user {user_addr:#x}, file offset {file_offset:#x})"
        )
    }
}

impl RegionInfo {
    fn check(&self) -> Result<(), MemoryError> {
        if self.size == 0 {
            return Err(MemoryError::Empty(*self));
        }
        for (start, what) in [
            (self.guest_addr, "guest address"),
            (self.user_addr, "user address"),
            (self.file_offset, "file offset"),
        ] {
            if start.checked_add(self.size).is_none() {
                return Err(MemoryError::Wraps {
                    region: *self,
                    what,
                });
            }
        }
        Ok(())
    }
}

/// Immutable; adding or removing a region makes a new map that shares the others' mappings.
#[derive(Debug, Default)]
pub struct MemoryMap {
    /// Sorted by guest address; they overlap neither there nor in user addresses.
    regions: Vec<Arc<Region>>,
}

/// A worker's hold on a map: cloned per request without atomics; owner of `Buffers`.
pub type MemoryLease = Rc<Arc<MemoryMap>>;

impl MemoryMap {
    /// No memory at all: what a session starts with.
    pub fn empty() -> MemoryMap {
        MemoryMap::default()
    }

    /// Maps every region of a table (SET_MEM_TABLE).
    ///
    /// # Errors
    /// Refuses the whole table when one region is empty, wraps, overlaps another in guest or user addresses, is no regular file or
    /// memfd, ends behind the end of its file, cannot be mapped, or when there are more than [`MAX_REGIONS`] or
    /// more than [`MAX_BYTES`] in all.
    pub fn from_files(regions: Vec<(RegionInfo, File)>) -> Result<MemoryMap, MemoryError> {
        // Counted first: nothing of an oversized table is mapped.
        check_totals(regions.iter().map(|(info, _)| info))?;
        let regions = regions
            .into_iter()
            .map(|(info, file)| Region::map(info, file).map(Arc::new));
        MemoryMap::new(regions.collect::<Result<_, _>>()?)
    }

    /// This map and one more region (ADD_MEM_REG).
    ///
    /// # Errors
    /// As [`MemoryMap::from_files`], for the new region.
    pub fn with_region(&self, info: RegionInfo, file: File) -> Result<MemoryMap, MemoryError> {
        check_totals(self.regions.iter().map(|r| r.info()).chain([&info]))?;
        let mut regions = self.regions.clone();
        regions.push(Arc::new(Region::map(info, file)?));
        MemoryMap::new(regions)
    }

    /// This map without the region of that guest address, user address and size, which is how REM_MEM_REG names one (the file offset is
    /// not compared).
    ///
    /// # Errors
    /// [`MemoryError::NotFound`].
    pub fn without_region(&self, info: &RegionInfo) -> Result<MemoryMap, MemoryError> {
        let named = |region: &RegionInfo| {
            (region.guest_addr, region.user_addr, region.size)
                == (info.guest_addr, info.user_addr, info.size)
        };
        let mut regions = self.regions.clone();
        regions.retain(|region| !named(region.info()));
        if regions.len() == self.regions.len() {
            return Err(MemoryError::NotFound(*info));
        }
        MemoryMap::new(regions)
    }

    fn new(mut regions: Vec<Arc<Region>>) -> Result<MemoryMap, MemoryError> {
        refuse_overlap(&mut regions, "user", |region| region.user_addr)?;
        // Last, because it leaves them in the order that `window` searches.
        refuse_overlap(&mut regions, "guest", |region| region.guest_addr)?;
        Ok(MemoryMap { regions })
    }

    /// The regions, by guest address.
    pub fn regions(&self) -> impl Iterator<Item = RegionInfo> + '_ {
        self.regions.iter().map(|region| *region.info())
    }

    /// Front-end virtual address (ring addresses come so) to guest address.
    pub fn user_to_guest(&self, user_addr: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let offset = user_addr.checked_sub(region.info().user_addr)?;
            (offset < region.info().size).then(|| region.info().guest_addr.wrapping_add(offset))
        })
    }

    /// A truncation of a backing file was caught (SIGBUS guard): some bytes are zeros that the guest never wrote. The session must end.
    pub fn is_damaged(&self) -> bool {
        self.regions.iter().any(|region| region.is_damaged())
    }

    /// The region that holds a guest address.
    pub(crate) fn window(&self, guest: u64) -> Option<Window> {
        let after = self
            .regions
            .partition_point(|region| region.info().guest_addr <= guest);
        let window = self.regions.get(after.checked_sub(1)?)?.window();
        window.host(guest).map(|_| window)
    }
}

fn check_totals<'a>(regions: impl Iterator<Item = &'a RegionInfo>) -> Result<(), MemoryError> {
    let (mut count, mut bytes) = (0_usize, 0_u64);
    for region in regions {
        region.check()?;
        count += 1;
        bytes = bytes.saturating_add(region.size);
    }
    if count > MAX_REGIONS {
        Err(MemoryError::TooMany)
    } else if bytes > MAX_BYTES {
        Err(MemoryError::TooLarge(bytes))
    } else {
        Ok(())
    }
}

/// Sorts by address and compares neighbours.
fn refuse_overlap(
    regions: &mut [Arc<Region>],
    space: &'static str,
    address: impl Fn(&RegionInfo) -> u64,
) -> Result<(), MemoryError> {
    regions.sort_by_key(|region| address(region.info()));
    for (one, other) in regions.iter().zip(regions.iter().skip(1)) {
        let (one, other) = (*one.info(), *other.info());
        // Cannot wrap: the regions are in order, and `check` refused those that wrap.
        if address(&other).wrapping_sub(address(&one)) < one.size {
            return Err(MemoryError::Overlap { one, other, space });
        }
    }
    Ok(())
}
