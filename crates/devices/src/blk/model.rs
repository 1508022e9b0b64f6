//! A disk for tests: bytes in memory, everything it was asked written down, completions when the test says so.

use outboard_reactor::{Buffers, IoPort};
use outboard_storage::disk::{Completion, Disk, DiskQueue, Limits, Op};
use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

/// An operation as the disk was asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    Read {
        offset: u64,
        len: u64,
    },
    Write {
        offset: u64,
        len: u64,
        durable: bool,
    },
    Flush,
    Discard {
        offset: u64,
        len: u64,
    },
    WriteZeroes {
        offset: u64,
        len: u64,
        unmap: bool,
    },
}

pub struct ModelDisk {
    pub limits: Limits,
    pub read_only: bool,
    pub size: AtomicU64,
    control: Mutex<Control>,
}

#[derive(Default)]
struct Control {
    bytes: Vec<u8>,
    asked: Vec<Asked>,
    /// Completions wait for `release`.
    held: bool,
    /// Positions among the waiting operations, to be completed in this order.
    released: VecDeque<usize>,
    /// Which operations fail (by number, from 0).
    failures: BTreeMap<usize, io::ErrorKind>,
}

pub fn limits() -> Limits {
    Limits {
        logical_block: 512,
        physical_block: 4096,
        alignment_offset: 0,
        min_io: 4096,
        opt_io: 0,
        max_discard: 1 << 20,
        discard_granularity: 4096,
        max_write_zeroes: 1 << 20,
        write_zeroes_may_unmap: true,
    }
}

impl ModelDisk {
    /// A disk of `bytes`, which can do everything at once.
    pub fn new(bytes: Vec<u8>) -> ModelDisk {
        let size = AtomicU64::new(bytes.len() as u64);
        let control = Mutex::new(Control {
            bytes,
            ..Control::default()
        });
        ModelDisk {
            limits: limits(),
            read_only: false,
            size,
            control,
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.control.lock().unwrap().bytes.clone()
    }

    /// An I/O handle that needs no reactor.
    pub fn queue(self: &Arc<Self>) -> Box<dyn DiskQueue> {
        Box::new(ModelQueue {
            disk: Arc::clone(self),
            waiting: Vec::new(),
            number: 0,
        })
    }

    /// What was asked since the last call.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.control.lock().unwrap().asked)
    }

    /// From here on operations wait.
    pub fn hold(&self) {
        self.control.lock().unwrap().held = true;
    }

    /// Lets the waiting operation at `position` finish (after those released before it).
    pub fn release(&self, position: usize) {
        self.control.lock().unwrap().released.push_back(position);
    }

    /// The operation with this number (from 0, over the disk's life) fails.
    pub fn fail(&self, number: usize, kind: io::ErrorKind) {
        self.control.lock().unwrap().failures.insert(number, kind);
    }
}

impl Disk for ModelDisk {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn open_queue(&self, _port: IoPort) -> io::Result<Box<dyn DiskQueue>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn name(&self) -> &str {
        "model:"
    }
}

struct Waiting {
    number: usize,
    token: u32,
    op: Op,
}

struct ModelQueue {
    disk: Arc<ModelDisk>,
    waiting: Vec<Waiting>,
    number: usize,
}

impl DiskQueue for ModelQueue {
    fn submit(&mut self, token: u32, op: Op) {
        let asked = match &op {
            Op::Read { offset, buf } => Asked::Read {
                offset: *offset,
                len: buf.len(),
            },
            Op::Write {
                offset,
                buf,
                durable,
            } => Asked::Write {
                offset: *offset,
                len: buf.len(),
                durable: *durable,
            },
            Op::Flush => Asked::Flush,
            Op::Discard { offset, len } => Asked::Discard {
                offset: *offset,
                len: *len,
            },
            Op::WriteZeroes { offset, len, unmap } => Asked::WriteZeroes {
                offset: *offset,
                len: *len,
                unmap: *unmap,
            },
        };
        self.disk.control.lock().unwrap().asked.push(asked);
        self.waiting.push(Waiting {
            number: self.number,
            token,
            op,
        });
        self.number += 1;
    }

    fn next_completion(&mut self) -> Option<Completion> {
        let mut control = self.disk.control.lock().unwrap();
        if self.waiting.is_empty() {
            return None;
        }
        let position = if control.held {
            control.released.pop_front()?
        } else {
            0
        };
        let Waiting { number, token, op } = self.waiting.remove(position);
        if let Some(kind) = control.failures.remove(&number) {
            return Some(Completion {
                token,
                result: Err(kind.into()),
                buf: Buffers::empty(),
            });
        }
        Some(Completion {
            token,
            result: Ok(()),
            buf: control.carry_out(op),
        })
    }

    fn in_flight(&self) -> u32 {
        self.waiting.len() as u32
    }
}

impl Control {
    /// Panics where the device let through what it must not.
    fn carry_out(&mut self, op: Op) -> Buffers {
        let range = |offset: u64, len: u64| offset as usize..(offset + len) as usize;
        match op {
            Op::Read { offset, buf } => {
                assert_eq!(
                    buf.copy_from(0, &self.bytes[range(offset, buf.len())]) as u64,
                    buf.len()
                );
                buf
            }
            Op::Write { offset, buf, .. } => {
                assert_eq!(
                    buf.copy_to(0, &mut self.bytes[range(offset, buf.len())]) as u64,
                    buf.len()
                );
                buf
            }
            Op::Flush => Buffers::empty(),
            Op::Discard { offset, len } | Op::WriteZeroes { offset, len, .. } => {
                self.bytes[range(offset, len)].fill(0);
                Buffers::empty()
            }
        }
    }
}
