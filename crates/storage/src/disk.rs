//! The contract every disk keeps.
use outboard_reactor::{Buffers, IoPort};
use std::io;

/// A disk, shared by all its queues.
pub trait Disk: Send + Sync {
    /// Bytes; a multiple of `limits().logical_block`. May change (resize).
    fn size(&self) -> u64;
    fn limits(&self) -> Limits;
    fn is_read_only(&self) -> bool;
    /// An I/O handle for the calling worker thread.
    fn open_queue(&self, port: IoPort) -> io::Result<Box<dyn DiskQueue>>;
    /// For log lines: the URI.
    fn name(&self) -> &str;
}
/// What the disk's bottom layer prefers and can do. All in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits { /// smallest addressable unit (512 or 4096 …)
    pub logical_block: u32, pub physical_block: u32, /// offset of the first aligned logical block
    pub alignment_offset: u32, /// 0: not known
    pub min_io: u32, pub opt_io: u32,
    /// 0: not supported
    pub max_discard: u64, pub discard_granularity: u32, /// 0: not supported
    pub max_write_zeroes: u64, /// write zeroes may release the space (unmap)
    pub write_zeroes_may_unmap: bool }

pub enum Op {
    Read { offset: u64, buf: Buffers },
    /// `durable`: on stable storage when it completes (write-through).
    Write { offset: u64, buf: Buffers, durable: bool },
    Flush,
    Discard { offset: u64, len: u64 },
    WriteZeroes { offset: u64, len: u64, unmap: bool },
}
/// `token` of the submit; the buffers come back for reuse (empty for operations without).
pub struct Completion { pub token: u32, pub result: io::Result<()>, pub buf: Buffers }

/// One worker's I/O handle. Offsets and lengths were checked against `size` by the caller but may race with a resize: an
/// operation out of range completes with an error. Reads past the end of a shrunk file read zeroes.
pub trait DiskQueue {
    /// Never blocks, never fails: a failure is a completion. No syscall unless the ring is full.
    fn submit(&mut self, token: u32, op: Op);
    /// A finished operation, in any order. Engines that finish at once have it ready right after `submit`.
    fn next_completion(&mut self) -> Option<Completion>;
    fn in_flight(&self) -> u32;
}
