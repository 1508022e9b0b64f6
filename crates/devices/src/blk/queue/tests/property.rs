//! Random requests in random descriptor layouts against a second, plainer idea of a disk.

use super::*;
use proptest::prelude::*;

/// What should become of a request, computed without the code under test: in wide numbers, straight from the words of 5.2.6.
fn oracle(bytes: &mut [u8], block: u128, read_only: bool, req: &Req) -> Answer {
    let untouched = vec![UNTOUCHED; req.room];
    let only = |status| Answer {
        status,
        room: untouched.clone(),
        used: 1,
    };
    let size = bytes.len() as u128;
    let inside = |sector: u64, len: u128| {
        let at = u128::from(sector) * 512;
        (at + len <= size && at.is_multiple_of(block) && len.is_multiple_of(block))
            .then_some(at as usize)
    };
    match req.kind {
        VIRTIO_BLK_T_IN => match inside(req.sector, req.room as u128) {
            Some(at) if req.out.is_empty() => {
                let room = bytes[at..at + req.room].to_vec();
                Answer {
                    status: OK,
                    room,
                    used: req.room as u32 + 1,
                }
            }
            _ => only(IOERR),
        },
        VIRTIO_BLK_T_OUT => match inside(req.sector, req.out.len() as u128) {
            Some(at) if req.room == 0 && !read_only => {
                bytes[at..at + req.out.len()].copy_from_slice(&req.out);
                only(OK)
            }
            _ => only(IOERR),
        },
        VIRTIO_BLK_T_FLUSH => only(OK),
        VIRTIO_BLK_T_GET_ID if req.room >= 20 && req.out.is_empty() => {
            let mut answer = Answer {
                status: OK,
                room: untouched,
                used: 21,
            };
            answer.room[..20].copy_from_slice(b"outboard-0001\0\0\0\0\0\0\0");
            answer
        }
        VIRTIO_BLK_T_GET_ID => only(IOERR),
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
            let count = req.out.len() / 16;
            if read_only
                || req.room != 0
                || !req.out.len().is_multiple_of(16)
                || !(1..=32).contains(&count)
            {
                return only(IOERR);
            }
            let word = |s: &[u8], at: usize| u32::from_le_bytes(s[at..at + 4].try_into().unwrap());
            let segments: Vec<(u64, u32, u32)> = (req.out.chunks(16))
                .map(|s| {
                    (
                        u64::from_le_bytes(s[..8].try_into().unwrap()),
                        word(s, 8),
                        word(s, 12),
                    )
                })
                .collect();
            let known = u32::from(req.kind == VIRTIO_BLK_T_WRITE_ZEROES);
            if segments.iter().any(|(_, _, flags)| flags & !known != 0) {
                return only(UNSUPP);
            }
            let ranges: Option<Vec<_>> = segments
                .iter()
                .map(|(sector, sectors, _)| {
                    let len = u128::from(*sectors) * 512;
                    inside(*sector, len)
                        .filter(|_| len <= 1 << 20)
                        .map(|at| at..at + len as usize)
                })
                .collect();
            let Some(ranges) = ranges else {
                return only(IOERR);
            };
            for range in ranges {
                bytes[range].fill(0);
            }
            only(OK)
        }
        _ => only(UNSUPP),
    }
}

fn sector() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => 0..70u64,
        4 => (0..9u64).prop_map(|n| n * 8),
        1 => any::<u64>(),
        1 => Just(u64::MAX / 512),
    ]
}

fn kind() -> impl Strategy<Value = u32> {
    let known = vec![
        VIRTIO_BLK_T_IN,
        VIRTIO_BLK_T_OUT,
        VIRTIO_BLK_T_FLUSH,
        VIRTIO_BLK_T_GET_ID,
        VIRTIO_BLK_T_DISCARD,
        VIRTIO_BLK_T_WRITE_ZEROES,
    ];
    prop_oneof![20 => prop::sample::select(known), 1 => any::<u32>()]
}

/// Lengths fit the type most of the time.
fn request() -> impl Strategy<Value = Req> {
    let flags = prop_oneof![6 => Just(0u32), 3 => Just(1u32), 1 => any::<u32>()];
    let segments = prop::collection::vec((sector(), 0..20u32, flags), 0..5);
    let odd = prop_oneof![9 => Just(0usize), 1 => 0..600usize];
    let data = (0..12usize, any::<u8>(), odd);
    (kind(), sector(), segments, data, 0..20u8).prop_map(
        |(kind, sector, segments, (sectors, seed, odd), oddity)| {
            let len = sectors * 512 + odd;
            let data: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(seed | 1)).collect();
            let (mut out, mut room) = match kind {
                VIRTIO_BLK_T_IN => (vec![], len),
                VIRTIO_BLK_T_OUT => (data, 0),
                VIRTIO_BLK_T_GET_ID => (vec![], if odd == 0 { 20 } else { odd }),
                VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => (list(kind, &segments).out, 0),
                _ => (data, odd),
            };
            match oddity {
                0 => room += 1 + sectors,
                1 => out.push(seed),
                _ => {}
            }
            Req {
                kind,
                sector,
                out,
                room,
            }
        },
    )
}

fn layout() -> impl Strategy<Value = Layout> {
    let cuts = || prop::collection::vec(prop_oneof![0..30usize, 0..6000usize], 0..5);
    (cuts(), cuts(), any::<bool>()).prop_map(|(readable, writable, indirect)| Layout {
        readable,
        writable,
        indirect,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn statuses_data_and_disk_are_what_the_specification_says(
        block in prop::sample::select(vec![512u32, 1024, 4096]),
        read_only in prop::bool::weighted(0.1),
        requests in prop::collection::vec((request(), layout()), 1..60),
    ) {
        let mut disk = disk();
        disk.limits.logical_block = block;
        disk.read_only = read_only;
        let mut expected = disk.bytes();
        let mut h = Harness::new(disk);
        for (req, layout) in requests {
            let head = h.send(&req, &layout);
            h.pass().unwrap();
            let answers = h.answers();
            let answer = oracle(&mut expected, block.into(), read_only, &req);
            prop_assert_eq!(answers, vec![(head, answer)], "{:?} as {:?}", req, layout);
        }
        prop_assert_eq!(h.disk.bytes(), expected);
    }
}
