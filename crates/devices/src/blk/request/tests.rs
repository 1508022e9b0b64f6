#![allow(unsafe_code)]

use super::*;
use crate::blk::status::Status;
use proptest::prelude::*;
use std::rc::Rc;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_BARRIER, VIRTIO_BLK_T_SECURE_ERASE, VIRTIO_BLK_T_ZONE_REPORT,
};

const BLOCKS: u64 = 16;

fn rules() -> Rules {
    Rules {
        block: 512,
        read_only: false,
        max_discard: 8 * SECTOR,
        max_write_zeroes: 4 * SECTOR,
        max_segments: 3,
    }
}

/// A copy of `bytes`, cut into segments at `cuts`.
fn scattered(bytes: &[u8], cuts: &[usize]) -> Buffers {
    let mut iov = SmallVec::new();
    let mut owners = Vec::new();
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| (*cut).min(bytes.len())).collect();
    cuts.push(bytes.len());
    cuts.sort_unstable();
    let mut from = 0;
    for to in cuts {
        let mut piece: Box<[u8]> = bytes[from..to].into();
        if !piece.is_empty() {
            iov.push(libc::iovec {
                iov_base: piece.as_mut_ptr().cast(),
                iov_len: piece.len(),
            });
            owners.push(piece);
        }
        from = to;
    }
    // SAFETY: the segments are the owner's boxes, which are not touched again from Rust.
    unsafe { Buffers::from_raw(iov, Rc::new(owners)) }
}

fn bytes_of(buffers: &Buffers) -> Vec<u8> {
    let mut bytes = vec![0; buffers.len() as usize];
    assert_eq!(buffers.copy_to(0, &mut bytes), bytes.len());
    bytes
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0xee; 4]); // reserved: nobody's business
    bytes.extend(sector.to_le_bytes());
    bytes
}

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

/// A request of `data_out` bytes after the header and room for `room` bytes before the status.
fn judged(
    rules: &Rules,
    kind: u32,
    sector: u64,
    data_out: &[u8],
    room: usize,
) -> Result<Request, Refusal> {
    let mut readable = header(kind, sector);
    readable.extend(data_out);
    let chain = Chain {
        head: 7,
        readable: scattered(&readable, &[]),
        writable: scattered(&vec![0; room + 1], &[]),
    };
    parse(chain, rules, BLOCKS * SECTOR).unwrap().request
}

fn refusal(result: Result<Request, Refusal>) -> Refusal {
    result.err().expect("refused")
}

fn refused(result: Result<Request, Refusal>) -> Status {
    refusal(result).status()
}

#[test]
fn the_header_may_be_cut_at_any_byte_and_share_a_descriptor_with_data() {
    let mut readable = header(VIRTIO_BLK_T_OUT, 3);
    let data: Vec<u8> = (0..1024u32).map(|i| (i * 7) as u8).collect();
    readable.extend(&data);
    for cut in 0..=17 {
        for second in [cut + 1, 16, 600] {
            let chain = Chain {
                head: 1,
                readable: scattered(&readable, &[cut, second]),
                writable: scattered(&[9], &[]),
            };
            let Ok(Request::Out { offset, data: out }) =
                parse(chain, &rules(), BLOCKS * SECTOR).unwrap().request
            else {
                panic!("cut at {cut} and {second}: not a write");
            };
            assert_eq!(
                (offset, bytes_of(&out)),
                (3 * SECTOR, data.clone()),
                "cut at {cut} and {second}"
            );
        }
    }
}

#[test]
fn the_status_is_the_last_writable_byte_even_in_a_descriptor_with_data() {
    for cuts in [&[][..], &[512], &[511], &[1, 2, 3, 512]] {
        let mut room = vec![0; 512];
        room.push(0xa5);
        let chain = Chain {
            head: 1,
            readable: scattered(&header(VIRTIO_BLK_T_IN, 15), &[]),
            writable: scattered(&room, cuts),
        };
        let parsed = parse(chain, &rules(), BLOCKS * SECTOR).unwrap();
        assert_eq!(bytes_of(&parsed.status), [0xa5]);
        let Ok(Request::In { offset, data }) = parsed.request else {
            panic!("not a read")
        };
        assert_eq!((offset, data.len()), (15 * SECTOR, 512));
    }
}

#[test]
fn a_chain_with_no_writable_byte_is_a_broken_ring() {
    let chain = Chain {
        head: 40,
        readable: scattered(&header(VIRTIO_BLK_T_FLUSH, 0), &[]),
        writable: scattered(&[], &[]),
    };
    let error = parse(chain, &rules(), SECTOR)
        .err()
        .expect("nowhere to put a status")
        .to_string();
    assert!(error.contains("40") && error.contains("status"), "{error}");
}

#[test]
fn a_short_header_is_ioerr_and_still_gets_a_status() {
    for len in 0..16 {
        let readable = &header(VIRTIO_BLK_T_FLUSH, 0)[..len];
        let chain = Chain {
            head: 1,
            readable: scattered(readable, &[3]),
            writable: scattered(&[0], &[]),
        };
        let parsed = parse(chain, &rules(), SECTOR).unwrap();
        assert_eq!(parsed.status.len(), 1);
        assert_eq!(refused(parsed.request), Status::IoErr, "{len} bytes");
    }
}

#[test]
fn reads_and_writes_end_at_the_capacity() {
    let rules = rules();
    let read = |sector, sectors: usize| judged(&rules, VIRTIO_BLK_T_IN, sector, &[], sectors * 512);
    let write = |sector, sectors: usize| {
        judged(&rules, VIRTIO_BLK_T_OUT, sector, &vec![0; sectors * 512], 0)
    };
    assert!(read(0, 16).is_ok() && write(0, 16).is_ok());
    assert!(read(15, 1).is_ok() && write(15, 1).is_ok());
    for (sector, sectors) in [
        (16, 1),
        (15, 2),
        (0, 17),
        (1 << 55, 1),
        ((1 << 55) - 1, 1),
        (u64::MAX, 1),
        (u64::MAX, 2),
    ] {
        assert_eq!(
            refusal(read(sector, sectors)),
            Refusal::OutOfRange {
                sector,
                len: sectors as u64 * 512
            }
        );
        assert_eq!(refused(write(sector, sectors)), Status::IoErr);
    }
}

#[test]
fn reading_no_bytes_at_a_valid_place_is_nothing() {
    let rules = rules();
    assert!(matches!(
        judged(&rules, VIRTIO_BLK_T_IN, 16, &[], 0),
        Ok(Request::Nothing)
    ));
    assert!(matches!(
        judged(&rules, VIRTIO_BLK_T_OUT, 0, &[], 0),
        Ok(Request::Nothing)
    ));
    assert_eq!(
        refused(judged(&rules, VIRTIO_BLK_T_IN, 17, &[], 0)),
        Status::IoErr
    );
}

#[test]
fn lengths_are_whole_sectors() {
    for len in [1, 511, 513, 1000] {
        assert!(matches!(
            refusal(judged(&rules(), VIRTIO_BLK_T_IN, 0, &[], len)),
            Refusal::Misaligned {
                sector: 0,
                block: 512,
                ..
            }
        ));
        assert_eq!(
            refused(judged(&rules(), VIRTIO_BLK_T_OUT, 0, &vec![0; len], 0)),
            Status::IoErr
        );
    }
}

#[test]
fn places_and_lengths_are_whole_blocks_of_a_4096_disk() {
    let rules = Rules {
        block: 4096,
        ..rules()
    };
    let read = |sector, sectors: usize| judged(&rules, VIRTIO_BLK_T_IN, sector, &[], sectors * 512);
    assert!(read(8, 8).is_ok());
    for (sector, sectors) in [(0, 7), (1, 8), (7, 1), (0, 9), (4, 4)] {
        assert!(matches!(
            refusal(read(sector, sectors)),
            Refusal::Misaligned { block: 4096, .. }
        ));
    }
}

#[test]
fn a_read_only_disk_refuses_every_change_with_ioerr() {
    let rules = Rules {
        read_only: true,
        ..rules()
    };
    assert_eq!(
        refused(judged(&rules, VIRTIO_BLK_T_OUT, 0, &[0; 512], 0)),
        Status::IoErr
    );
    assert_eq!(
        refused(judged(&rules, VIRTIO_BLK_T_OUT, 0, &[], 0)),
        Status::IoErr
    );
    assert_eq!(
        refused(judged(
            &rules,
            VIRTIO_BLK_T_DISCARD,
            0,
            &segment(0, 1, 0),
            0
        )),
        Status::IoErr
    );
    assert_eq!(
        refused(judged(
            &rules,
            VIRTIO_BLK_T_WRITE_ZEROES,
            0,
            &segment(0, 1, 0),
            0
        )),
        Status::IoErr
    );
    assert!(judged(&rules, VIRTIO_BLK_T_IN, 0, &[], 512).is_ok());
    assert!(judged(&rules, VIRTIO_BLK_T_FLUSH, 0, &[], 0).is_ok());
}

#[test]
fn data_in_the_wrong_direction_is_ioerr() {
    let sector = [0; 512];
    for (kind, out, room) in [
        (VIRTIO_BLK_T_IN, &sector[..], 0),
        (VIRTIO_BLK_T_IN, &sector[..], 512),
        (VIRTIO_BLK_T_IN, &sector[..1], 512),
        (VIRTIO_BLK_T_OUT, &[][..], 512),
        (VIRTIO_BLK_T_OUT, &sector[..], 1),
        (VIRTIO_BLK_T_GET_ID, &sector[..20], 20),
        (VIRTIO_BLK_T_DISCARD, &segment(0, 1, 0), 16),
        (VIRTIO_BLK_T_WRITE_ZEROES, &segment(0, 1, 0), 16),
    ] {
        let refusal = refusal(judged(&rules(), kind, 0, out, room));
        assert!(
            matches!(refusal, Refusal::WrongDirection { .. }),
            "type {kind}: {refusal}"
        );
        assert_eq!(refusal.status(), Status::IoErr);
    }
}

#[test]
fn unknown_types_are_unsupp() {
    let known = [
        VIRTIO_BLK_T_IN,
        VIRTIO_BLK_T_OUT,
        VIRTIO_BLK_T_FLUSH,
        VIRTIO_BLK_T_GET_ID,
        VIRTIO_BLK_T_DISCARD,
        VIRTIO_BLK_T_WRITE_ZEROES,
    ];
    let others = [
        VIRTIO_BLK_T_BARRIER,
        VIRTIO_BLK_T_BARRIER | VIRTIO_BLK_T_OUT,
        256,
        0x0100_0000,
        u32::MAX,
    ];
    for kind in (0..64).chain(others).filter(|kind| !known.contains(kind)) {
        assert_eq!(
            refusal(judged(&rules(), kind, 0, &[0; 512], 512)),
            Refusal::UnknownType { kind }
        );
        assert_eq!(
            refused(judged(&rules(), kind, u64::MAX, &[], 0)),
            Status::Unsupp
        );
    }
    assert!(
        !known.contains(&VIRTIO_BLK_T_SECURE_ERASE) && !known.contains(&VIRTIO_BLK_T_ZONE_REPORT)
    );
}

#[test]
fn discard_and_write_zeroes_that_were_not_negotiated_are_unsupp() {
    let rules = Rules {
        max_discard: 0,
        max_write_zeroes: 0,
        ..rules()
    };
    assert_eq!(
        refused(judged(
            &rules,
            VIRTIO_BLK_T_DISCARD,
            0,
            &segment(0, 1, 0),
            0
        )),
        Status::Unsupp
    );
    assert_eq!(
        refused(judged(
            &rules,
            VIRTIO_BLK_T_WRITE_ZEROES,
            0,
            &segment(0, 1, 0),
            0
        )),
        Status::Unsupp
    );
}

#[test]
fn get_id_needs_room_for_20_bytes() {
    for room in 0..20 {
        let refusal = refusal(judged(&rules(), VIRTIO_BLK_T_GET_ID, 0, &[], room));
        assert_eq!(
            (refusal, refusal.status()),
            (Refusal::ShortId { room: room as u64 }, Status::IoErr)
        );
    }
    for room in [20, 21, 512] {
        let Ok(Request::GetId { data }) = judged(&rules(), VIRTIO_BLK_T_GET_ID, 5, &[], room)
        else {
            panic!("{room}")
        };
        assert_eq!(data.len(), room as u64);
    }
}

#[test]
fn data_with_a_flush_is_ignored() {
    assert!(matches!(
        judged(&rules(), VIRTIO_BLK_T_FLUSH, 99, &[1; 5], 7),
        Ok(Request::Flush)
    ));
}

#[test]
fn segments_become_ranges_in_the_drivers_order() {
    let list = [segment(8, 8, 0), segment(0, 1, 0), segment(3, 0, 0)].concat();
    let Ok(Request::Discard(segments)) = judged(&rules(), VIRTIO_BLK_T_DISCARD, 0, &list, 0) else {
        panic!()
    };
    assert_eq!(
        segments.as_slice(),
        [
            Segment {
                offset: 4096,
                len: 4096,
                unmap: false
            },
            Segment {
                offset: 0,
                len: 512,
                unmap: false
            }
        ]
    );
    let list = [segment(15, 1, 1), segment(12, 4, 0)].concat();
    let Ok(Request::WriteZeroes(segments)) =
        judged(&rules(), VIRTIO_BLK_T_WRITE_ZEROES, 0, &list, 0)
    else {
        panic!()
    };
    assert_eq!(
        segments.as_slice(),
        [
            Segment {
                offset: 7680,
                len: 512,
                unmap: true
            },
            Segment {
                offset: 6144,
                len: 2048,
                unmap: false
            }
        ]
    );
}

#[test]
fn segments_of_no_sectors_are_nothing() {
    assert!(matches!(
        judged(&rules(), VIRTIO_BLK_T_DISCARD, 0, &segment(16, 0, 0), 0),
        Ok(Request::Nothing)
    ));
    assert!(matches!(
        judged(&rules(), VIRTIO_BLK_T_WRITE_ZEROES, 0, &segment(0, 0, 1), 0),
        Ok(Request::Nothing)
    ));
}

#[test]
fn any_unknown_flag_is_unsupp_even_behind_a_bad_range() {
    let bad = segment(u64::MAX, 1, 0);
    for bit in 0..32 {
        let list = [bad.clone(), segment(0, 1, 1 << bit)].concat();
        let discard = judged(&rules(), VIRTIO_BLK_T_DISCARD, 0, &list, 0);
        assert_eq!(
            refused(discard),
            Status::Unsupp,
            "discard, flag {bit}: unmap too is none of its flags"
        );
        let zeroes = refused(judged(&rules(), VIRTIO_BLK_T_WRITE_ZEROES, 0, &list, 0));
        assert_eq!(
            zeroes,
            if bit == 0 {
                Status::IoErr
            } else {
                Status::Unsupp
            },
            "write zeroes, flag {bit}"
        );
    }
}

#[test]
fn a_list_is_whole_segments_and_no_more_than_the_maximum() {
    let four = [
        segment(0, 1, 0),
        segment(1, 1, 0),
        segment(2, 1, 0),
        segment(3, 1, 0),
    ]
    .concat();
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert!(judged(&rules(), kind, 0, &four[..48], 0).is_ok());
        for len in [0, 1, 15, 17, 47] {
            let refusal = refusal(judged(&rules(), kind, 0, &four[..len], 0));
            assert_eq!(
                (refusal, refusal.status()),
                (Refusal::SegmentList { len: len as u64 }, Status::IoErr)
            );
        }
        let refusal = refusal(judged(&rules(), kind, 0, &four, 0));
        assert_eq!(
            (refusal, refusal.status()),
            (Refusal::TooManySegments { count: 4, max: 3 }, Status::IoErr)
        );
    }
}

#[test]
fn segments_keep_to_their_maximum_the_capacity_and_the_blocks() {
    let rules = Rules {
        block: 1024,
        ..rules()
    };
    let discard = |s: Vec<u8>| judged(&rules, VIRTIO_BLK_T_DISCARD, 0, &s, 0);
    let zeroes = |s: Vec<u8>| judged(&rules, VIRTIO_BLK_T_WRITE_ZEROES, 0, &s, 0);
    assert!(discard(segment(8, 8, 0)).is_ok() && zeroes(segment(12, 4, 0)).is_ok());
    assert!(matches!(
        refusal(discard(segment(0, 10, 0))),
        Refusal::SegmentTooLong {
            len: 5120,
            max: 4096
        }
    ));
    assert!(matches!(
        refusal(zeroes(segment(0, 6, 0))),
        Refusal::SegmentTooLong {
            len: 3072,
            max: 2048
        }
    ));
    assert!(matches!(
        refusal(zeroes(segment(0, u32::MAX, 0))),
        Refusal::SegmentTooLong { .. }
    ));
    for (sector, sectors) in [(16, 2), (14, 4), (u64::MAX - 1, 2), (1 << 55, 2), (18, 0)] {
        assert!(
            matches!(
                refusal(zeroes(segment(sector, sectors, 0))),
                Refusal::OutOfRange { .. }
            ),
            "{sector}"
        );
    }
    for (sector, sectors) in [(1, 2), (0, 1), (3, 3)] {
        assert!(matches!(
            refusal(discard(segment(sector, sectors, 0))),
            Refusal::Misaligned { .. }
        ));
    }
}

/// A request's meaning, for comparison.
fn meaning(
    request: Result<Request, Refusal>,
) -> (Result<&'static str, Refusal>, u64, Vec<u8>, Segments) {
    let nothing = Segments::new();
    match request {
        Ok(Request::In { offset, data }) => (Ok("in"), offset, bytes_of(&data), nothing),
        Ok(Request::Out { offset, data }) => (Ok("out"), offset, bytes_of(&data), nothing),
        Ok(Request::Flush) => (Ok("flush"), 0, vec![], nothing),
        Ok(Request::GetId { data }) => (Ok("get id"), 0, bytes_of(&data), nothing),
        Ok(Request::Discard(segments)) => (Ok("discard"), 0, vec![], segments),
        Ok(Request::WriteZeroes(segments)) => (Ok("write zeroes"), 0, vec![], segments),
        Ok(Request::Nothing) => (Ok("nothing"), 0, vec![], nothing),
        Err(refusal) => (Err(refusal), 0, vec![], nothing),
    }
}

proptest! {
    /// Any bytes at all: never a panic, what is permitted is in range, and the framing changes nothing.
    #[test]
    fn the_framing_never_changes_the_meaning(
        kind in prop_oneof![0..16u32, any::<u32>()],
        sector in prop_oneof![0..20u64, any::<u64>()],
        mut out in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..70),
            prop::collection::vec((0..20u64, 0..10u32, 0..3u32), 0..4)
                .prop_map(|list| list.into_iter().flat_map(|(s, n, f)| segment(s, n, f)).collect()),
            (0..4usize).prop_map(|n| vec![1; n * 512]),
        ],
        room in prop_oneof![0..40usize, (0..4usize).prop_map(|n| n * 512)],
        header_len in prop_oneof![9 => Just(16usize), 1 => 0..16usize],
        cuts_out in prop::collection::vec(0..2000usize, 0..6),
        cuts_in in prop::collection::vec(0..2000usize, 0..6),
    ) {
        let mut readable = header(kind, sector);
        if header_len < 16 {
            readable.truncate(header_len);
            out.clear();
        }
        readable.extend(&out);
        let writable: Vec<u8> = (0..=room).map(|i| i as u8).collect();
        let parsed = |cuts_out: &[usize], cuts_in: &[usize]| {
            let chain = Chain { head: 3, readable: scattered(&readable, cuts_out), writable: scattered(&writable, cuts_in) };
            parse(chain, &rules(), BLOCKS * SECTOR).unwrap()
        };
        let whole = parsed(&[], &[]);
        let cut = parsed(&cuts_out, &cuts_in);
        prop_assert_eq!((cut.head, bytes_of(&cut.status)), (3, vec![room as u8]));
        let whole = meaning(whole.request);
        prop_assert_eq!(&meaning(cut.request), &whole);
        let (_, offset, data, segments) = whole;
        prop_assert!(offset + data.len() as u64 <= BLOCKS * SECTOR);
        prop_assert!(segments.iter().all(|s| s.len > 0 && s.offset + s.len <= BLOCKS * SECTOR));
    }
}
