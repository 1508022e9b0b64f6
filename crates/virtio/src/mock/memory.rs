use crate::memory::{MemoryLease, MemoryMap, RegionInfo};
use rustix::fs::MemfdFlags;
use std::fs::File;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vm_memory::{AtomicAccess, Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

/// What is added to a guest address to get the address in the pretended front end's own space.
const USER_BASE: u64 = 0x7f00_0000_0000;

/// A guest's memory in memfds. Clones share it.
#[derive(Clone)]
pub struct MockMemory(Arc<Inner>);

struct Inner {
    regions: Vec<(RegionInfo, File)>,
    guest: GuestMemoryMmap,
}

impl MockMemory {
    /// One region from guest address 0.
    pub fn flat(size: u64) -> MockMemory {
        MockMemory::new(&[(0, size)])
    }

    /// Regions given by guest address and size in bytes, each in a memfd of its own.
    pub fn new(regions: &[(u64, u64)]) -> MockMemory {
        let regions: Vec<_> = regions
            .iter()
            .map(|&(guest_addr, size)| {
                let fd = rustix::fs::memfd_create("mock-guest", MemfdFlags::CLOEXEC)
                    .expect("memfd_create");
                rustix::fs::ftruncate(&fd, size).expect("ftruncate of a memfd");
                let info = RegionInfo {
                    guest_addr,
                    size,
                    user_addr: guest_addr + USER_BASE,
                    file_offset: 0,
                };
                (info, File::from(fd))
            })
            .collect();
        let mappings = regions.iter().map(|(info, file)| {
            let file = FileOffset::new(file.try_clone().expect("dup of a memfd"), 0);
            let size = usize::try_from(info.size).expect("region fits the address space");
            (GuestAddress(info.guest_addr), size, Some(file))
        });
        let guest = GuestMemoryMmap::from_ranges_with_files(mappings).expect("mapping of memfds");
        MockMemory(Arc::new(Inner { regions, guest }))
    }

    /// The regions with duplicates of their files, as a front end would send them.
    pub fn files(&self) -> Vec<(RegionInfo, File)> {
        let dup = |file: &File| file.try_clone().expect("dup of a memfd");
        self.0
            .regions
            .iter()
            .map(|(info, file)| (*info, dup(file)))
            .collect()
    }

    /// The back end's map of this memory, mapped anew.
    pub fn map(&self) -> MemoryMap {
        MemoryMap::from_files(self.files()).expect("a valid table")
    }

    /// A worker's lease of a new map.
    pub fn lease(&self) -> MemoryLease {
        Rc::new(Arc::new(self.map()))
    }

    /// The witness' own mapping of the same memory, for oracles.
    pub fn guest(&self) -> &GuestMemoryMmap {
        &self.0.guest
    }

    /// Writes bytes at a guest address.
    pub fn write(&self, addr: u64, bytes: &[u8]) {
        self.0
            .guest
            .write_slice(bytes, GuestAddress(addr))
            .expect("write within the mock's memory");
    }

    /// Reads bytes at a guest address.
    pub fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0
            .guest
            .read_slice(&mut bytes, GuestAddress(addr))
            .expect("read within the mock's memory");
        bytes
    }

    /// Loads an aligned integer.
    pub fn load<T: AtomicAccess>(&self, addr: u64, order: Ordering) -> T {
        self.0
            .guest
            .load(GuestAddress(addr), order)
            .expect("aligned load within the mock's memory")
    }

    /// Stores an aligned integer.
    pub fn store<T: AtomicAccess>(&self, addr: u64, value: T, order: Ordering) {
        self.0
            .guest
            .store(value, GuestAddress(addr), order)
            .expect("aligned store within the mock's memory");
    }
}
