mod handshake;
mod hostile;
mod oracle;
mod refusals;
mod ring;

use super::{Chain, Queue};
use crate::memory::MemoryMap;
use crate::mock::{MockDriver, MockMemory};
use outboard_reactor::Buffers;

const EVENT_IDX: u64 = 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
const INDIRECT: u64 = 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

/// Guest addresses and lengths.
type Ranges = Vec<(u64, u64)>;
/// Head, readable and writable ranges of a chain.
type Layout = (u16, Ranges, Ranges);

/// A ring of `size` at guest address 0 of `memory`, both ends.
fn ring(memory: &MockMemory, size: u16, features: u64) -> (MockDriver, Queue) {
    let driver = MockDriver::new(memory, 0, size, features);
    let queue = Queue::new(&driver.config(), memory.lease()).unwrap();
    (driver, queue)
}

/// Segments of a buffer list as guest addresses and lengths.
fn segments(map: &MemoryMap, buffers: &Buffers) -> Ranges {
    let guest = |host: usize| {
        map.regions()
            .find_map(|region| {
                let (base, _) = map.window(region.guest_addr)?.host(region.guest_addr)?;
                let offset = (host as u64).checked_sub(base as u64)?;
                (offset < region.size).then(|| region.guest_addr + offset)
            })
            .expect("a segment lies in a region")
    };
    let segments = buffers.iovecs().iter();
    segments
        .map(|iov| (guest(iov.iov_base as usize), iov.iov_len as u64))
        .collect()
}

fn laid_out(queue: &Queue, chain: &Chain) -> Layout {
    let map = queue.memory();
    (
        chain.head,
        segments(map, &chain.readable),
        segments(map, &chain.writable),
    )
}
