//! The contract every disk keeps.
//!
//! A [`Disk`] is what all queues share: its size, what it can do, its name. Every worker that does I/O on it opens a
//! [`DiskQueue`] of its own, which lives and dies on that worker's thread: no lock is shared between queues.
//!
//! # Life of an operation
//!
//! `submit` takes an operation and a token of the caller's choice; `next_completion` gives the token back exactly once, with the
//! result and the buffers. Between the two the operation owns its [`Buffers`], and with them whatever keeps the memory mapped.
//! Nothing calls back: completions are fetched.
//!
//! Operations in flight at the same time have no order among each other: overlapping ones may take effect in any order, and a
//! read beside a write may see a mixture. An operation submitted after another one's *completion* sees its effect, on every
//! queue of the disk.
//!
//! # Durability
//!
//! A [`Op::Flush`] makes durable what every write, discard and write-zeroes did that had **completed, on any queue, before the
//! flush was submitted**. It promises nothing about operations still in flight: who wants them covered waits for them first.
//! `durable` writes are durable by themselves.
use outboard_reactor::{Buffers, IoPort};
use std::io;

/// A disk, shared by all its queues.
pub trait Disk: Send + Sync {
    /// Bytes; a multiple of `limits().logical_block`. May change (resize).
    fn size(&self) -> u64;
    /// What the disk prefers and can do.
    fn limits(&self) -> Limits;
    /// Whether operations that change the disk complete with `EROFS`.
    fn is_read_only(&self) -> bool;
    /// An I/O handle for the calling worker thread. `port` belongs to that thread's reactor and to this queue alone; when the
    /// reactor reports it ready, call [`DiskQueue::next_completion`] until it returns `None`.
    fn open_queue(&self, port: IoPort) -> io::Result<Box<dyn DiskQueue>>;
    /// For log lines: the URI.
    fn name(&self) -> &str;
}

/// What the disk's bottom layer prefers and can do. All in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The smallest addressable unit: 512, 4096 … (a power of two). Offsets and lengths that are no multiples complete with `EINVAL`.
    pub logical_block: u32,
    /// The unit that the disk writes without reading first; a power of two, at least `logical_block`.
    pub physical_block: u32,
    /// Offset of the first aligned physical block.
    pub alignment_offset: u32,
    /// Preferred smallest request; 0: not known.
    pub min_io: u32,
    /// Preferred request for streaming; 0: not known.
    pub opt_io: u32,
    /// The longest discard that makes sense in one operation; 0: discard is not supported and completes with `EOPNOTSUPP`.
    pub max_discard: u64,
    /// Discards are effective in this unit; 0: not known.
    pub discard_granularity: u32,
    /// The longest write-zeroes that makes sense in one operation; 0: not supported.
    pub max_write_zeroes: u64,
    /// Write-zeroes with `unmap` may release the space.
    pub write_zeroes_may_unmap: bool,
}

/// One operation. Offsets and lengths are in bytes and multiples of [`Limits::logical_block`].
pub enum Op {
    /// Fills `buf` from the disk.
    Read {
        /// First byte on the disk.
        offset: u64,
        /// Where the bytes go.
        buf: Buffers,
    },
    /// Writes `buf` to the disk.
    Write {
        /// First byte on the disk.
        offset: u64,
        /// Where the bytes come from.
        buf: Buffers,
        /// On stable storage when it completes (write-through).
        durable: bool,
    },
    /// Makes durable what completed before.
    Flush,
    /// The range's content is no longer needed. What it reads afterwards is undefined; bytes outside never change.
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// The range reads as zeroes afterwards, always; bytes outside never change. A `Flush` makes it durable.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// The space may be released. Without it the space stays (or becomes) allocated where the disk can do that.
        unmap: bool,
    },
}

/// A finished operation.
pub struct Completion {
    /// The token of the submit.
    pub token: u32,
    /// `Err` carries the errno: `EINVAL` out of range or misaligned, `EROFS` on a read-only disk, `EOPNOTSUPP`, or the kernel's own.
    pub result: io::Result<()>,
    /// The buffers of the operation, with the segments they came with (empty for operations without).
    pub buf: Buffers,
}

/// One worker's I/O handle. Offsets and lengths were checked against `size` by the caller but may race with a resize: an
/// operation out of range completes with `EINVAL`. Reads past the end of an image that somebody else cut short give zeroes.
///
/// Drop it at `in_flight() == 0` only. An engine that is dropped earlier all the same leaks what the kernel may still touch.
pub trait DiskQueue {
    /// Never blocks, never fails: a failure is a completion. No syscall unless the ring is full.
    fn submit(&mut self, token: u32, op: Op);
    /// A finished operation, in any order. Look after a batch of submits (engines that finish at once have the completion ready
    /// right after `submit`, and report no port) and whenever the port was reported ready.
    fn next_completion(&mut self) -> Option<Completion>;
    /// Submitted operations whose completion was not fetched yet.
    fn in_flight(&self) -> u32;
}

impl Op {
    /// Bytes on the disk that the operation is about: offset and length. A flush is about none.
    pub fn range(&self) -> (u64, u64) {
        match self {
            Op::Read { offset, buf } | Op::Write { offset, buf, .. } => (*offset, buf.len()),
            Op::Discard { offset, len } | Op::WriteZeroes { offset, len, .. } => (*offset, *len),
            Op::Flush => (0, 0),
        }
    }

    /// Whether it changes the disk's content.
    pub fn changes(&self) -> bool {
        !matches!(self, Op::Read { .. } | Op::Flush)
    }

    /// Takes the buffers out of an operation that is not going to happen.
    pub fn into_buffers(self) -> Buffers {
        match self {
            Op::Read { buf, .. } | Op::Write { buf, .. } => buf,
            Op::Flush | Op::Discard { .. } | Op::WriteZeroes { .. } => Buffers::empty(),
        }
    }

    /// The checks every engine makes first; the error is an errno.
    pub(crate) fn check(&self, size: u64, logical_block: u32, read_only: bool) -> Result<(), i32> {
        if self.changes() && read_only {
            return Err(libc::EROFS);
        }
        let (offset, len) = self.range();
        let end = offset.checked_add(len).ok_or(libc::EINVAL)?;
        let misaligned = (offset | len) & u64::from(logical_block.saturating_sub(1)) != 0;
        if end > size || misaligned {
            return Err(libc::EINVAL);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn discard(offset: u64, len: u64) -> Op {
        Op::Discard { offset, len }
    }

    #[test]
    fn the_whole_disk_is_in_range_and_one_block_more_is_not() {
        assert_eq!(discard(0, 4096).check(4096, 512, false), Ok(()));
        assert_eq!(discard(4096, 0).check(4096, 512, false), Ok(()));
        assert_eq!(
            discard(512, 4096).check(4096, 512, false),
            Err(libc::EINVAL)
        );
        assert_eq!(discard(4608, 0).check(4096, 512, false), Err(libc::EINVAL));
    }

    #[test]
    fn an_offset_that_overflows_is_out_of_range() {
        assert_eq!(
            discard(u64::MAX - 511, 1024).check(!511, 512, false),
            Err(libc::EINVAL)
        );
    }

    #[test]
    fn offset_and_length_must_be_multiples_of_the_logical_block() {
        assert_eq!(
            discard(512, 4096).check(1 << 20, 4096, false),
            Err(libc::EINVAL)
        );
        assert_eq!(
            discard(4096, 512).check(1 << 20, 4096, false),
            Err(libc::EINVAL)
        );
        assert_eq!(discard(4096, 4096).check(1 << 20, 4096, false), Ok(()));
    }

    #[test]
    fn a_read_only_disk_refuses_changes_and_nothing_else() {
        assert_eq!(discard(0, 512).check(4096, 512, true), Err(libc::EROFS));
        assert_eq!(
            Op::WriteZeroes {
                offset: 0,
                len: 512,
                unmap: false
            }
            .check(4096, 512, true),
            Err(libc::EROFS)
        );
        assert_eq!(
            Op::Write {
                offset: 0,
                buf: Buffers::empty(),
                durable: false
            }
            .check(4096, 512, true),
            Err(libc::EROFS)
        );
        assert_eq!(
            Op::Read {
                offset: 0,
                buf: Buffers::empty()
            }
            .check(4096, 512, true),
            Ok(())
        );
        assert_eq!(Op::Flush.check(4096, 512, true), Ok(()));
    }
}
