//! A driver that writes nonsense into the ring while the device reads it.
use super::{EVENT_IDX, INDIRECT};
use crate::mock::{MockDriver, MockMemory};
use crate::queue::{Queue, QueueConfig};
use std::sync::atomic::{AtomicBool, Ordering};

const SIZE: u16 = 16;

/// Random stores that now and then make sense.
fn scribble(memory: &MockMemory, driver: &MockDriver, random: &mut fastrand::Rng) {
    let config = driver.config();
    let index = random.u16(..);
    match random.u8(0..10) {
        0..4 => {
            let addr = config.desc + 16 * u64::from(index % SIZE);
            memory.store(addr, random.u64(0..0x1_8000), Ordering::Relaxed);
        }
        4..7 => {
            let len =
                u64::from(random.u32(..) & *random.choice(&[0x70, 0xfff, u32::MAX]).unwrap_or(&0));
            let (flags, next) = (random.u64(0..8), random.u64(0..u64::from(SIZE) + 1));
            let addr = *random.choice(&[config.desc, 0x4000, 0x5001]).unwrap_or(&0);
            let addr = addr + 16 * u64::from(index % SIZE) + 8;
            memory.write(addr, &(len | flags << 32 | next << 48).to_le_bytes());
        }
        7 => memory.store(
            config.avail + 4 + 2 * u64::from(index % SIZE),
            random.u16(0..SIZE + 1),
            Ordering::Relaxed,
        ),
        8 => {
            let idx: u16 = memory.load(config.avail + 2, Ordering::Relaxed);
            driver.set_avail_idx(idx.wrapping_add(random.u16(0..4)));
        }
        _ => driver.set_used_event(index),
    }
}

#[test]
fn nonsense_written_under_the_device_is_refused_or_harmless_and_bounded() {
    let memory = MockMemory::new(&[(0, 0x8000), (0x8000, 0x8000)]);
    let mut driver = MockDriver::new(&memory, 0, SIZE, INDIRECT | EVENT_IDX);
    driver.alloc(0, 1);
    let config = driver.config();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let (memory, driver, stop) = (&memory, &driver, &stop);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed);
                while !stop.load(Ordering::Relaxed) {
                    scribble(memory, driver, &mut random);
                }
            });
        }
        let lease = memory.lease();
        let mut queue = Queue::new(&config, lease.clone()).unwrap();
        let (mut popped, mut refused) = (0u32, 0u32);
        let mut in_flight = std::collections::BTreeSet::new();
        for round in 0..200_000u32 {
            match queue.pop() {
                Ok(Some(chain)) => {
                    popped += 1;
                    assert!(
                        chain.head < SIZE && in_flight.insert(chain.head),
                        "heads are unique"
                    );
                    assert!(chain.readable.len() + chain.writable.len() <= 1 << 32);
                    // At most two pieces per descriptor, in two regions; a table of at most all memory.
                    let pieces = chain.readable.iovecs().len() + chain.writable.iovecs().len();
                    assert!(
                        pieces <= 2 * (usize::from(SIZE) + 0x1_0000 / 16),
                        "{pieces}"
                    );
                    for iov in chain
                        .readable
                        .iovecs()
                        .iter()
                        .chain(chain.writable.iovecs())
                    {
                        assert!(within(&lease, iov), "every segment lies in a region");
                    }
                    if round % 3 > 0 {
                        in_flight.remove(&chain.head);
                        queue.push_used(chain.head, 0).unwrap();
                    }
                }
                Ok(None) => {
                    let _ = queue.publish();
                    queue.mute_kicks();
                    let _ = queue.arm_kicks();
                }
                Err(_) => {
                    refused += 1;
                    // As after a reset: another queue, from where avail.idx is now.
                    let next_avail = memory
                        .load::<u16>(config.avail + 2, Ordering::Relaxed)
                        .wrapping_sub(4);
                    queue = Queue::new(
                        &QueueConfig {
                            next_avail,
                            ..config
                        },
                        lease.clone(),
                    )
                    .unwrap();
                    in_flight.clear();
                }
            }
            assert!(queue.in_flight() <= SIZE && usize::from(queue.in_flight()) == in_flight.len());
        }
        stop.store(true, Ordering::Relaxed);
        assert!(
            popped > 1000 && refused > 1000,
            "popped {popped}, refused {refused}"
        );
    });
}

fn within(map: &crate::memory::MemoryMap, iov: &libc::iovec) -> bool {
    map.regions().any(|region| {
        let (base, _) = map
            .window(region.guest_addr)
            .unwrap()
            .host(region.guest_addr)
            .unwrap();
        let offset = (iov.iov_base as u64).wrapping_sub(base as u64);
        iov.iov_len > 0 && offset < region.size && iov.iov_len as u64 <= region.size - offset
    })
}
