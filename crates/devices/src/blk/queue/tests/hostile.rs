//! Chains that no driver would write.

use super::*;
use outboard_virtio::mock::Descriptor;
use proptest::prelude::*;

/// Where headers and segment lists lie for descriptors to point at.
const PLANTED: u64 = 0x20_0000;

/// Addresses and lengths mostly inside the guest's 64 MiB.
fn descriptor() -> impl Strategy<Value = Descriptor> {
    let addr = prop_oneof![
        4 => 0..(64u64 << 20),
        8 => (0..5u64).prop_map(|n| PLANTED + 16 * n),
        1 => any::<u64>(),
    ];
    let lens = prop::sample::select(vec![0u32, 1, 15, 16, 17, 32, 512, 513, 528, 4096]);
    let len = prop_oneof![9 => lens, 1 => any::<u32>()];
    let flags = prop_oneof![9 => 0..4u16, 1 => any::<u16>()];
    let next = prop_oneof![9 => 0..16u16, 1 => any::<u16>()];
    (addr, len, flags, next).prop_map(|(addr, len, flags, next)| Descriptor {
        addr,
        len,
        flags,
        next,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Whatever is in the table and wherever it points: what is popped is answered, or the ring stops with an error.
    #[test]
    fn a_garbage_chain_is_answered_or_stops_the_ring(
        table in prop::collection::vec(descriptor(), 16),
        headers in prop::collection::vec((prop_oneof![0..15u32, any::<u32>()], prop_oneof![0..70u64, any::<u64>()]), 5),
        heads in prop::collection::hash_set(prop_oneof![30 => 0..16u16, 1 => any::<u16>()], 1..8),
    ) {
        let mut h = Harness::new(disk());
        for (i, (kind, sector)) in headers.iter().enumerate() {
            let at = PLANTED + 16 * i as u64;
            h.memory.write(at, &u64::from(*kind).to_le_bytes());
            h.memory.write(at + 8, &sector.to_le_bytes());
        }
        for (index, descriptor) in table.iter().enumerate() {
            h.driver.write_descriptor(index as u16, *descriptor);
        }
        for head in &heads {
            h.driver.offer(*head);
        }
        h.driver.make_available();
        let result = h.handler.process(&mut h.queue, 100);
        let _ = h.queue.publish();
        // The mock driver panics when something is used that was not offered.
        let answered = std::iter::from_fn(|| h.driver.take_used()).inspect(|(_, used)| assert!(*used > 0)).count();
        match result {
            Ok(progress) => prop_assert_eq!((progress, answered), (Progress::Empty, heads.len())),
            Err(_) => prop_assert!(answered < heads.len()),
        }
        // The model disk panics when it is asked for what is out of range.
        h.handler.reap();
        prop_assert_eq!(h.handler.in_flight(), 0);
    }
}
