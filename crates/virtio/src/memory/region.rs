//! One region: a checked file, mapped, watched by the SIGBUS guard.
#![allow(unsafe_code)]
use super::guard::Watch;
use super::{MemoryError, RegionInfo};
use rustix::fs::FileType;
use rustix::mm::Advice;
use std::fs::File;
use std::io;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, MmapRegion};

const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// A mapped region. Unmapped when the last map that shares it goes.
#[derive(Debug)]
pub(super) struct Region {
    info: RegionInfo,
    host: *mut u8,
    // Order of the fields is order of dropping: the guard must forget the addresses before someone else may get them.
    watch: Watch,
    _mapping: MmapRegion,
}

// SAFETY: `host` points into `_mapping`, which is Send and Sync itself and lives as long; the pointer never changes, and
// whoever reads or writes behind it does so under the rules of `Window`.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Checks the file behind `info` and maps it.
    ///
    /// The checks hold for this moment only: the peer keeps the file and may truncate it later; that is what the guard is for.
    /// Seals are not demanded, since QEMU does not set them.
    pub(super) fn map(info: RegionInfo, file: File) -> Result<Region, MemoryError> {
        info.check()?;
        let granule = check_file(&info, &file)?;

        // mmap wants offsets in whole pages (whole huge pages on hugetlbfs); the protocol does not. Map from the page that
        // the region starts in. The length is rounded up as well, because munmap of huge pages takes whole ones only.
        let skip = info.file_offset % granule;
        let length = skip
            .checked_add(info.size)
            .and_then(|length| length.checked_next_multiple_of(granule))
            .and_then(|length| usize::try_from(length).ok())
            .ok_or(MemoryError::Wraps {
                region: info,
                what: "file offset",
            })?;
        let mapping = MmapRegionBuilder::<()>::new(length)
            .with_file_offset(FileOffset::new(file, info.file_offset - skip))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .build()
            .map_err(|error| MemoryError::Map(info, into_io(error)))?;

        // DONTFORK: a child of this process (a helper, a hook) must not keep a guest's memory mapped after the guest has
        // gone, nor be able to scribble into it. DONTDUMP: a core dump must neither contain guests' secrets nor their
        // size. Both are hygiene: on a kernel that refuses them the mapping works all the same.
        for advice in [Advice::LinuxDontFork, Advice::LinuxDontDump] {
            // SAFETY: the range is exactly the mapping made above; neither advice changes its contents or its validity here.
            let advised = unsafe { rustix::mm::madvise(mapping.as_ptr().cast(), length, advice) };
            if let Err(error) = advised {
                tracing::debug!(%info, ?advice, %error, "madvise refused");
            }
        }

        // Both fit: skip is smaller than `length`, a usize.
        let host = mapping.as_ptr().wrapping_add(skip as usize);
        let watch = Watch::new(mapping.as_ptr() as usize, length, granule as usize);
        Ok(Region {
            info,
            host,
            watch,
            _mapping: mapping,
        })
    }

    pub(super) fn info(&self) -> &RegionInfo {
        &self.info
    }

    pub(super) fn is_damaged(&self) -> bool {
        self.watch.is_damaged()
    }

    pub(super) fn window(&self) -> Window {
        Window {
            guest: self.info.guest_addr,
            len: self.info.size,
            host: self.host,
        }
    }
}

/// The numbers that translate addresses of one region.
///
/// A plain copy: it says nothing about lifetime. Whoever keeps one keeps the map it came from.
/// The bytes behind `host` are shared with the guest and the kernel at all times, so they are only accessed as atomics, by
/// volatile copies, or by system calls; no reference to them is ever made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    guest: u64,
    len: u64,
    host: *mut u8,
}

impl Window {
    /// Contains no address.
    pub(crate) const NONE: Window = Window {
        guest: 0,
        len: 0,
        host: std::ptr::null_mut(),
    };

    /// Host address of the guest address and the number of bytes from there to the end of the region (at least 1); `None` when
    /// the address is not in this region.
    #[inline]
    pub(crate) fn host(&self, guest: u64) -> Option<(*mut u8, u64)> {
        let offset = guest.wrapping_sub(self.guest);
        // The cast keeps the value: offset < len, and the whole region is mapped, so len fits usize.
        (offset < self.len).then(|| (self.host.wrapping_add(offset as usize), self.len - offset))
    }
}

/// Kind and size of the file; returns the size in bytes of the pages it is mapped in.
fn check_file(info: &RegionInfo, file: &File) -> Result<u64, MemoryError> {
    let stat = rustix::fs::fstat(file).map_err(|error| MemoryError::Stat(*info, error.into()))?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => None,
        FileType::Socket => Some("socket"),
        FileType::Fifo => Some("pipe"),
        FileType::Directory => Some("directory"),
        FileType::CharacterDevice => Some("character device"),
        FileType::BlockDevice => Some("block device"),
        _ => Some("descriptor without a file (eventfd, epoll or the like)"),
    };
    if let Some(kind) = kind {
        return Err(MemoryError::NotAFile {
            region: *info,
            kind,
        });
    }
    let file_size = u64::try_from(stat.st_size).unwrap_or(0);
    let end = info
        .file_offset
        .checked_add(info.size)
        .ok_or(MemoryError::Wraps {
            region: *info,
            what: "file offset",
        })?;
    if end > file_size {
        return Err(MemoryError::PastEnd {
            region: *info,
            file_size,
        });
    }

    let page = rustix::param::page_size() as u64;
    let fs = rustix::fs::fstatfs(file).map_err(|error| MemoryError::Stat(*info, error.into()))?;
    // The cast brings the target's own width of f_type to one that holds the magic number.
    let hugetlbfs = fs.f_type as u64 & 0xffff_ffff == HUGETLBFS_MAGIC;
    Ok(if hugetlbfs {
        u64::try_from(fs.f_bsize).unwrap_or(page).max(page)
    } else {
        page
    })
}

fn into_io(error: vm_memory::mmap::MmapRegionError) -> io::Error {
    match error {
        vm_memory::mmap::MmapRegionError::Mmap(error) => error,
        other => io::Error::other(other),
    }
}
