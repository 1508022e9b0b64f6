//! The ring against a back end of a few lines, written after the specification and not after the ring.

use virtio_bindings::bindings::virtio_ring::VRING_DESC_F_NEXT;

use super::*;

/// The device's side: pops heads in order, completes them in any order.
struct Device<'a> {
    ring: &'a SplitRing,
    next_avail: u16,
    used_idx: u16,
}

impl<'a> Device<'a> {
    fn at(ring: &'a SplitRing, next_avail: u16, used_idx: u16) -> Self {
        Self {
            ring,
            next_avail,
            used_idx,
        }
    }

    fn pop(&mut self) -> Option<u16> {
        if self.ring.avail.atomic_u16(2).load(Ordering::Acquire) == self.next_avail {
            return None;
        }
        let position = usize::from(self.next_avail % self.ring.size);
        self.next_avail = self.next_avail.wrapping_add(1);
        Some(
            self.ring
                .avail
                .atomic_u16(4 + 2 * position)
                .load(Ordering::Relaxed),
        )
    }

    /// Returns whether the driver wants a call.
    fn complete(&mut self, id: u32, length: u32) -> bool {
        let position = usize::from(self.used_idx % self.ring.size);
        self.ring
            .used
            .store(4 + 8 * position, UsedElement { id, length });
        let old = self.used_idx;
        self.used_idx = old.wrapping_add(1);
        self.ring
            .used
            .atomic_u16(2)
            .store(self.used_idx, Ordering::Release);
        fence(Ordering::SeqCst);
        need_event(
            self.ring.used_event().load(Ordering::Relaxed),
            self.used_idx,
            old,
        )
    }

    fn walk(&self, head: u16) -> Vec<Descriptor> {
        let mut chain = vec![];
        let mut index = head;
        loop {
            let descriptor: Descriptor = self.ring.descriptors.load(16 * usize::from(index));
            chain.push(descriptor);
            if descriptor.flags & VRING_DESC_F_NEXT as u16 == 0 {
                return chain;
            }
            index = descriptor.next;
        }
    }
}

fn ring(size: u16) -> (Arc<Memory>, SplitRing) {
    let memory = Memory::new(&[1 << 20]).unwrap();
    let ring = SplitRing::new(&memory, 0, size, true).unwrap();
    (memory, ring)
}

fn segment(address: u64, length: u32, writable: bool) -> Segment {
    Segment {
        address: GuestAddress(address),
        length,
        writable,
    }
}

#[test]
fn need_event_matches_the_specification_at_the_wrap() {
    assert!(need_event(5, 6, 5), "exactly the entry asked for");
    assert!(!need_event(6, 6, 5), "one short");
    assert!(!need_event(4, 6, 5), "already passed");
    assert!(need_event(0xffff, 0, 0xffff), "the entry before the wrap");
    assert!(need_event(1, 3, 0xfffe), "a batch across the wrap");
    assert!(!need_event(3, 3, 0xfffe));
    assert!(!need_event(7, 9, 9), "nothing new, nothing to tell");
}

#[test]
fn chains_arrive_as_given_and_indices_survive_the_wrap() {
    let (_memory, mut ring) = ring(8);
    let mut indices = (0_u16, 0_u16);
    for round in 0..70_000_u64 {
        let first = ring
            .add(&[segment(round, 16, false), segment(round + 1, 512, true)])
            .unwrap();
        let second = ring.add(&[segment(round + 2, 1, true)]).unwrap();
        ring.publish();
        let mut device = Device::at(&ring, indices.0, indices.1);
        assert_eq!(
            (device.pop(), device.pop(), device.pop()),
            (Some(first), Some(second), None)
        );
        let chain = device.walk(first);
        assert_eq!(chain.len(), 2);
        assert_eq!(
            (chain[0].address, chain[0].length, chain[0].flags),
            (round, 16, 1)
        );
        assert_eq!(
            (chain[1].address, chain[1].length, chain[1].flags),
            (round + 1, 512, 2)
        );
        // Out of order.
        device.complete(second.into(), 7);
        device.complete(first.into(), 513);
        indices = (device.next_avail, device.used_idx);
        assert_eq!(
            ring.take_used().unwrap(),
            Some(Used {
                head: second,
                length: 7
            })
        );
        assert_eq!(
            ring.take_used().unwrap(),
            Some(Used {
                head: first,
                length: 513
            })
        );
        assert_eq!(ring.take_used().unwrap(), None);
        assert_eq!(ring.free(), 8, "every descriptor came back");
    }
}

#[test]
fn nothing_is_visible_before_publish_and_a_kick_is_asked_once_per_batch() {
    let (_memory, mut ring) = ring(8);
    ring.add(&[segment(0, 1, false)]).unwrap();
    ring.add(&[segment(0, 1, false)]).unwrap();
    assert_eq!(Device::at(&ring, 0, 0).pop(), None);
    assert!(
        ring.publish(),
        "avail_event is 0: the device waits for the first entry"
    );
    assert!(!ring.publish(), "nothing new");
    ring.add(&[segment(0, 1, false)]).unwrap();
    assert!(!ring.publish(), "the device has not asked again");
    ring.avail_event().store(3, Ordering::Relaxed);
    ring.add(&[segment(0, 1, false)]).unwrap();
    assert!(ring.publish());
}

#[test]
fn without_event_idx_the_flags_decide() {
    let memory = Memory::new(&[1 << 20]).unwrap();
    let mut ring = SplitRing::new(&memory, 0, 4, false).unwrap();
    assert_eq!(
        ring.avail.atomic_u16(0).load(Ordering::Relaxed),
        1,
        "NO_INTERRUPT until armed"
    );
    ring.add(&[segment(0, 1, false)]).unwrap();
    assert!(ring.publish());
    ring.used
        .atomic_u16(0)
        .store(VRING_USED_F_NO_NOTIFY as u16, Ordering::Relaxed);
    ring.add(&[segment(0, 1, false)]).unwrap();
    assert!(!ring.publish());
    ring.arm();
    assert_eq!(ring.avail.atomic_u16(0).load(Ordering::Relaxed), 0);
}

#[test]
fn armed_gets_one_call_and_disarmed_none() {
    let (_memory, mut ring) = ring(8);
    let heads: Vec<u16> = (0..4)
        .map(|_| ring.add(&[segment(0, 1, true)]).unwrap())
        .collect();
    ring.publish();
    let mut used = 0;
    let mut complete = |ring: &SplitRing, head: u16| {
        let mut device = Device::at(ring, 0, used);
        let call = device.complete(head.into(), 0);
        used = device.used_idx;
        call
    };
    assert!(!complete(&ring, heads[0]), "not armed");
    assert!(ring.arm(), "an entry is there: the driver must not sleep");
    ring.take_used().unwrap().unwrap();
    assert!(!ring.arm());
    assert!(complete(&ring, heads[1]), "armed: the next entry calls");
    assert!(!complete(&ring, heads[2]), "and only that one");
    ring.disarm();
    assert!(!complete(&ring, heads[3]));
}

#[test]
fn a_full_ring_says_so_and_recovers() {
    let (_memory, mut ring) = ring(4);
    let three = [
        segment(0, 1, false),
        segment(0, 1, true),
        segment(0, 1, true),
    ];
    let head = ring.add(&three).unwrap();
    assert!(matches!(
        ring.add(&three),
        Err(Error::RingFull { wanted: 3, .. })
    ));
    assert_eq!(ring.free(), 1, "the refused chain took nothing");
    ring.publish();
    Device::at(&ring, 0, 0).complete(head.into(), 0);
    ring.take_used().unwrap().unwrap();
    ring.add(&three).unwrap();
}

#[test]
fn a_lying_device_is_found_out() {
    let (_memory, mut ring) = ring(4);
    let head = ring.add(&[segment(0, 1, true)]).unwrap();
    ring.publish();
    Device::at(&ring, 0, 0).complete(4, 0);
    assert!(
        matches!(ring.take_used(), Err(Error::BadUsed { .. })),
        "an id outside the table"
    );
    Device::at(&ring, 0, 0).complete(u32::from(head) + 1, 0);
    assert!(
        matches!(ring.take_used(), Err(Error::BadUsed { .. })),
        "a chain that is not in flight"
    );
    Device::at(&ring, 0, 0).complete(u32::from(head) + 0x1_0000, 0);
    assert!(
        matches!(ring.take_used(), Err(Error::BadUsed { .. })),
        "the head with a bit above 16"
    );
    Device::at(&ring, 0, 1).complete(head.into(), 0);
    assert!(
        matches!(ring.take_used(), Err(Error::BadUsed { .. })),
        "more entries than chains"
    );
    Device::at(&ring, 0, 0).complete(head.into(), 0);
    assert!(
        ring.take_used().unwrap().is_some(),
        "the truth is still accepted"
    );
    Device::at(&ring, 0, 1).complete(head.into(), 0);
    assert!(
        matches!(ring.take_used(), Err(Error::BadUsed { .. })),
        "completed twice"
    );
}

#[test]
fn requeue_offers_exactly_what_was_not_completed() {
    let (_memory, mut ring) = ring(4);
    let heads: Vec<u16> = (0..3)
        .map(|_| ring.add(&[segment(0, 1, true)]).unwrap())
        .collect();
    ring.publish();
    let mut device = Device::at(&ring, 0, 0);
    while device.pop().is_some() {}
    device.complete(heads[1].into(), 0); // The middle one first, then the back end dies.
    ring.take_used().unwrap().unwrap();
    let base = ring.requeue_in_flight();
    ring.publish();
    assert_eq!(base, 1);
    let mut device = Device::at(&ring, base, 1);
    let mut again = vec![device.pop().unwrap(), device.pop().unwrap()];
    again.sort_unstable();
    let mut expected = vec![heads[0], heads[2]];
    expected.sort_unstable();
    assert_eq!((again, device.pop()), (expected, None));
}
