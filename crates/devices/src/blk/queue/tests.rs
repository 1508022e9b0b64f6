//! Requests through a real ring against a disk that writes down what it was asked.

use super::*;
use crate::blk::BlkOptions;
use crate::blk::harness::{Answer, Harness, Layout, Req, UNTOUCHED, options};
use crate::blk::model::{Asked, ModelDisk};
use outboard_virtio::device::Device;
use outboard_virtio::mock::Buffer;
use std::sync::atomic::Ordering;
use virtio_bindings::virtio_blk::*;

mod hostile;
mod property;
mod storage;

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;

const SIZE: usize = 64 * 512;

fn disk() -> ModelDisk {
    ModelDisk::new((0..SIZE).map(|i| (i * 31 + i / 512) as u8).collect())
}

fn req(kind: u32, sector: u64, out: &[u8], room: usize) -> Req {
    Req {
        kind,
        sector,
        out: out.to_vec(),
        room,
    }
}

fn read(sector: u64, sectors: usize) -> Req {
    req(VIRTIO_BLK_T_IN, sector, &[], sectors * 512)
}

fn write(sector: u64, data: &[u8]) -> Req {
    req(VIRTIO_BLK_T_OUT, sector, data, 0)
}

fn flush() -> Req {
    req(VIRTIO_BLK_T_FLUSH, 0, &[], 0)
}

fn list(kind: u32, segments: &[(u64, u32, u32)]) -> Req {
    let mut out = Vec::new();
    for (sector, sectors, flags) in segments {
        out.extend(sector.to_le_bytes());
        out.extend(sectors.to_le_bytes());
        out.extend(flags.to_le_bytes());
    }
    req(kind, 0, &out, 0)
}

fn discard(segments: &[(u64, u32, u32)]) -> Req {
    list(VIRTIO_BLK_T_DISCARD, segments)
}

fn zeroes(segments: &[(u64, u32, u32)]) -> Req {
    list(VIRTIO_BLK_T_WRITE_ZEROES, segments)
}

/// Only a status came back.
fn status(status: u8) -> Answer {
    Answer {
        status,
        room: vec![],
        used: 1,
    }
}

#[test]
fn a_read_fills_data_and_used_len_counts_data_and_status() {
    let mut h = Harness::new(disk());
    let expected = h.disk.bytes()[5 * 512..7 * 512].to_vec();
    assert_eq!(
        h.ask(&read(5, 2)),
        Answer {
            status: OK,
            room: expected,
            used: 1025
        }
    );
    assert_eq!(
        h.disk.asked(),
        [Asked::Read {
            offset: 2560,
            len: 1024
        }]
    );
}

#[test]
fn a_write_reaches_the_disk_and_only_the_status_the_guest() {
    let mut h = Harness::new(disk());
    let mut expected = h.disk.bytes();
    expected[63 * 512..].fill(7);
    assert_eq!(h.ask(&write(63, &[7; 512])), status(OK));
    assert_eq!(h.disk.bytes(), expected);
    assert_eq!(
        h.disk.asked(),
        [Asked::Write {
            offset: 63 * 512,
            len: 512,
            durable: false
        }]
    );
}

#[test]
fn a_flush_is_a_flush_of_the_disk() {
    let mut h = Harness::new(disk());
    assert_eq!(h.ask(&flush()), status(OK));
    assert_eq!(h.disk.asked(), [Asked::Flush]);
}

#[test]
fn the_device_id_string_is_nul_padded_and_a_full_one_has_no_terminator() {
    for (serial, expected) in [
        ("", &[0; 20]),
        ("disk 7", b"disk 7\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        ("12345678901234567890", b"12345678901234567890"),
    ] {
        let mut h = Harness::with(
            disk(),
            BlkOptions {
                serial: serial.into(),
                ..options()
            },
            u64::MAX,
        );
        let answer = h.ask(&req(VIRTIO_BLK_T_GET_ID, 0, &[], 20));
        assert_eq!(
            answer,
            Answer {
                status: OK,
                room: expected.to_vec(),
                used: 21
            }
        );
        assert!(h.disk.asked().is_empty());
    }
}

#[test]
fn room_behind_the_device_id_string_stays_untouched() {
    let answer = Harness::new(disk()).ask(&req(VIRTIO_BLK_T_GET_ID, 0, &[], 32));
    assert_eq!((answer.status, answer.used), (OK, 21));
    assert_eq!(answer.room[20..], [UNTOUCHED; 12]);
}

#[test]
fn a_refused_request_gets_its_status_and_touches_neither_data_nor_disk() {
    let mut h = Harness::new(disk());
    for (request, expected) in [
        (read(64, 1), IOERR),
        (read(u64::MAX, 1), IOERR),
        (req(VIRTIO_BLK_T_IN, 0, &[], 100), IOERR),
        (write(64, &[1; 512]), IOERR),
        (req(VIRTIO_BLK_T_IN, 0, &[1; 512], 512), IOERR),
        (req(VIRTIO_BLK_T_GET_ID, 0, &[], 19), IOERR),
        (req(VIRTIO_BLK_T_SECURE_ERASE, 0, &[], 16), UNSUPP),
        (req(VIRTIO_BLK_T_SCSI_CMD, 0, &[], 512), UNSUPP),
        (discard(&[(0, 8, 1)]), UNSUPP),
        (zeroes(&[(0, 8, 2)]), UNSUPP),
        (discard(&[(0, 8, 0); 33]), IOERR),
    ] {
        let answer = h.ask(&request);
        assert_eq!((answer.status, answer.used), (expected, 1), "{request:?}");
        assert!(answer.room.iter().all(|byte| *byte == UNTOUCHED));
        assert!(h.disk.asked().is_empty());
    }
    assert_eq!(h.disk.bytes(), disk().bytes());
}

#[test]
fn what_asks_for_no_bytes_succeeds_without_the_disk() {
    let mut h = Harness::new(disk());
    for request in [
        read(64, 0),
        write(0, &[]),
        discard(&[(3, 0, 0)]),
        zeroes(&[(3, 0, 1), (64, 0, 0)]),
    ] {
        assert_eq!(h.ask(&request), status(OK));
    }
    assert!(h.disk.asked().is_empty());
}

#[test]
fn a_failed_operation_is_ioerr_and_an_unsupported_one_unsupp() {
    let mut h = Harness::new(disk());
    h.disk.fail(0, io::ErrorKind::Other);
    h.disk.fail(1, io::ErrorKind::StorageFull);
    h.disk.fail(2, io::ErrorKind::Other);
    h.disk.fail(3, io::ErrorKind::Unsupported);
    let answer = h.ask(&read(0, 1));
    assert_eq!(
        (answer.status, answer.used),
        (IOERR, 1),
        "no data was written"
    );
    assert_eq!(h.ask(&write(0, &[0; 512])), status(IOERR));
    assert_eq!(h.ask(&flush()), status(IOERR));
    assert_eq!(h.ask(&discard(&[(0, 8, 0)])), status(UNSUPP));
    assert_eq!(h.ask(&read(0, 1)).status, OK, "the queue goes on");
}

#[test]
fn segments_are_operations_one_after_the_other_and_the_request_ends_with_the_last() {
    let mut h = Harness::new(disk());
    h.disk.hold();
    let head = h.send(
        &discard(&[(0, 8, 0), (16, 8, 0), (40, 2, 0)]),
        &Layout::default(),
    );
    h.pass().unwrap();
    for (offset, len) in [(0, 4096), (8192, 4096), (20480, 1024)] {
        assert!(h.answers().is_empty());
        assert_eq!(h.handler.in_flight(), 1);
        assert_eq!(h.disk.asked(), [Asked::Discard { offset, len }]);
        h.disk.release(0);
        h.completions();
    }
    assert_eq!(h.answers(), [(head, status(OK))]);
    assert_eq!(h.handler.in_flight(), 0);
}

#[test]
fn the_first_segment_that_fails_ends_the_request() {
    for failing in 0..3 {
        let mut h = Harness::new(disk());
        h.disk.fail(failing, io::ErrorKind::Other);
        assert_eq!(
            h.ask(&zeroes(&[(0, 1, 0), (1, 1, 0), (2, 1, 0)])),
            status(IOERR)
        );
        assert_eq!(h.disk.asked().len(), failing + 1);
        assert_eq!(h.handler.in_flight(), 0);
    }
}

#[test]
fn write_zeroes_may_unmap_only_where_driver_and_disk_agree() {
    for (may_unmap, flag, expected) in [(true, 1, true), (true, 0, false), (false, 1, false)] {
        let mut disk = disk();
        disk.limits.write_zeroes_may_unmap = may_unmap;
        let mut h = Harness::new(disk);
        assert_eq!(h.ask(&zeroes(&[(8, 8, flag)])), status(OK));
        assert_eq!(
            h.disk.asked(),
            [Asked::WriteZeroes {
                offset: 4096,
                len: 4096,
                unmap: expected
            }]
        );
        assert!(h.disk.bytes()[4096..8192].iter().all(|byte| *byte == 0));
    }
}

/// The start cache mode and what of the device's features is negotiated, in write-through.
fn assert_write_through(h: &mut Harness) {
    assert_eq!(h.ask(&write(0, &[1; 512])), status(OK));
    assert_eq!(
        h.disk.asked(),
        [Asked::Write {
            offset: 0,
            len: 512,
            durable: true
        }]
    );
    assert_eq!(h.ask(&discard(&[(0, 8, 0), (8, 8, 0)])), status(OK));
    let operations = h.disk.asked();
    assert_eq!(
        (operations.len(), operations.last()),
        (3, Some(&Asked::Flush))
    );
    assert_eq!(h.ask(&zeroes(&[(0, 8, 0)])), status(OK));
    assert_eq!(
        h.disk.asked(),
        [
            Asked::WriteZeroes {
                offset: 0,
                len: 4096,
                unmap: false
            },
            Asked::Flush
        ]
    );
}

fn assert_writeback(h: &mut Harness) {
    assert_eq!(h.ask(&write(0, &[1; 512])), status(OK));
    assert_eq!(
        h.disk.asked(),
        [Asked::Write {
            offset: 0,
            len: 512,
            durable: false
        }]
    );
    assert_eq!(h.ask(&discard(&[(0, 8, 0)])), status(OK));
    assert_eq!(
        h.disk.asked(),
        [Asked::Discard {
            offset: 0,
            len: 4096
        }]
    );
}

#[test]
fn the_driver_switches_the_cache_mode_under_a_running_queue() {
    let mut h = Harness::new(disk());
    let writeback = crate::blk::config::WRITEBACK as u32;
    assert_writeback(&mut h);
    h.blk.write_config(writeback, &[0]).unwrap();
    assert_write_through(&mut h);
    h.blk.write_config(writeback, &[1]).unwrap();
    assert_writeback(&mut h);
}

#[test]
fn a_driver_that_cannot_flush_gets_a_write_through_cache() {
    let cannot = !(1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_CONFIG_WCE);
    assert_write_through(&mut Harness::with(disk(), options(), cannot));
}

#[test]
fn a_write_through_device_stays_so_for_a_driver_that_can_flush() {
    let through = BlkOptions {
        writeback: false,
        ..options()
    };
    assert_write_through(&mut Harness::with(disk(), through, u64::MAX));
}

#[test]
fn a_failed_discard_is_not_flushed_and_a_failed_flush_fails_the_discard() {
    let through = BlkOptions {
        writeback: false,
        ..options()
    };
    let mut h = Harness::with(disk(), through, u64::MAX);
    h.disk.fail(1, io::ErrorKind::Other);
    assert_eq!(h.ask(&discard(&[(0, 8, 0), (8, 8, 0)])), status(IOERR));
    assert_eq!(h.disk.asked().len(), 2);
    h.disk.fail(3, io::ErrorKind::Other);
    assert_eq!(h.ask(&discard(&[(0, 8, 0)])), status(IOERR));
    assert_eq!(h.disk.asked().last(), Some(&Asked::Flush));
}

#[test]
fn requests_complete_in_the_disks_order() {
    let mut h = Harness::new(disk());
    h.disk.hold();
    let heads: Vec<u16> = (0..5)
        .map(|sector| h.send(&read(sector, 1), &Layout::default()))
        .collect();
    h.pass().unwrap();
    assert_eq!((h.handler.in_flight(), h.answers().len()), (5, 0));
    // Of those still waiting: the last, the first, the middle one, ...
    [4, 0, 1, 1, 0]
        .into_iter()
        .for_each(|position| h.disk.release(position));
    h.completions();
    let answers = h.answers();
    let order: Vec<u16> = answers.iter().map(|(head, _)| *head).collect();
    assert_eq!(order, [heads[4], heads[0], heads[2], heads[3], heads[1]]);
    for (head, answer) in answers {
        let sector = heads.iter().position(|h| *h == head).unwrap();
        assert_eq!(
            answer.room,
            h.disk.bytes()[sector * 512..(sector + 1) * 512]
        );
        assert_eq!((answer.status, answer.used), (OK, 513));
    }
}

#[test]
fn the_capacity_of_the_moment_decides() {
    let mut h = Harness::new(disk());
    h.disk.size.store(8 * 512, Ordering::Relaxed);
    assert_eq!(h.ask(&read(8, 1)).status, IOERR);
    assert_eq!(h.ask(&read(7, 1)).status, OK);
    h.disk.size.store(SIZE as u64, Ordering::Relaxed);
    assert_eq!(h.ask(&read(8, 1)).status, OK);
}

#[test]
fn a_budget_bounds_a_pass() {
    let mut h = Harness::new(disk());
    for sector in 0..5 {
        h.send(&read(sector, 1), &Layout::default());
    }
    h.driver.make_available();
    for (budget, progress, done) in [
        (2, Progress::More, 2),
        (3, Progress::More, 3),
        (1, Progress::Empty, 0),
    ] {
        assert_eq!(h.handler.process(&mut h.queue, budget).unwrap(), progress);
        let _ = h.queue.publish();
        assert_eq!(h.answers().len(), done);
    }
}

#[test]
fn a_chain_without_room_for_a_status_stops_the_ring() {
    let mut h = Harness::new(disk());
    let at = h.driver.alloc(16, 16);
    h.driver.add(&[Buffer::readable(at, 16)]).unwrap();
    let error = h.pass().expect_err("a broken ring").to_string();
    assert!(error.contains("status"), "{error}");
}

#[test]
fn an_abandoned_ring_is_left_alone_while_its_operations_end() {
    let through = BlkOptions {
        writeback: false,
        ..options()
    };
    let mut h = Harness::with(disk(), through, u64::MAX);
    h.disk.hold();
    h.send(&write(1, &[9; 512]), &Layout::default());
    h.send(&discard(&[(8, 8, 0), (16, 8, 0)]), &Layout::default());
    h.send(&flush(), &Layout::default());
    h.pass().unwrap();
    h.disk.asked();
    let before = h.memory.read(0, 1 << 20);
    assert_eq!(h.handler.reap(), 3, "nothing ended yet");
    h.disk.release(1); // the first of the two segments
    assert_eq!(h.handler.reap(), 2);
    [0, 0]
        .into_iter()
        .for_each(|position| h.disk.release(position));
    assert_eq!(h.handler.reap(), 0);
    assert_eq!(
        h.memory.read(0, 1 << 20),
        before,
        "neither ring nor statuses were touched"
    );
    assert!(
        h.disk.asked().is_empty(),
        "neither the second segment nor a flush: nobody waits for them"
    );
    assert!(
        h.disk.bytes()[512..1024].iter().all(|byte| *byte == 9),
        "what was started is done"
    );
}

#[test]
fn completions_that_were_never_submitted_are_ignored() {
    struct Liar;
    impl DiskQueue for Liar {
        fn submit(&mut self, _: u32, _: Op) {}
        fn next_completion(&mut self) -> Option<Completion> {
            None
        }
        fn in_flight(&self) -> u32 {
            0
        }
    }
    let h = Harness::new(disk());
    let rules = Rules {
        block: 512,
        read_only: false,
        max_discard: 0,
        max_write_zeroes: 0,
        max_segments: 1,
    };
    let cache = Arc::new(Cache::new(true));
    let mut handler = BlkQueue::new(h.disk.clone(), Box::new(Liar), cache, rules, [0; 20]);
    assert!(handler.finish(5, Ok(()), true).is_none());
    assert_eq!((handler.in_flight(), handler.failures), (0, 0));
}
