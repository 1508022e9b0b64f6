//! The ioctls of block devices that rustix has no wrapper for.
#![allow(unsafe_code)]

use std::{ffi::c_ulong, fs::File, io, os::fd::AsRawFd};

/// `_IO(0x12, n)` and relatives, from linux/fs.h.
const BLKDISCARD: c_ulong = 0x1277;
const BLKIOMIN: c_ulong = 0x1278;
const BLKIOOPT: c_ulong = 0x1279;
const BLKALIGNOFF: c_ulong = 0x127a;
/// `_IOR(0x12, 114, size_t)`.
#[cfg(target_pointer_width = "64")]
const BLKGETSIZE64: c_ulong = 0x8008_1272;

fn get_u32(file: &File, request: c_ulong) -> io::Result<u32> {
    let mut value: u32 = 0;
    // SAFETY: the descriptor is open as long as `file` lives; the requests used here write one 32-bit number at the address.
    match unsafe { libc::ioctl(file.as_raw_fd(), request as _, &mut value) } {
        0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The size in bytes.
pub(super) fn size(file: &File) -> io::Result<u64> {
    let mut value: u64 = 0;
    // SAFETY: the descriptor is open as long as `file` lives; BLKGETSIZE64 writes one 64-bit number at the address.
    match unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64 as _, &mut value) } {
        0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The preferred smallest request.
pub(super) fn min_io(file: &File) -> io::Result<u32> {
    get_u32(file, BLKIOMIN)
}

/// The preferred request for streaming; 0: not known.
pub(super) fn opt_io(file: &File) -> io::Result<u32> {
    get_u32(file, BLKIOOPT)
}

/// Offset of the first aligned physical block; `None` if the device is misaligned in a way no offset mends.
pub(super) fn alignment_offset(file: &File) -> io::Result<Option<u32>> {
    // The kernel writes a signed number, -1 for such a device.
    get_u32(file, BLKALIGNOFF).map(|offset| (offset <= i32::MAX as u32).then_some(offset))
}

/// Discards a range (multiples of the logical block). Blocks.
pub(super) fn discard(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let range = [offset, len];
    // SAFETY: the descriptor is open as long as `file` lives; BLKDISCARD reads two 64-bit numbers at the address.
    match unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD as _, range.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
