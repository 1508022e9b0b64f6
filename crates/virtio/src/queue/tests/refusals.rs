//! Every way in which a ring can be broken, by the section of virtio 1.3 that it breaks.
use super::{INDIRECT, ring};
use crate::memory::OutOfMemory;
use crate::mock::{Buffer, Descriptor, MockDriver, MockMemory};
use crate::queue::{Queue, QueueConfig, QueueError};

const NEXT: u16 = Descriptor::NEXT;
const WRITE: u16 = Descriptor::WRITE;
const TABLE: u16 = Descriptor::INDIRECT;

/// Offers descriptor 0 of a ring of 8 laid out by `prepare`; the error, after which nothing may be consumed.
fn broken(features: u64, prepare: impl FnOnce(&mut MockDriver)) -> QueueError {
    let memory = MockMemory::new(&[(0, 0x8000), (0x8000, 0x8000)]);
    let (mut driver, mut queue) = ring(&memory, 8, features);
    driver.offer(0);
    prepare(&mut driver);
    driver.make_available();
    let error = queue
        .pop()
        .map(|chain| chain.map(|chain| chain.head))
        .unwrap_err();
    assert_eq!(
        (queue.next_avail(), queue.in_flight()),
        (0, 0),
        "consumed by {error}"
    );
    assert_eq!(
        queue.pop().map(|_| ()),
        Err(error.clone()),
        "the same again"
    );
    error
}

fn chain(driver: &MockDriver, descriptors: &[(u64, u32, u16, u16)]) {
    for (index, &(addr, len, flags, next)) in (0..).zip(descriptors) {
        driver.write_descriptor(
            index,
            Descriptor {
                addr,
                len,
                flags,
                next,
            },
        );
    }
}

fn table(driver: &MockDriver, addr: u64, descriptors: &[(u64, u32, u16, u16)]) {
    let entries = descriptors
        .iter()
        .map(|&(addr, len, flags, next)| Descriptor {
            addr,
            len,
            flags,
            next,
        });
    driver.write_table(addr, &entries.collect::<Vec<_>>());
}

fn start(change: impl FnOnce(&mut QueueConfig)) -> Result<(), QueueError> {
    let memory = MockMemory::new(&[(0, 0x8000), (0x8000, 0x8000), (0x20_0004, 0x1000)]);
    let mut config = MockDriver::new(&memory, 0, 8, 0).config();
    change(&mut config);
    Queue::new(&config, memory.lease()).map(|_| ())
}

#[test]
fn s2_7_the_size_is_a_power_of_two_up_to_32768() {
    for size in [0, 3, 6, 32769, 65535] {
        assert_eq!(
            start(|config| config.size = size),
            Err(QueueError::Size(size))
        );
    }
    let memory = MockMemory::flat(0x100_0000);
    for size in [1, 2, 32768] {
        ring(&memory, size, 0);
    }
}

#[test]
fn s2_7_the_areas_are_aligned_to_16_2_and_4() {
    let expect = |part, addr, align| Err(QueueError::Misaligned { part, addr, align });
    assert_eq!(
        start(|config| config.desc = 0x1008),
        expect("descriptor table", 0x1008, 16)
    );
    assert_eq!(
        start(|config| config.avail = 0x1001),
        expect("available ring", 0x1001, 2)
    );
    assert_eq!(
        start(|config| config.used = 0x1002),
        expect("used ring", 0x1002, 4)
    );
    // The region's guest address is odd to its mapping, so an aligned guest address is a misaligned host address.
    assert_eq!(
        start(|config| config.desc = 0x20_0010),
        expect("descriptor table", 0x20_0010, 16)
    );
}

#[test]
fn s2_7_each_area_lies_in_one_region_with_its_event_field() {
    let sizes = [
        ("descriptor table", 128),
        ("available ring", 22),
        ("used ring", 70),
    ];
    for (place, (part, len)) in sizes.into_iter().enumerate() {
        let at = |addr| {
            start(|config| *[&mut config.desc, &mut config.avail, &mut config.used][place] = addr)
        };
        let unmapped = |addr| Err(QueueError::Unmapped { part, addr, len });
        let aligned = len.next_multiple_of(16);
        assert_eq!(at(0x8000 - aligned), Ok(()), "{part} up to the border");
        assert_eq!(at(0x1_0000 - aligned), Ok(()), "{part} up to the end");
        assert_eq!(
            at(0x8000 - aligned + 16),
            unmapped(0x8000 - aligned + 16),
            "{part} over a border"
        );
        assert_eq!(
            at(0x1_0000 - aligned + 16),
            unmapped(0x1_0000 - aligned + 16),
            "{part} over the end"
        );
        assert_eq!(at(0x10_0000), unmapped(0x10_0000), "{part} nowhere");
        assert_eq!(
            at(u64::MAX - 15),
            unmapped(u64::MAX - 15),
            "{part} at the end of the world"
        );
    }
    // Byte-exact where the alignment allows it: the event field is the last word.
    assert_eq!(start(|config| config.avail = 0x8000 - 22), Ok(()));
    assert!(start(|config| config.avail = 0x8000 - 20).is_err());
    assert_eq!(start(|config| config.used = 0x8000 - 72), Ok(()));
    assert!(start(|config| config.used = 0x8000 - 68).is_err());
}

#[test]
fn s2_7_13_3_avail_idx_is_at_most_the_size_ahead() {
    for avail_idx in [9, 0x8000, 0xffff] {
        let memory = MockMemory::flat(0x10_0000);
        let (driver, mut queue) = ring(&memory, 8, 0);
        driver.set_avail_idx(avail_idx);
        assert!(
            queue.has_avail() && queue.arm_kicks(),
            "so that the caller pops and sees it"
        );
        let error = queue.pop().map(|_| ()).unwrap_err();
        assert_eq!(
            error,
            QueueError::AvailIndex {
                avail_idx,
                next_avail: 0,
                size: 8
            }
        );
    }
}

#[test]
fn s2_7_6_a_head_is_below_the_size() {
    let memory = MockMemory::flat(0x10_0000);
    for head in [8, 64, 0xffff] {
        let (mut driver, mut queue) = ring(&memory, 8, 0);
        driver.offer(head);
        driver.make_available();
        assert_eq!(
            queue.pop().map(|_| ()),
            Err(QueueError::Index {
                index: head,
                size: 8
            })
        );
    }
}

#[test]
fn s2_7_13_a_head_in_flight_is_not_made_available_again() {
    let memory = MockMemory::flat(0x10_0000);
    let (mut driver, mut queue) = ring(&memory, 8, 0);
    let head = driver.add(&[Buffer::readable(0x5000, 8)]).unwrap();
    driver.offer(head);
    driver.make_available();
    assert!(queue.pop().unwrap().is_some());
    assert_eq!(queue.pop().map(|_| ()), Err(QueueError::HeadInFlight(head)));
    queue.push_used(head, 0).unwrap();
    let _ = queue.publish();
    assert_eq!(
        queue.pop().unwrap().unwrap().head,
        head,
        "once used it is the driver's again"
    );
}

#[test]
fn s2_7_13_no_more_requests_are_outstanding_than_there_are_descriptors() {
    let memory = MockMemory::flat(0x10_0000);
    let (mut driver, mut queue) = ring(&memory, 2, 0);
    driver.write_descriptor(
        0,
        Descriptor {
            addr: 0x5000,
            len: 8,
            flags: 0,
            next: 0,
        },
    );
    // One head over and over, used but never published: the driver cannot know that it is its own again.
    for _ in 0..2 {
        driver.offer(0);
        driver.make_available();
        let chain = queue.pop().unwrap().unwrap();
        queue.push_used(chain.head, 0).unwrap();
    }
    driver.offer(0);
    driver.make_available();
    assert_eq!(
        queue.pop().map(|_| ()),
        Err(QueueError::TooManyOutstanding(2))
    );
}

#[test]
fn s2_7_5_next_is_below_the_size() {
    let error = broken(0, |driver| chain(driver, &[(0x5000, 8, NEXT, 8)]));
    assert_eq!(error, QueueError::Index { index: 8, size: 8 });
    let error = broken(INDIRECT, |driver| {
        chain(driver, &[(0x5000, 32, TABLE, 0)]);
        table(driver, 0x5000, &[(0x6000, 8, NEXT, 2), (0x6000, 8, 0, 0)]);
    });
    assert_eq!(error, QueueError::Index { index: 2, size: 2 });
}

#[test]
fn s2_7_5_2_a_chain_does_not_loop() {
    let error = broken(0, |driver| {
        chain(driver, &[(0x5000, 8, NEXT, 1), (0x5000, 8, NEXT, 0)])
    });
    assert_eq!(error, QueueError::Endless { head: 0, size: 8 });
    let error = broken(0, |driver| chain(driver, &[(0x5000, 0, NEXT, 0)]));
    assert_eq!(
        error,
        QueueError::Endless { head: 0, size: 8 },
        "not even without bytes"
    );
    let error = broken(INDIRECT, |driver| {
        chain(driver, &[(0x5000, 48, TABLE, 0)]);
        table(
            driver,
            0x5000,
            &[
                (0x6000, 8, NEXT, 1),
                (0x6000, 8, NEXT, 2),
                (0x6000, 8, NEXT, 1),
            ],
        );
    });
    assert_eq!(error, QueueError::Endless { head: 0, size: 3 });
}

/// A front end that cuts guest memory into crumbs multiplies every buffer; what one chain may cost us stays bounded.
#[test]
fn a_chain_over_many_regions_is_bounded_in_pieces() {
    const CRUMBS: u64 = 100;
    let at = 0x100000;
    let crumbs = (0..CRUMBS).map(|n| (at + 16 * n, 16));
    let regions: Vec<_> = [(0, at)].into_iter().chain(crumbs).collect();
    let memory = MockMemory::new(&regions);
    let over_all = Buffer::writable(at, 16 * CRUMBS as u32);
    for (buffers, pieces) in [(327, Some(32700)), (328, None)] {
        let (mut driver, mut queue) = ring(&memory, 8, INDIRECT);
        let head = driver
            .add_indirect(0x1000, &vec![over_all; buffers])
            .unwrap();
        driver.make_available();
        let found = queue
            .pop()
            .map(|chain| chain.unwrap().writable.iovecs().len());
        assert_eq!(found, pieces.ok_or(QueueError::TooManyPieces(head)));
    }
}

#[test]
fn s2_7_5_2_a_chain_is_at_most_4_gib_long() {
    // Sparse memory: nothing of it is ever touched.
    let memory = MockMemory::flat(1 << 32);
    let (mut driver, mut queue) = ring(&memory, 8, 0);
    let half = 1 << 31;
    driver
        .add(&[Buffer::writable(0, half), Buffer::writable(0, half)])
        .unwrap();
    driver.make_available();
    assert_eq!(queue.pop().unwrap().unwrap().writable.len(), 1 << 32);
    let head = driver
        .add(&[
            Buffer::readable(0, half),
            Buffer::writable(0, half),
            Buffer::writable(0, 1),
        ])
        .unwrap();
    driver.make_available();
    assert_eq!(queue.pop().map(|_| ()), Err(QueueError::TooLong(head)));
}

#[test]
fn s2_7_4_2_readable_comes_before_writable() {
    let error = broken(0, |driver| {
        chain(driver, &[(0x5000, 8, NEXT | WRITE, 1), (0x5000, 8, 0, 0)])
    });
    assert_eq!(error, QueueError::Order(0));
    let error = broken(INDIRECT, |driver| {
        chain(
            driver,
            &[(0x5000, 8, NEXT | WRITE, 1), (0x5000, 16, TABLE, 0)],
        );
        table(driver, 0x5000, &[(0x6000, 8, 0, 0)]);
    });
    assert_eq!(
        error,
        QueueError::Order(0),
        "also across the start of a table"
    );
}

#[test]
fn a_buffer_lies_in_memory_from_its_first_byte_to_its_last() {
    for (addr, len) in [
        (0x1_0000, 1),
        (0xffff, 2),
        (0x7fff, 0x8002),
        (u64::MAX, 1),
        (u64::MAX, 2),
        (0x1000, u32::MAX),
    ] {
        for flags in [0, WRITE] {
            let error = broken(0, |driver| chain(driver, &[(addr, len, flags, 0)]));
            let range = OutOfMemory {
                addr,
                len: len.into(),
            };
            assert_eq!(error, QueueError::Memory { head: 0, range });
        }
    }
}

#[test]
fn s2_7_5_3_1_indirect_tables_are_negotiated() {
    let error = broken(0, |driver| {
        chain(driver, &[(0x5000, 16, TABLE, 0)]);
        table(driver, 0x5000, &[(0x6000, 8, 0, 0)]);
    });
    assert!(
        matches!(error, QueueError::Indirect { why, .. } if why.contains("negotiated")),
        "{error}"
    );
}

#[test]
fn s2_7_5_3_1_an_indirect_table_holds_no_other_table() {
    let error = broken(INDIRECT, |driver| {
        chain(driver, &[(0x5000, 16, TABLE, 0)]);
        table(driver, 0x5000, &[(0x5000, 16, TABLE, 0)]);
    });
    assert!(
        matches!(error, QueueError::Indirect { why, .. } if why.contains("within")),
        "{error}"
    );
}

#[test]
fn s2_7_5_3_1_an_indirect_table_ends_its_chain() {
    let error = broken(INDIRECT, |driver| {
        chain(driver, &[(0x5000, 16, TABLE | NEXT, 1), (0x6000, 8, 0, 0)]);
        table(driver, 0x5000, &[(0x6000, 8, 0, 0)]);
    });
    assert!(
        matches!(error, QueueError::Indirect { why, .. } if why.contains("next")),
        "{error}"
    );
}

#[test]
fn s2_7_5_3_an_indirect_table_is_whole_descriptors_at_least_one_at_most_32768() {
    for len in [0, 1, 15, 17, 16 * 32768 + 16, u32::MAX, u32::MAX - 15] {
        let error = broken(INDIRECT, |driver| chain(driver, &[(0x5000, len, TABLE, 0)]));
        assert_eq!(error, QueueError::IndirectLength { head: 0, len });
    }
}

#[test]
fn an_indirect_table_lies_in_memory_as_a_whole() {
    for (addr, len) in [
        (0x1_0000, 16),
        (0xfff8, 16),
        (0xffe0, 48),
        (u64::MAX - 7, 16),
    ] {
        let error = broken(INDIRECT, |driver| {
            chain(driver, &[(addr, len, TABLE, 0)]);
            if addr == 0xffe0 {
                table(driver, addr, &[(0x6000, 8, 0, 0)]);
            }
        });
        let range = OutOfMemory {
            addr,
            len: len.into(),
        };
        assert_eq!(error, QueueError::Memory { head: 0, range });
    }
}

#[test]
fn only_what_is_in_flight_can_be_used() {
    let memory = MockMemory::flat(0x10_0000);
    let (mut driver, mut queue) = ring(&memory, 8, 0);
    for head in [0, 7, 8, 0xffff] {
        assert_eq!(queue.push_used(head, 0), Err(QueueError::NotInFlight(head)));
    }
    let head = driver.add(&[Buffer::readable(0x5000, 8)]).unwrap();
    driver.make_available();
    assert!(queue.pop().unwrap().is_some());
    assert_eq!(queue.push_used(head, 0), Ok(()));
    assert_eq!(queue.push_used(head, 0), Err(QueueError::NotInFlight(head)));
    assert!(queue.publish());
    assert_eq!((driver.used_idx(), queue.in_flight()), (1, 0));
}

#[test]
fn the_loss_of_the_rings_own_memory_is_an_error_not_a_crash() {
    let memory = MockMemory::flat(0x10_0000);
    let (mut driver, mut queue) = ring(&memory, 8, 0);
    driver.add(&[Buffer::readable(0x5000, 8)]).unwrap();
    driver.make_available();
    memory.files()[0].1.set_len(0).unwrap();
    assert!(queue.pop().unwrap().is_none(), "zeros: nothing available");
    assert!(queue.memory().is_damaged());
    assert!(!queue.arm_kicks() && !queue.publish());
}
