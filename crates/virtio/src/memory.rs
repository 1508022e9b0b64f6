//! Guest memory: an immutable map of regions, shared by `Arc`, replaced as a whole.
use std::{fs::File, rc::Rc, sync::Arc};

pub const MAX_REGIONS: usize = 509;

/// One region as vhost-user describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionInfo { pub guest_addr: u64, pub size: u64, /// address in the front end's own address space
    pub user_addr: u64, /// offset into the file
    pub file_offset: u64 }

/// Immutable; adding or removing a region makes a new map that shares the others' mappings.
pub struct MemoryMap {}
#[derive(Debug, thiserror::Error)] #[error("{0}")] pub struct MemoryError(pub String);
impl MemoryMap {
    pub fn empty() -> MemoryMap { todo!() }
    /// Maps every region; checks file kind and size (fstat), wraps, overlaps (guest and user addresses), count.
    pub fn from_files(regions: Vec<(RegionInfo, File)>) -> Result<MemoryMap, MemoryError> { let _ = regions; todo!() }
    pub fn with_region(&self, info: RegionInfo, file: File) -> Result<MemoryMap, MemoryError> { let _ = (info, file); todo!() }
    /// REM_MEM_REG names a region by guest_addr, user_addr and size.
    pub fn without_region(&self, info: &RegionInfo) -> Result<MemoryMap, MemoryError> { let _ = info; todo!() }
    pub fn regions(&self) -> impl Iterator<Item = RegionInfo> + '_ { std::iter::empty() }
    /// Front-end virtual address (ring addresses come so) to guest address.
    pub fn user_to_guest(&self, user_addr: u64) -> Option<u64> { let _ = user_addr; todo!() }
    /// A truncation of the backing file was caught (SIGBUS guard): the session must end.
    pub fn is_damaged(&self) -> bool { todo!() }
}
/// A worker's hold on a map: cloned per request without atomics; owner of `Buffers`.
pub type MemoryLease = Rc<Arc<MemoryMap>>;
