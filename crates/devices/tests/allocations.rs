//! A request costs no allocation: counted, from the pop to the publication, once a queue has warmed up.
// A panic is how a test fails, in its helpers too.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

use outboard_devices::blk::{Blk, BlkOptions};
use outboard_reactor::{Config, Reactor};
use outboard_storage::uri::{OpenOptions, open};
use outboard_virtio::{
    device::{Device, QueueSetup},
    mock::{Buffer, MockDriver, MockMemory},
    queue::Queue,
};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

/// The system's allocator, counting for each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    ALLOCATIONS.with(|count| count.set(count.get() + 1));
}

// SAFETY: every call goes to the system's allocator as it came; the counter neither allocates nor has a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Buffers of `count` requests, one after the other in guest memory.
fn requests(driver: &mut MockDriver, count: usize) -> Vec<Vec<Buffer>> {
    let kinds = [
        (VIRTIO_BLK_T_IN, 0, 4096),
        (VIRTIO_BLK_T_OUT, 4096, 0),
        (VIRTIO_BLK_T_FLUSH, 0, 0),
        (VIRTIO_BLK_T_GET_ID, 0, 20),
        (VIRTIO_BLK_T_WRITE_ZEROES, 32, 0),
        // Refused: no whole sector.
        (VIRTIO_BLK_T_IN, 0, 100),
    ];
    let one = |(kind, out, room): (u32, u32, u32)| {
        let header = driver.alloc(64, 64);
        let data = driver.alloc(4096, 4096);
        driver
            .memory()
            .write(header, &u64::from(kind).to_le_bytes());
        driver.memory().write(header + 8, &8u64.to_le_bytes());
        if kind == VIRTIO_BLK_T_WRITE_ZEROES {
            // Two segments: sectors 8 to 16 and 32 to 40.
            for (at, sector) in [(data, 8u64), (data + 16, 32)] {
                driver.memory().write(at, &sector.to_le_bytes());
                driver.memory().write(at + 8, &8u64.to_le_bytes());
            }
        }
        let mut buffers = vec![Buffer::readable(header, 16)];
        buffers.extend((out > 0).then(|| Buffer::readable(data, out)));
        buffers.extend((room > 0).then(|| Buffer::writable(data, room)));
        buffers.push(Buffer::writable(header + 32, 1));
        buffers
    };
    kinds.into_iter().cycle().take(count).map(one).collect()
}

/// Allocations in `batches` batches of requests on a warm queue, and the statuses that came back.
fn allocations(uri: &str, indirect: bool, batches: usize) -> (u64, Vec<u8>) {
    const BATCH: usize = 48;
    let reactor = Reactor::new(Config::default()).unwrap();
    let options = BlkOptions {
        num_queues: 1,
        queue_size: 256,
        serial: "s".into(),
        writeback: true,
    };
    let blk = Blk::new(open(uri, &OpenOptions::default()).unwrap(), options).unwrap();
    let memory = MockMemory::flat(16 << 20);
    let mut driver = MockDriver::new(&memory, 0, 256, 1 << VIRTIO_RING_F_INDIRECT_DESC);
    let mut queue = Queue::new(&driver.config(), memory.lease()).unwrap();
    let setup = QueueSetup {
        index: 0,
        features: blk.features(),
        port: reactor.port(),
    };
    let mut handler = blk.open_queue(setup).unwrap();
    let requests = requests(&mut driver, BATCH);
    let tables: Vec<u64> = (0..BATCH).map(|_| driver.alloc(64, 16)).collect();

    let mut counted = 0;
    for batch in 0..=batches {
        for (buffers, table) in requests.iter().zip(&tables) {
            let head = match indirect {
                true => driver.add_indirect(*table, buffers),
                false => driver.add(buffers),
            };
            head.expect("free descriptors");
        }
        driver.make_available();
        let before = ALLOCATIONS.get();
        handler.process(&mut queue, u32::MAX).unwrap();
        handler.complete(&mut queue).unwrap();
        let _ = queue.publish();
        // The first batch grows what a queue keeps: the slab, the lists of its disk.
        if batch > 0 {
            counted += ALLOCATIONS.get() - before;
        }
        let done = std::iter::from_fn(|| driver.take_used()).count();
        assert_eq!(done, BATCH, "these disks answer at once");
    }
    let status = |buffers: &Vec<Buffer>| memory.read(buffers.last().unwrap().addr, 1)[0];
    (counted, requests.iter().take(6).map(status).collect())
}

#[test]
fn a_warm_queue_allocates_nothing_whatever_the_request() {
    for indirect in [false, true] {
        let (counted, statuses) = allocations("ram:1M", indirect, 20);
        assert_eq!(statuses, [0, 0, 0, 0, 0, 1]);
        assert_eq!(
            counted, 0,
            "in 20 batches of 48 requests, indirect: {indirect}"
        );
    }
}

#[test]
fn the_counter_counts() {
    let before = ALLOCATIONS.get();
    drop(std::hint::black_box(Box::new(1)));
    assert_eq!(ALLOCATIONS.get() - before, 1);
}
