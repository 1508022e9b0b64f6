//! `null:SIZE`: a disk that does nothing, at once. For measuring everything above the disk.
//!
//! A read leaves the buffer as it was, so that the figures show the vhost layer and no memory traffic; the guest sees its own
//! memory's old content, never anybody else's. Writes are thrown away. Who wants zeroes takes `ram:`, whose untouched pages read
//! as zeroes and cost no memory.
use crate::disk::{Completion, Disk, DiskQueue, Limits, Op};
use outboard_reactor::IoPort;
use std::{collections::VecDeque, io};

/// See the module.
pub struct NullDisk {
    name: String,
    size: u64,
    logical_block: u32,
    read_only: bool,
}

impl NullDisk {
    /// `size` is a multiple of `logical_block`, a power of two (checked by `uri::open`).
    pub(crate) fn new(name: String, size: u64, logical_block: u32, read_only: bool) -> NullDisk {
        NullDisk {
            name,
            size,
            logical_block,
            read_only,
        }
    }
}

impl Disk for NullDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn limits(&self) -> Limits {
        let changes = if self.read_only {
            0
        } else {
            u64::from(u32::MAX) & !u64::from(self.logical_block - 1)
        };
        Limits {
            logical_block: self.logical_block,
            physical_block: self.logical_block,
            alignment_offset: 0,
            min_io: 0,
            opt_io: 0,
            max_discard: changes,
            discard_granularity: self.logical_block,
            max_write_zeroes: changes,
            write_zeroes_may_unmap: !self.read_only,
        }
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn open_queue(&self, port: IoPort) -> io::Result<Box<dyn DiskQueue>> {
        Ok(Box::new(NullQueue {
            size: self.size,
            logical_block: self.logical_block,
            read_only: self.read_only,
            done: VecDeque::with_capacity(256),
            _port: port,
        }))
    }

    fn name(&self) -> &str {
        &self.name
    }
}

struct NullQueue {
    size: u64,
    logical_block: u32,
    read_only: bool,
    done: VecDeque<Completion>,
    /// Never used, but a queue's port lives as long as the queue.
    _port: IoPort,
}

impl DiskQueue for NullQueue {
    fn submit(&mut self, token: u32, op: Op) {
        let result = op
            .check(self.size, self.logical_block, self.read_only)
            .map_err(io::Error::from_raw_os_error);
        let buf = op.into_buffers();
        self.done.push_back(Completion { token, result, buf });
    }

    fn next_completion(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }

    fn in_flight(&self) -> u32 {
        u32::try_from(self.done.len()).unwrap_or(u32::MAX)
    }
}
