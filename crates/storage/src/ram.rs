//! `ram:SIZE`: a disk in this process's memory.
//!
//! The memory is one sparse anonymous mapping: a page costs memory once it was written, and a discard gives it back. Operations
//! are done inside `submit`. The content is gone when the last user of the disk is; a `Flush` has nothing to do.
//!
//! All queues copy to and from the mapping with no lock, as they would on a real disk: operations in flight at the same time on
//! overlapping ranges mix byte by byte.
use crate::disk::{Completion, Disk, DiskQueue, Limits, Op};
use mapping::Mapping;
use outboard_reactor::IoPort;
use std::{collections::VecDeque, io, sync::Arc};

/// Bytes that one discard or write-zeroes may cover: the worker does it inline, and a worker must not be away for long.
const MAX_INLINE_SPAN: u64 = 32 << 20;
/// Discards are effective in pages.
const PAGE: u32 = 4096;

/// See the module.
pub struct RamDisk {
    name: String,
    logical_block: u32,
    read_only: bool,
    memory: Arc<Mapping>,
}

impl RamDisk {
    /// `size` is a multiple of `logical_block`, a power of two (checked by `uri::open`).
    pub(crate) fn new(
        name: String,
        size: u64,
        logical_block: u32,
        read_only: bool,
    ) -> io::Result<RamDisk> {
        Ok(RamDisk {
            name,
            logical_block,
            read_only,
            memory: Arc::new(Mapping::new(size)?),
        })
    }
}

impl Disk for RamDisk {
    fn size(&self) -> u64 {
        self.memory.len()
    }

    fn limits(&self) -> Limits {
        let span = if self.read_only { 0 } else { MAX_INLINE_SPAN };
        Limits {
            logical_block: self.logical_block,
            physical_block: self.logical_block.max(PAGE),
            alignment_offset: 0,
            min_io: 0,
            opt_io: 0,
            max_discard: span,
            discard_granularity: self.logical_block.max(PAGE),
            max_write_zeroes: span,
            write_zeroes_may_unmap: !self.read_only,
        }
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn open_queue(&self, port: IoPort) -> io::Result<Box<dyn DiskQueue>> {
        Ok(Box::new(RamQueue {
            logical_block: self.logical_block,
            read_only: self.read_only,
            memory: Arc::clone(&self.memory),
            done: VecDeque::with_capacity(256),
            _port: port,
        }))
    }

    fn name(&self) -> &str {
        &self.name
    }
}

struct RamQueue {
    logical_block: u32,
    read_only: bool,
    memory: Arc<Mapping>,
    done: VecDeque<Completion>,
    /// Never used, but a queue's port lives as long as the queue.
    _port: IoPort,
}

impl RamQueue {
    fn run(&self, op: &Op) -> Result<(), i32> {
        op.check(self.memory.len(), self.logical_block, self.read_only)?;
        match op {
            Op::Read { offset, buf } => self.memory.read(*offset, buf),
            Op::Write { offset, buf, .. } => self.memory.write(*offset, buf),
            Op::Flush => Ok(()),
            Op::Discard { offset, len } => self.memory.release(*offset, *len),
            Op::WriteZeroes {
                offset,
                len,
                unmap: true,
            } => self.memory.release(*offset, *len),
            Op::WriteZeroes {
                offset,
                len,
                unmap: false,
            } => self.memory.zero(*offset, *len),
        }
    }
}

impl DiskQueue for RamQueue {
    fn submit(&mut self, token: u32, op: Op) {
        let result = self.run(&op).map_err(io::Error::from_raw_os_error);
        self.done.push_back(Completion {
            token,
            result,
            buf: op.into_buffers(),
        });
    }

    fn next_completion(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }

    fn in_flight(&self) -> u32 {
        u32::try_from(self.done.len()).unwrap_or(u32::MAX)
    }
}

#[allow(unsafe_code)]
mod mapping {
    //! The memory itself. Nothing makes a reference to its bytes, since other threads change them at any time: they are copied
    //! through raw pointers, and the ranges are checked here once more.
    use outboard_reactor::Buffers;
    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
    use std::{ffi::c_void, io, ptr};

    /// A private, sparse, zero-initialized mapping.
    pub(super) struct Mapping {
        base: *mut u8,
        len: usize,
        page: usize,
    }

    // SAFETY: the mapping belongs to no thread, and `Mapping` gives out no reference or pointer into it.
    unsafe impl Send for Mapping {}
    // SAFETY: all methods only copy bytes in and out through raw pointers; concurrent ones mix bytes, which the disk contract
    // allows, and no typed value is ever read from the memory.
    unsafe impl Sync for Mapping {}

    impl Mapping {
        pub(super) fn new(len: u64) -> io::Result<Mapping> {
            let len =
                usize::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
            // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
            let base = unsafe {
                mmap_anonymous(
                    ptr::null_mut(),
                    len,
                    ProtFlags::READ | ProtFlags::WRITE,
                    MapFlags::PRIVATE | MapFlags::NORESERVE,
                )?
            };
            Ok(Mapping {
                base: base.cast(),
                len,
                page: rustix::param::page_size(),
            })
        }

        pub(super) fn len(&self) -> u64 {
            self.len as u64
        }

        /// The address of `offset`, if `len` bytes are there.
        fn at(&self, offset: u64, len: u64) -> Result<(*mut u8, usize), i32> {
            let end = offset.checked_add(len).ok_or(libc::EINVAL)?;
            if end > self.len() {
                return Err(libc::EINVAL);
            }
            // Both fit usize, since they are at most `self.len`.
            Ok((self.base.wrapping_add(offset as usize), len as usize))
        }

        pub(super) fn read(&self, offset: u64, buf: &Buffers) -> Result<(), i32> {
            let (mut from, _) = self.at(offset, buf.len())?;
            for segment in buf.iovecs() {
                // SAFETY: `at` checked that the mapping holds the sum of all segments from `offset` on; `Buffers` promises that
                // its segments are writable; the two cannot overlap, because the mapping is never given out.
                unsafe {
                    ptr::copy_nonoverlapping(from, segment.iov_base.cast::<u8>(), segment.iov_len)
                };
                from = from.wrapping_add(segment.iov_len);
            }
            Ok(())
        }

        pub(super) fn write(&self, offset: u64, buf: &Buffers) -> Result<(), i32> {
            let (mut to, _) = self.at(offset, buf.len())?;
            for segment in buf.iovecs() {
                // SAFETY: as in `read`, with the roles exchanged.
                unsafe {
                    ptr::copy_nonoverlapping(segment.iov_base.cast::<u8>(), to, segment.iov_len)
                };
                to = to.wrapping_add(segment.iov_len);
            }
            Ok(())
        }

        pub(super) fn zero(&self, offset: u64, len: u64) -> Result<(), i32> {
            let (at, len) = self.at(offset, len)?;
            // SAFETY: `at` checked the range.
            unsafe { ptr::write_bytes(at, 0, len) };
            Ok(())
        }

        /// Zeroes the range; whole pages in it are given back to the kernel.
        pub(super) fn release(&self, offset: u64, len: u64) -> Result<(), i32> {
            let (_, _) = self.at(offset, len)?;
            let page = self.page as u64;
            let end = offset + len;
            let first = offset.next_multiple_of(page);
            let last = end - end % page;
            if first >= last {
                return self.zero(offset, len);
            }
            self.zero(offset, first - offset)?;
            self.zero(last, end - last)?;
            let (at, len) = self.at(first, last - first)?;
            // SAFETY: the pages are inside our own private mapping; dropping them makes them read as zeroes, which is what the
            // caller asked for.
            match unsafe { madvise(at.cast::<c_void>(), len, Advice::LinuxDontNeed) } {
                Ok(()) => Ok(()),
                // Locked memory (mlockall) cannot be given back, but must read as zeroes all the same.
                Err(_) => self.zero(first, last - first),
            }
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: the mapping is ours and nobody else can name it any more. It cannot fail for a range that was mapped whole.
            let _ = unsafe { munmap(self.base.cast(), self.len) };
        }
    }
}
