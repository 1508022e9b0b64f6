//! What the image's device or filesystem wants: block sizes, preferred requests, alignment of direct I/O, discard.
use super::{Kind, blockdev, bounce::AlignedBuf};
use crate::disk::Limits;
use rustix::fs::{AtFlags, FallocateFlags, StatxFlags};
use std::{fs::File, io, os::fd::AsFd, path::PathBuf};

/// The smallest block there is.
pub(super) const SECTOR: u32 = 512;
/// One discard or write-zeroes at most: longer ones make the kernel busy for long with something that cannot be cancelled.
const MAX_SPAN: u64 = 1 << 30;
/// The same where the kernel may have to write the zeroes one by one.
const MAX_WRITTEN_SPAN: u64 = 64 << 20;
/// Larger units than this are no alignment but a preference.
const MAX_ALIGNMENT: u32 = 1 << 16;

/// What direct I/O wants aligned, in bytes; powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Alignment {
    /// The address of each memory segment.
    pub(super) memory: u32,
    /// Offset on the disk, and the length of each segment.
    pub(super) io: u32,
}

/// What [`alignment`] found.
pub(super) enum Direct {
    Possible(Alignment),
    /// The filesystem says that this file cannot be read around the page cache.
    Impossible,
}

/// How direct I/O on the open file has to be aligned: what the kernel says, else what the device says, else what reads show.
pub(super) fn alignment(file: &File, kind: Kind) -> io::Result<Direct> {
    match rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(stat) if stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0 => {
            let (memory, io) = (stat.stx_dio_mem_align, stat.stx_dio_offset_align);
            if memory == 0 || io == 0 {
                return Ok(Direct::Impossible);
            }
            if memory.is_power_of_two() && io.is_power_of_two() {
                return Ok(Direct::Possible(Alignment { memory, io }));
            }
        }
        // An older kernel, or a filesystem that does not say.
        Ok(_) | Err(_) => {}
    }
    match kind {
        Kind::BlockDevice => {
            let block = rustix::fs::ioctl_blksszget(file)?;
            Ok(Direct::Possible(Alignment {
                memory: block,
                io: block,
            }))
        }
        Kind::Regular => by_reading(file),
    }
}

/// The smallest alignment with which reads of the first bytes succeed.
fn by_reading(file: &File) -> io::Result<Direct> {
    let sizes = || (9..=MAX_ALIGNMENT.trailing_zeros()).map(|shift| 1u32 << shift);
    let Some(io) = first_that_reads(file, sizes(), |align| (0, align))? else {
        return Ok(Direct::Impossible);
    };
    let memory = first_that_reads(file, sizes().take_while(|size| *size < io), |align| {
        (align, io)
    })?
    .unwrap_or(io);
    Ok(Direct::Possible(Alignment { memory, io }))
}

/// Tries reads into memory that is `skip` bytes after a widely aligned address, `len` bytes each.
fn first_that_reads(
    file: &File,
    candidates: impl Iterator<Item = u32>,
    shape: impl Fn(u32) -> (u32, u32),
) -> io::Result<Option<u32>> {
    let mut memory = AlignedBuf::new(2 * MAX_ALIGNMENT as usize, MAX_ALIGNMENT as usize);
    for candidate in candidates {
        let (skip, len) = shape(candidate);
        let Some(target) = memory
            .bytes_mut()
            .get_mut(skip as usize..(skip + len) as usize)
        else {
            continue;
        };
        match rustix::io::retry_on_intr(|| rustix::io::pread(file.as_fd(), &mut *target, 0)) {
            Ok(_) => return Ok(Some(candidate)),
            Err(rustix::io::Errno::INVAL) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(None)
}

/// The limits of a regular file with logical blocks of `logical` bytes.
pub(super) fn file_limits(file: &File, logical: u32, read_only: bool) -> io::Result<Limits> {
    let stat = rustix::fs::fstat(file)?;
    let preferred = u32::try_from(stat.st_blksize)
        .ok()
        .filter(|size| size.is_power_of_two() && *size <= MAX_ALIGNMENT);
    let physical = preferred.unwrap_or(logical).max(logical);
    let can_punch = !read_only && can_punch(file, stat.st_size as u64, physical);
    Ok(Limits {
        logical_block: logical,
        physical_block: physical,
        alignment_offset: 0,
        min_io: physical,
        opt_io: 0,
        max_discard: if can_punch { MAX_SPAN } else { 0 },
        discard_granularity: physical,
        max_write_zeroes: match (read_only, can_punch) {
            (true, _) => 0,
            (false, true) => MAX_SPAN,
            (false, false) => MAX_WRITTEN_SPAN,
        },
        write_zeroes_may_unmap: can_punch,
    })
}

/// Whether the filesystem can punch holes: tried behind the end of the file, where there is nothing to lose.
fn can_punch(file: &File, size: u64, block: u32) -> bool {
    let behind = size.next_multiple_of(u64::from(block));
    rustix::fs::fallocate(
        file,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        behind,
        u64::from(block),
    )
    .is_ok()
}

/// The limits of a block device with logical blocks of `logical` bytes.
pub(super) fn device_limits(file: &File, logical: u32, read_only: bool) -> io::Result<Limits> {
    let physical = rustix::fs::ioctl_blkpbszget(file).unwrap_or(logical);
    let physical = if physical.is_power_of_two() {
        physical.max(logical)
    } else {
        logical
    };
    let queue = QueueAttributes::of(file)?;
    let max_discard = if read_only {
        0
    } else {
        queue.read("discard_max_bytes").min(MAX_SPAN)
    };
    let fast_zeroes = queue.read("write_zeroes_max_bytes") > 0;
    Ok(Limits {
        logical_block: logical,
        physical_block: physical,
        alignment_offset: blockdev::alignment_offset(file).ok().flatten().unwrap_or(0),
        min_io: blockdev::min_io(file).unwrap_or(0),
        opt_io: blockdev::opt_io(file).unwrap_or(0),
        max_discard: max_discard - max_discard % u64::from(logical),
        discard_granularity: u32::try_from(queue.read("discard_granularity")).unwrap_or(0),
        max_write_zeroes: match (read_only, fast_zeroes) {
            (true, _) => 0,
            (false, true) => MAX_SPAN,
            (false, false) => MAX_WRITTEN_SPAN,
        },
        write_zeroes_may_unmap: !read_only && fast_zeroes,
    })
}

/// `/sys/dev/block/MAJOR:MINOR/queue`; of a partition, the whole disk's.
struct QueueAttributes(PathBuf);

impl QueueAttributes {
    fn of(file: &File) -> io::Result<QueueAttributes> {
        let device = rustix::fs::fstat(file)?.st_rdev;
        let node = PathBuf::from(format!(
            "/sys/dev/block/{}:{}",
            rustix::fs::major(device),
            rustix::fs::minor(device)
        ));
        let own = node.join("queue");
        Ok(QueueAttributes(if own.is_dir() {
            own
        } else {
            node.join("../queue")
        }))
    }

    /// A number of the kernel's; 0 also if it cannot be read.
    fn read(&self, name: &str) -> u64 {
        std::fs::read_to_string(self.0.join(name))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::OpenOptionsExt;

    /// An image opened for direct I/O, or `None` where the temporary directory's filesystem has none.
    fn direct_image(dir: &tempfile::TempDir) -> Option<File> {
        let path = dir.path().join("image");
        std::fs::write(&path, vec![7; 1 << 17]).unwrap();
        File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(&path)
            .ok()
    }

    #[test]
    fn probing_reads_find_an_alignment_with_which_the_kernel_agrees() {
        let dir = tempfile::tempdir().unwrap();
        let Some(file) = direct_image(&dir) else {
            eprintln!("SKIP(direct): no O_DIRECT in the temporary directory");
            return;
        };
        let Direct::Possible(probed) = by_reading(&file).unwrap() else {
            panic!("O_DIRECT opened but nothing reads")
        };
        let Direct::Possible(told) = alignment(&file, Kind::Regular).unwrap() else {
            panic!("O_DIRECT opened but refused")
        };
        // Reads start at 512; the kernel may allow less, and wants never more than what was seen to work.
        assert_eq!(probed.io, told.io.max(SECTOR));
        assert!(
            probed.memory >= told.memory && probed.memory <= told.memory.max(SECTOR),
            "{probed:?} {told:?}"
        );
    }

    #[test]
    fn probing_for_holes_neither_changes_nor_grows_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let content = vec![7; 70_000];
        std::fs::write(&path, &content).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        file_limits(&file, SECTOR, false).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), content);
    }

    #[test]
    fn a_read_only_image_offers_no_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, [0; 4096]).unwrap();
        let limits = file_limits(&File::open(&path).unwrap(), SECTOR, true).unwrap();
        assert_eq!(
            (
                limits.max_discard,
                limits.max_write_zeroes,
                limits.write_zeroes_may_unmap
            ),
            (0, 0, false)
        );
    }
}
