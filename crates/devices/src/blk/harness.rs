//! A driver, a ring, a block device and a [`ModelDisk`], on one thread.

use super::{Blk, BlkOptions, model::ModelDisk};
use outboard_reactor::Reactor;
use outboard_storage::disk::Disk;
use outboard_virtio::{
    device::{Device, Progress, QueueHandler, QueueSetup},
    mock::{Buffer, MockDriver, MockMemory},
    queue::{Queue, QueueError},
};
use std::{collections::BTreeMap, sync::Arc};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

/// What room for data holds before the device writes to it.
pub const UNTOUCHED: u8 = 0xcc;

/// A request in the words of `struct virtio_blk_req`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Req {
    pub kind: u32,
    pub sector: u64,
    /// Data for the device to read.
    pub out: Vec<u8>,
    /// Bytes for the device to write, without the status.
    pub room: usize,
}

/// How a request is cut into descriptors.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    /// Byte positions in header and data.
    pub readable: Vec<usize>,
    /// Byte positions in room and status.
    pub writable: Vec<usize>,
    pub indirect: bool,
}

/// What the driver found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u8,
    pub room: Vec<u8>,
    pub used: u32,
}

/// Where an outstanding request's writable bytes are.
struct Sent {
    at: u64,
    room: usize,
}

/// `D`: the disk below, as the test sees it.
pub struct Harness<D: ?Sized = ModelDisk> {
    pub disk: Arc<D>,
    pub blk: Blk,
    pub memory: MockMemory,
    pub driver: MockDriver,
    pub queue: Queue,
    pub handler: Box<dyn QueueHandler>,
    sent: BTreeMap<u16, Sent>,
}

pub fn options() -> BlkOptions {
    BlkOptions {
        num_queues: 2,
        queue_size: 256,
        serial: "outboard-0001".into(),
        writeback: true,
    }
}

impl Harness {
    /// Everything that the device offers is negotiated.
    pub fn new(disk: ModelDisk) -> Harness {
        Harness::with(disk, options(), u64::MAX)
    }

    /// Of what the device offers, `mask` is negotiated.
    pub fn with(disk: ModelDisk, options: BlkOptions, mask: u64) -> Harness {
        let disk = Arc::new(disk);
        let blk = Blk::new(disk.clone(), options).expect("a device");
        let features = blk.features() & mask;
        blk.ack_features(features);
        let handler = Box::new(blk.handler(features, disk.queue()));
        Harness::assemble(disk, blk, handler)
    }
}

impl Harness<dyn Disk> {
    /// A disk of the storage crate, whose operations end through a reactor.
    pub fn on(reactor: &Reactor, disk: Arc<dyn Disk>) -> Harness<dyn Disk> {
        let blk = Blk::new(disk.clone(), options()).expect("a device");
        let features = blk.features();
        blk.ack_features(features);
        let setup = QueueSetup {
            index: 1,
            features,
            port: reactor.port(),
        };
        let handler = blk.open_queue(setup).expect("a queue");
        Harness::assemble(disk, blk, handler)
    }
}

impl<D: ?Sized> Harness<D> {
    fn assemble(disk: Arc<D>, blk: Blk, handler: Box<dyn QueueHandler>) -> Harness<D> {
        let memory = MockMemory::flat(64 << 20);
        let driver = MockDriver::new(&memory, 0, 256, 1 << VIRTIO_RING_F_INDIRECT_DESC);
        let queue = Queue::new(&driver.config(), memory.lease()).expect("a ring");
        Harness {
            disk,
            blk,
            memory,
            driver,
            queue,
            handler,
            sent: BTreeMap::new(),
        }
    }

    /// Fills in a request; its head.
    pub fn send(&mut self, req: &Req, layout: &Layout) -> u16 {
        let mut readable = req.kind.to_le_bytes().to_vec();
        readable.extend([0; 4]);
        readable.extend(req.sector.to_le_bytes());
        readable.extend(&req.out);
        let mut writable = vec![UNTOUCHED; req.room];
        writable.push(0xff);
        let out_at = self.driver.alloc(readable.len() as u64, 1);
        let at = self.driver.alloc(writable.len() as u64, 1);
        self.memory.write(out_at, &readable);
        self.memory.write(at, &writable);
        let mut buffers = Vec::new();
        for (from, to) in pieces(readable.len(), &layout.readable) {
            buffers.push(Buffer::readable(out_at + from, (to - from) as u32));
        }
        for (from, to) in pieces(writable.len(), &layout.writable) {
            buffers.push(Buffer::writable(at + from, (to - from) as u32));
        }
        let head = if layout.indirect {
            let table = self.driver.alloc(16 * buffers.len() as u64, 16);
            self.driver.add_indirect(table, &buffers)
        } else {
            self.driver.add(&buffers)
        };
        let head = head.expect("free descriptors");
        self.sent.insert(head, Sent { at, room: req.room });
        head
    }

    /// One pass of the worker: what is available is popped, what is done is published.
    pub fn pass(&mut self) -> Result<Progress, QueueError> {
        self.driver.make_available();
        let progress = self.handler.process(&mut self.queue, u32::MAX)?;
        let _ = self.queue.publish();
        Ok(progress)
    }

    /// A pass after the disk's port became ready.
    pub fn completions(&mut self) {
        self.handler
            .complete(&mut self.queue)
            .expect("heads in flight");
        let _ = self.queue.publish();
    }

    /// Used requests in the device's order.
    pub fn answers(&mut self) -> Vec<(u16, Answer)> {
        let mut answers = Vec::new();
        while let Some((head, used)) = self.driver.take_used() {
            let Sent { at, room } = self.sent.remove(&head).expect("sent");
            let status = self.memory.read(at + room as u64, 1)[0];
            answers.push((
                head,
                Answer {
                    status,
                    room: self.memory.read(at, room),
                    used,
                },
            ));
        }
        answers
    }

    /// One request that the disk answers at once.
    pub fn ask(&mut self, req: &Req) -> Answer {
        let head = self.send(req, &Layout::default());
        self.pass().expect("a whole ring");
        let mut answers = self.answers();
        assert_eq!(answers.len(), 1, "{req:?}");
        let (used, answer) = answers.remove(0);
        assert_eq!(used, head);
        answer
    }
}

/// `len` bytes cut at `cuts`: from and to of each piece that is not empty.
fn pieces(len: usize, cuts: &[usize]) -> Vec<(u64, u64)> {
    let mut cuts: Vec<u64> = cuts.iter().map(|cut| (*cut).min(len) as u64).collect();
    cuts.extend([0, len as u64]);
    cuts.sort_unstable();
    cuts.dedup();
    cuts.windows(2).map(|pair| (pair[0], pair[1])).collect()
}
