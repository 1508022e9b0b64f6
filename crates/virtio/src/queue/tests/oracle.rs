//! The same bytes through our walk and through the `virtio-queue` crate: the same chains must come out, and the same be refused.
//!
//! `virtio-queue` yields descriptors as long as it likes them and stops silently otherwise; what is refused follows from where it
//! stopped and from what it does not check itself (that buffers are in memory, and their order; a head in flight).
use super::{INDIRECT, Layout, Ranges, laid_out};
use crate::mock::{Descriptor, MockDriver, MockMemory};
use crate::queue::Queue;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeSet;
use virtio_queue::desc::split::Descriptor as OracleDescriptor;
use virtio_queue::{Queue as OracleQueue, QueueOwnedT, QueueT};
use vm_memory::{Address, GuestMemory, GuestMemoryMmap};

/// Two adjacent regions and one after a gap.
const REGIONS: [(u64, u64); 3] = [(0, 0x1_0000), (0x1_0000, 0x8000), (0x2_0000, 0x4000)];
/// Where tables are: one in the middle, one at an odd address, one across the border between two regions and within a descriptor.
const TABLES: [u64; 3] = [0x4000, 0x5003, 0x1_0000 - 56];
const TABLE_ENTRIES: usize = 6;

#[derive(Debug, Clone)]
struct Ring {
    size: u16,
    start: u16,
    table: Vec<Descriptor>,
    indirect: [Vec<Descriptor>; 3],
    heads: Vec<u16>,
    /// Added to avail.idx on top of what was filled in.
    ahead: u16,
}

fn addr() -> impl Strategy<Value = u64> {
    prop_oneof![
        12 => 0x6000u64..0xf000,
        4 => 0xff00u64..0x1_0100,
        2 => 0x1_7f00u64..0x1_8100,
        2 => 0x2_0000u64..0x2_4000,
        1 => any::<u64>(),
        1 => (0u64..64).prop_map(|back| u64::MAX - back),
    ]
}

fn len() -> impl Strategy<Value = u32> {
    prop_oneof![12 => 1u32..512, 3 => Just(0), 2 => 0x800u32..0x9000, 1 => any::<u32>()]
}

/// Any descriptor but one that points to a table.
fn buffer(entries: u16) -> impl Strategy<Value = Descriptor> {
    let writes = prop_oneof![3 => Just(0), 1 => Just(Descriptor::WRITE)];
    let goes_on = prop_oneof![1 => Just(0), 2 => Just(Descriptor::NEXT)];
    let junk = prop_oneof![9 => Just(0u16), 1 => any::<u16>().prop_map(|bits| bits & !7)];
    let next = prop_oneof![20 => 0..entries, 1 => any::<u16>()];
    (addr(), len(), writes, goes_on, junk, next).prop_map(
        |(addr, len, writes, goes_on, junk, next)| Descriptor {
            addr,
            len,
            flags: writes | goes_on | junk,
            next,
        },
    )
}

/// A descriptor that points to a table, or to what is none. Left out, since the oracle decides otherwise and `refusals` has it: NEXT
/// together with INDIRECT, and a table that reaches out of memory behind the entries in use.
fn indirect() -> impl Strategy<Value = Descriptor> {
    let table = prop_oneof![20 => proptest::sample::select(TABLES.to_vec()), 1 => Just(0x1_8000u64), 1 => Just(u64::MAX - 15)];
    let len = prop_oneof![15 => (1u32..=TABLE_ENTRIES as u32).prop_map(|n| 16 * n), 1 => 0u32..100, 1 => Just(0x10_0000u32)];
    (table, len, any::<bool>(), any::<u16>()).prop_map(|(addr, len, write, next)| {
        let write = if write { Descriptor::WRITE } else { 0 };
        Descriptor {
            addr,
            len,
            flags: Descriptor::INDIRECT | write,
            next,
        }
    })
}

fn descriptor(entries: u16) -> impl Strategy<Value = Descriptor> {
    prop_oneof![4 => buffer(entries), 1 => indirect()]
}

fn table() -> impl Strategy<Value = Vec<Descriptor>> {
    let entry = prop_oneof![40 => buffer(TABLE_ENTRIES as u16), 1 => indirect()];
    vec(entry, TABLE_ENTRIES)
}

/// Mends what random descriptors nearly always break, so that whole chains come about: they go forward, stay in memory, write last.
fn mend(mut descriptors: Vec<Descriptor>) -> Vec<Descriptor> {
    let count = descriptors.len() as u16;
    for (index, descriptor) in (0..).zip(&mut descriptors) {
        if descriptor.flags & Descriptor::INDIRECT != 0 {
            descriptor.addr = TABLES[usize::from(index) % TABLES.len()];
            descriptor.len = descriptor.len / 16 % TABLE_ENTRIES as u32 * 16 + 16;
            continue;
        }
        descriptor.addr = 0xe000 + descriptor.addr % 0x9000;
        descriptor.len %= 0x1000;
        descriptor.flags &= !Descriptor::WRITE;
        if index >= count / 2 {
            descriptor.flags |= Descriptor::WRITE;
        }
        descriptor.next = descriptor.next.clamp(index + 1, index + 3);
        if descriptor.next >= count {
            descriptor.flags &= !Descriptor::NEXT;
        }
    }
    descriptors
}

fn any_ring() -> impl Strategy<Value = Ring> {
    (0u32..=5).prop_flat_map(|log| {
        let size = 1u16 << log;
        let heads = prop_oneof![20 => 0..size, 1 => any::<u16>()];
        let start = prop_oneof![any::<u16>(), 0xffe0u16..];
        let ahead = prop_oneof![15 => Just(0u16), 1 => any::<u16>()];
        let tables = (
            vec(descriptor(size), usize::from(size)),
            [table(), table(), table()],
        );
        let mended = prop_oneof![3 => Just(true), 1 => Just(false)];
        (
            tables,
            vec(heads, 1..=usize::from(size)),
            start,
            ahead,
            mended,
        )
            .prop_map(
                move |((mut table, mut indirect), mut heads, start, ahead, mended)| {
                    if mended {
                        table = mend(table);
                        indirect = indirect.map(mend);
                        let mut seen = BTreeSet::new();
                        heads.retain(|head| seen.insert(*head));
                    }
                    Ring {
                        size,
                        start,
                        table,
                        indirect,
                        heads,
                        ahead,
                    }
                },
            )
    })
}

fn lay_out(ring: &Ring) -> (MockMemory, MockDriver) {
    let memory = MockMemory::new(&REGIONS);
    let mut driver = MockDriver::starting_at(&memory, 0, ring.size, INDIRECT, ring.start);
    for (index, descriptor) in (0..).zip(&ring.table) {
        driver.write_descriptor(index, *descriptor);
    }
    for (addr, entries) in TABLES.iter().zip(&ring.indirect) {
        driver.write_table(*addr, entries);
    }
    for head in &ring.heads {
        driver.offer(*head);
    }
    driver.set_avail_idx(
        ring.start
            .wrapping_add(ring.heads.len() as u16)
            .wrapping_add(ring.ahead),
    );
    (memory, driver)
}

/// Chains until the first that is refused; true if one was.
fn ours(memory: &MockMemory, driver: &MockDriver) -> (Vec<Layout>, bool) {
    let mut queue = Queue::new(&driver.config(), memory.lease()).unwrap();
    let mut chains = vec![];
    loop {
        match queue.pop() {
            Ok(Some(chain)) => chains.push(laid_out(&queue, &chain)),
            Ok(None) => return (chains, false),
            Err(_) => return (chains, true),
        }
    }
}

fn oracle(memory: &MockMemory, driver: &MockDriver) -> (Vec<Layout>, bool) {
    let guest = memory.guest();
    let config = driver.config();
    let mut queue = OracleQueue::new(config.size).unwrap();
    queue.set_size(config.size);
    queue
        .try_set_desc_table_address(vm_memory::GuestAddress(config.desc))
        .unwrap();
    queue
        .try_set_avail_ring_address(vm_memory::GuestAddress(config.avail))
        .unwrap();
    queue
        .try_set_used_ring_address(vm_memory::GuestAddress(config.used))
        .unwrap();
    queue.set_next_avail(config.next_avail);
    queue.set_ready(true);
    assert!(queue.is_valid(guest));

    let mut chains = vec![];
    let mut in_flight = BTreeSet::new();
    let Ok(available) = queue.iter(guest) else {
        return (chains, true);
    };
    for chain in available {
        let head = chain.head_index();
        let descriptors: Vec<_> = chain.collect();
        let complete = descriptors.last().is_some_and(|last| !last.has_next());
        match read(guest, &descriptors) {
            Some((readable, writable)) if complete && in_flight.insert(head) => {
                chains.push((head, readable, writable))
            }
            _ => return (chains, true),
        }
    }
    (chains, false)
}

/// What the oracle's descriptors mean: `None` when a buffer is not in memory or readable after writable.
fn read(guest: &GuestMemoryMmap, descriptors: &[OracleDescriptor]) -> Option<(Ranges, Ranges)> {
    let (mut readable, mut writable) = (vec![], vec![]);
    for descriptor in descriptors.iter().filter(|descriptor| descriptor.len() > 0) {
        let list = match descriptor.is_write_only() {
            true => &mut writable,
            false if writable.is_empty() => &mut readable,
            false => return None,
        };
        let (addr, len) = (descriptor.addr(), descriptor.len() as usize);
        addr.checked_add(len as u64)?;
        if !guest.check_range(addr, len, vm_memory::Permissions::Write) {
            return None;
        }
        // Cut at the regions' borders.
        let end = addr.raw_value() + len as u64;
        for (start, size) in REGIONS {
            let (from, to) = (start.max(addr.raw_value()), (start + size).min(end));
            if from < to {
                list.push((from, to - from));
            }
        }
    }
    Some((readable, writable))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn what_is_popped_and_what_is_refused_is_what_virtio_queue_says(ring in any_ring()) {
        let (memory, driver) = lay_out(&ring);
        prop_assert_eq!(ours(&memory, &driver), oracle(&memory, &driver));
    }
}

/// The property above is worth something only if its rings are neither all good nor all broken.
#[test]
fn the_rings_of_the_comparison_are_of_every_kind() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let (mut whole, mut broken, mut chains, mut scattered, mut indirect) = (0, 0, 0, 0, 0);
    for _ in 0..500 {
        let ring = any_ring().new_tree(&mut runner).unwrap().current();
        let (memory, driver) = lay_out(&ring);
        let (popped, refused) = ours(&memory, &driver);
        if refused {
            broken += 1
        } else {
            whole += 1
        }
        chains += popped.len();
        scattered += popped
            .iter()
            .filter(|(_, readable, writable)| readable.len() + writable.len() > 2)
            .count();
        let uses_table = |head: u16| {
            ring.table
                .get(usize::from(head))
                .is_some_and(|first| first.flags & Descriptor::INDIRECT != 0)
        };
        indirect += popped.iter().filter(|(head, ..)| uses_table(*head)).count();
    }
    let seen = format!(
        "whole {whole}, broken {broken}, chains {chains}, of several segments {scattered}, indirect {indirect}"
    );
    assert!(
        whole > 50 && broken > 50 && chains > 300 && scattered > 100 && indirect > 50,
        "{seen}"
    );
    println!("{seen}");
}
