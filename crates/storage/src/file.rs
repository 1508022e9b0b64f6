//! `file:PATH`: a raw image file or a block device, through the worker's io_uring.
//!
//! | file | duty |
//! |-|-|
//! | `open` | the way from a path to a disk; every reason to refuse |
//! | `lock` | QEMU's byte locks against a second writer |
//! | `holder` | who holds the image, for the error's text |
//! | `probe` | block sizes, limits, alignment of direct I/O |
//! | `blockdev` | the ioctls of block devices |
//! | `queue` | one worker's operations: submit, resume, retry, complete |
//! | `slot` | what an operation in flight needs, at an address that stays |
//! | `transfer` | one read or write as one io_uring operation |
//! | `space` | discard and write-zeroes: which method, and what when the filesystem cannot |
//! | `bounce` | aligned memory for guests whose segments are not |
//! | `helper` | the thread that does what io_uring cannot |
//!
//! # Alignment of direct I/O
//!
//! The kernel wants three things aligned: the offset and length on the disk, and the address and length of every memory segment.
//! The first is settled at open: the disk's logical block is never smaller than what direct I/O needs (a smaller
//! `block_size` is refused with a clear text), and operations that are no multiples of it complete with `EINVAL`. So there is no
//! read-modify-write anywhere, and no exclusion to get right. The second depends on the guest: misaligned segments go through a
//! bounce buffer, piece by piece.
//!
//! # Failed flushes
//!
//! A page that the kernel cannot write back is reported by one `fdatasync` and dropped; the next one finds nothing wrong, though what
//! the guest wrote is not on the disk. So after a failed flush through the page cache no flush succeeds until the image is
//! opened anew: the guest must not be told that its data is safe. Around the page cache nothing is dropped, and a
//! flush may be tried again.
//!
//! # Buffered writes
//!
//! All I/O goes through io_uring, also the buffered writes that ext4 makes the kernel hand to its worker threads. `queue` starts
//! every operation in one function (`start`): a policy that does some of them in line belongs there.
mod blockdev;
mod bounce;
mod helper;
mod holder;
mod lock;
mod open;
mod probe;
mod queue;
mod slot;
mod space;
mod transfer;

use crate::disk::{Disk, DiskQueue, Limits};
use outboard_reactor::IoPort;
use std::{
    fs::File,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
};

pub(crate) use open::open;

/// An open image file or block device.
pub struct FileDisk {
    image: Arc<Image>,
}

impl Disk for FileDisk {
    fn size(&self) -> u64 {
        self.image.size
    }

    fn limits(&self) -> Limits {
        self.image.limits
    }

    fn is_read_only(&self) -> bool {
        self.image.read_only
    }

    fn open_queue(&self, port: IoPort) -> io::Result<Box<dyn DiskQueue>> {
        Ok(Box::new(queue::FileQueue::new(
            Arc::clone(&self.image),
            port,
        )))
    }

    fn name(&self) -> &str {
        &self.image.name
    }
}

/// What the disk and its queues share. Every queue holds an `Arc` of it, so the descriptor stays open (and locked) until the last
/// operation that names it has completed.
struct Image {
    name: String,
    file: File,
    kind: Kind,
    size: u64,
    limits: Limits,
    read_only: bool,
    /// Every write is durable (writethrough, directsync).
    writethrough: bool,
    /// Flushes and durability are ignored (unsafe).
    volatile: bool,
    /// What direct I/O wants; `None`: buffered.
    direct: Option<probe::Alignment>,
    can: Abilities,
    loss: Loss,
    helper: helper::Helper,
}

/// What kind of file the image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Regular,
    BlockDevice,
}

/// The errno of the first flush that failed through the page cache; 0: none did. See "Failed flushes".
struct Loss(AtomicI32);

impl Loss {
    /// What a flush may say that the kernel found nothing wrong with.
    fn check(&self) -> Result<(), i32> {
        // Alone, it orders nothing.
        match self.0.load(Ordering::Relaxed) {
            0 => Ok(()),
            errno => Err(errno),
        }
    }

    fn record(&self, errno: i32) {
        let _ = self
            .0
            .compare_exchange(0, errno, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Ways to zero a range that were not seen to fail yet. Only hints: a stale `true` costs one failed attempt.
struct Abilities {
    punch: AtomicBool,
    zero_range: AtomicBool,
}

impl Abilities {
    fn new() -> Abilities {
        Abilities {
            punch: AtomicBool::new(true),
            zero_range: AtomicBool::new(true),
        }
    }

    fn punch(&self) -> bool {
        self.punch.load(Ordering::Relaxed)
    }

    fn zero_range(&self) -> bool {
        self.zero_range.load(Ordering::Relaxed)
    }
}
