//! What a sound ring does.
use super::{EVENT_IDX, INDIRECT, laid_out, ring};
use crate::mock::{Buffer, Descriptor, MockDriver, MockMemory};
use crate::queue::{Queue, QueueConfig, QueueError};
use std::rc::Rc;
use std::sync::Arc;

#[test]
fn a_chain_is_readable_then_writable_segments_in_order() {
    let memory = MockMemory::flat(0x10_0000);
    let (mut driver, mut queue) = ring(&memory, 8, 0);
    let layout = [
        Buffer::readable(0x5000, 16),
        Buffer::readable(0x7000, 0x800),
        Buffer::writable(0x6000, 0x1000),
        Buffer::writable(0x9001, 1),
    ];
    let head = driver.add(&layout).unwrap();
    assert!(
        !queue.has_avail() && queue.pop().unwrap().is_none(),
        "not available yet"
    );
    driver.make_available();
    assert!(queue.has_avail());
    let chain = queue.pop().unwrap().unwrap();
    let expected = (
        head,
        vec![(0x5000, 16), (0x7000, 0x800)],
        vec![(0x6000, 0x1000), (0x9001, 1)],
    );
    assert_eq!(laid_out(&queue, &chain), expected);
    assert_eq!(
        (queue.in_flight(), queue.next_avail(), queue.next_used()),
        (1, 1, 0)
    );
    assert!(!queue.has_avail() && queue.pop().unwrap().is_none());
}

#[test]
fn a_buffer_over_adjacent_regions_is_several_segments() {
    let memory = MockMemory::new(&[(0, 0x8000), (0x8000, 0x1000), (0x9000, 0x8000)]);
    let (mut driver, mut queue) = ring(&memory, 8, 0);
    let head = driver
        .add(&[
            Buffer::readable(0x7ff0, 0x1020),
            Buffer::writable(0x8fff, 1),
        ])
        .unwrap();
    driver.make_available();
    let chain = queue.pop().unwrap().unwrap();
    let readable = vec![(0x7ff0, 0x10), (0x8000, 0x1000), (0x9000, 0x10)];
    assert_eq!(
        laid_out(&queue, &chain),
        (head, readable, vec![(0x8fff, 1)])
    );
    assert_eq!(chain.readable.len(), 0x1020);
}

#[test]
fn buffers_without_bytes_are_skipped_wherever_they_point() {
    let memory = MockMemory::flat(0x10_0000);
    let (mut driver, mut queue) = ring(&memory, 8, 0);
    let layout = [
        Buffer::readable(u64::MAX, 0),
        Buffer::writable(0, 0),
        Buffer::readable(0x5000, 4),
        Buffer::writable(0x6000, 4),
        Buffer::readable(0x7000, 0),
    ];
    let head = driver.add(&layout).unwrap();
    driver.make_available();
    let chain = queue.pop().unwrap().unwrap();
    assert_eq!(
        laid_out(&queue, &chain),
        (head, vec![(0x5000, 4)], vec![(0x6000, 4)])
    );

    let empty = driver.add(&[Buffer::readable(0x5000, 0)]).unwrap();
    driver.make_available();
    let chain = queue.pop().unwrap().unwrap();
    assert_eq!(
        laid_out(&queue, &chain),
        (empty, vec![], vec![]),
        "a chain of nothing is the device's to judge"
    );
}

#[test]
fn an_indirect_table_has_any_alignment_and_may_run_over_regions() {
    let memory = MockMemory::new(&[(0, 0x8000), (0x8000, 0x8000)]);
    let (mut driver, mut queue) = ring(&memory, 8, INDIRECT);
    let layout = [
        Buffer::readable(0x5000, 1),
        Buffer::readable(0x5001, 2),
        Buffer::writable(0x5003, 3),
    ];
    let expected = (vec![(0x5000, 1), (0x5001, 2)], vec![(0x5003, 3)]);
    // Within a region; a border between two descriptors; a border within one, odd addresses.
    for table in [0x4000, 0x4003, 0x7ff0, 0x7fe0, 0x7ff3, 0x7fe9, 0x7fff] {
        let head = driver.add_indirect(table, &layout).unwrap();
        driver.make_available();
        let chain = queue.pop().unwrap().unwrap();
        let (found, readable, writable) = laid_out(&queue, &chain);
        assert_eq!(
            (found, (readable, writable)),
            (head, expected.clone()),
            "table at {table:#x}"
        );
        queue.push_used(head, 0).unwrap();
        let _ = queue.publish();
        assert_eq!(driver.take_used(), Some((head, 0)));
    }
}

#[test]
fn an_indirect_table_may_end_a_chain_and_be_longer_than_the_queue() {
    let memory = MockMemory::flat(0x10_0000);
    let (mut driver, mut queue) = ring(&memory, 2, INDIRECT);
    let plain = Descriptor {
        addr: 0x5000,
        len: 1,
        flags: Descriptor::NEXT,
        next: 1,
    };
    // 2.7.5.3.2: chained descriptors before the table are fine, and the WRITE flag of the table means nothing.
    let flags = Descriptor::INDIRECT | Descriptor::WRITE;
    driver.write_descriptor(0, plain);
    driver.write_descriptor(
        1,
        Descriptor {
            addr: 0x6000,
            len: 16 * 100,
            flags,
            next: 9,
        },
    );
    let entry = |n: u16| {
        let flags = Descriptor::WRITE | if n < 99 { Descriptor::NEXT } else { 0 };
        Descriptor {
            addr: 0x8000 + u64::from(n),
            len: 1,
            flags,
            next: n + 1,
        }
    };
    driver.write_table(0x6000, &(0..100).map(entry).collect::<Vec<_>>());
    driver.offer(0);
    driver.make_available();
    let chain = queue.pop().unwrap().unwrap();
    assert_eq!((chain.readable.len(), chain.writable.len()), (1, 100));
    assert_eq!(chain.writable.iovecs().len(), 100);
}

#[test]
fn used_elements_appear_with_publish_and_in_the_order_pushed() {
    let memory = MockMemory::flat(0x10_0000);
    let (mut driver, mut queue) = ring(&memory, 4, 0);
    let heads: Vec<u16> = (0..4)
        .map(|_| driver.add(&[Buffer::writable(0x5000, 8)]).unwrap())
        .collect();
    driver.make_available();
    while queue.pop().unwrap().is_some() {}
    assert!(!queue.publish(), "nothing pushed, nothing to signal");
    for (written, head) in heads.iter().rev().enumerate() {
        queue.push_used(*head, written as u32).unwrap();
    }
    assert_eq!(
        (driver.used_idx(), queue.next_used(), queue.in_flight()),
        (0, 0, 0)
    );
    assert!(queue.publish());
    assert_eq!((driver.used_idx(), queue.next_used()), (4, 4));
    let used: Vec<_> = std::iter::from_fn(|| driver.take_used()).collect();
    assert_eq!(
        used,
        [(heads[3], 0), (heads[2], 1), (heads[1], 2), (heads[0], 3)]
    );
    assert!(!queue.publish());
}

#[test]
fn a_ring_goes_on_where_it_was_left_across_the_wrap_of_its_indices() {
    let memory = MockMemory::flat(0x10_0000);
    let mut driver = MockDriver::starting_at(&memory, 0, 4, 0, 0xfffe);
    let config = QueueConfig {
        next_used: None,
        ..driver.config()
    };
    for round in 0..3 {
        // Handed over to a new queue each time: the base given, used.idx read from the ring.
        let next_avail = 0xfffeu16.wrapping_add(3 * round);
        let mut queue = Queue::new(
            &QueueConfig {
                next_avail,
                ..config
            },
            memory.lease(),
        )
        .unwrap();
        assert_eq!(queue.next_used(), next_avail);
        for _ in 0..3 {
            let head = driver.add(&[Buffer::readable(0x5000, 8)]).unwrap();
            driver.make_available();
            assert_eq!(queue.pop().unwrap().unwrap().head, head);
            queue.push_used(head, 7).unwrap();
            assert!(queue.publish());
            assert_eq!(driver.take_used(), Some((head, 7)));
        }
    }
    assert_eq!(driver.used_idx(), 7);
}

#[test]
fn without_event_idx_flags_say_who_wants_to_hear() {
    let memory = MockMemory::flat(0x10_0000);
    let (mut driver, mut queue) = ring(&memory, 8, 0);
    let request = |driver: &mut MockDriver| {
        driver.add(&[Buffer::readable(0x5000, 8)]).unwrap();
        driver.make_available()
    };
    assert!(request(&mut driver), "a fresh ring is kicked");
    queue.mute_kicks();
    assert!(driver.kicks_muted() && !request(&mut driver));
    assert!(
        queue.arm_kicks(),
        "two requests wait, and no kick will tell"
    );
    assert!(!driver.kicks_muted());
    let mut heads = vec![];
    while let Some(chain) = queue.pop().unwrap() {
        heads.push(chain.head);
    }
    assert!(!queue.arm_kicks());
    assert!(request(&mut driver));

    driver.disable_calls();
    queue.push_used(heads[0], 0).unwrap();
    assert!(!queue.publish(), "VIRTQ_AVAIL_F_NO_INTERRUPT");
    assert!(driver.enable_calls(), "one used element came before");
    queue.push_used(heads[1], 0).unwrap();
    assert!(queue.publish());
}

#[test]
fn with_event_idx_one_event_covers_a_batch_and_flags_mean_nothing() {
    let memory = MockMemory::flat(0x10_0000);
    let mut driver = MockDriver::starting_at(&memory, 0, 16, EVENT_IDX, 0xfff8);
    let mut queue = Queue::new(&driver.config(), memory.lease()).unwrap();
    let request = |driver: &mut MockDriver, count| {
        (0..count).for_each(|_| assert!(driver.add(&[Buffer::readable(0x5000, 8)]).is_some()));
        driver.make_available()
    };
    assert!(!queue.arm_kicks());
    assert_eq!(driver.avail_event(), 0xfff8);
    assert!(
        request(&mut driver, 3),
        "the first after the event, in a batch"
    );
    queue.mute_kicks();
    assert!(!driver.kicks_muted(), "2.7.10: the flag stays 0");
    assert!(!request(&mut driver, 7), "nobody asked again");
    let mut heads = vec![];
    while let Some(chain) = queue.pop().unwrap() {
        heads.push(chain.head);
    }
    assert!(!queue.arm_kicks());
    assert_eq!(driver.avail_event(), 2);

    // The driver wants to hear of the sixth: used.idx 0xfffe.
    driver.set_used_event(0xfffd);
    for (count, wanted) in [(5, false), (1, true), (4, false)] {
        for head in heads.drain(..count) {
            queue.push_used(head, 0).unwrap();
        }
        assert_eq!(queue.publish(), wanted);
    }
    assert_eq!(queue.next_used(), 2);
}

#[test]
fn a_request_in_flight_keeps_the_memory_it_was_popped_with() {
    let memory = MockMemory::new(&[(0, 0x8000), (0x10_0000, 0x1000)]);
    let (mut driver, mut queue) = ring(&memory, 8, 0);
    for _ in 0..2 {
        driver.add(&[Buffer::readable(0x10_0000, 8)]).unwrap();
    }
    driver.make_available();
    let chain = queue.pop().unwrap().unwrap();

    let old = Rc::downgrade(queue.memory());
    let fewer = queue.memory().without_region(&memory.files()[1].0).unwrap();
    queue.set_memory(Rc::new(Arc::new(fewer))).unwrap();
    assert!(old.upgrade().is_some(), "held by the chain");
    queue.push_used(chain.head, 0).unwrap();
    drop(chain);
    assert!(old.upgrade().is_none());

    let error = queue.pop().map(|_| ()).unwrap_err();
    assert!(
        matches!(error, QueueError::Memory { .. }),
        "translated in the new map: {error}"
    );
    assert!(queue.publish());
    assert_eq!(
        driver.take_used().map(|(_, written)| written),
        Some(0),
        "the ring itself goes on"
    );

    let none = Rc::new(Arc::new(crate::memory::MemoryMap::empty()));
    assert!(matches!(
        queue.set_memory(none),
        Err(QueueError::Unmapped { .. })
    ));
    assert_eq!(
        queue.memory().regions().count(),
        1,
        "a refused map changes nothing"
    );
}

#[test]
fn storage_of_long_requests_is_reused() {
    let memory = MockMemory::flat(0x10_0000);
    let (mut driver, mut queue) = ring(&memory, 16, 0);
    let mut storage = vec![];
    for _ in 0..3 {
        let head = driver.add(&[Buffer::readable(0x5000, 8); 12]).unwrap();
        driver.make_available();
        let chain = queue.pop().unwrap().unwrap();
        storage.push(chain.readable.iovecs().as_ptr());
        queue.recycle(chain.readable);
        queue.recycle(chain.writable);
        queue.push_used(head, 0).unwrap();
        let _ = queue.publish();
        driver.take_used().unwrap();
    }
    assert!(
        storage.windows(2).all(|pair| pair[0] == pair[1]),
        "{storage:?}"
    );
}
