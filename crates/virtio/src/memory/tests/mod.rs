mod guard;
mod table;

use super::{MemoryMap, RegionInfo};
use rustix::fs::MemfdFlags;
use std::fs::File;

/// A memfd of `size` bytes, each page filled with its number from 1.
fn memfd(size: u64) -> File {
    let file = File::from(rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
    let bytes: Vec<u8> = (0..size).map(|at| (at / 4096 + 1) as u8).collect();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
    file
}

fn info(guest_addr: u64, size: u64, file_offset: u64) -> RegionInfo {
    RegionInfo {
        guest_addr,
        size,
        user_addr: guest_addr + 0x7000_0000,
        file_offset,
    }
}

/// The byte at a guest address, read the way the queue reads.
fn byte(map: &MemoryMap, addr: u64) -> Option<u8> {
    let (host, _) = map.window(addr)?.host(addr)?;
    // SAFETY: the map translated the address and is borrowed.
    #[allow(unsafe_code)]
    Some(unsafe { host.read_volatile() })
}
