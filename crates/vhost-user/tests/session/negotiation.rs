//! Features, configuration space, memory slots.

use crate::{
    harness::{Bench, CONFIG_SIZE, DEVICE_FEATURES, QUEUES},
    raw::*,
};
use std::{os::fd::AsFd, sync::atomic::Ordering};

const OFFERED: u64 = DEVICE_FEATURES | F_VERSION_1 | F_INDIRECT | F_EVENT_IDX | F_PROTOCOL;

#[test]
fn what_is_offered() {
    let bench = Bench::new();
    let front = bench.connect();
    assert_eq!(front.get(GET_FEATURES, &[]).u64(), OFFERED);
    let protocol = front.get(GET_PROTOCOL_FEATURES, &[]).u64();
    assert_eq!(protocol, PROTOCOL);
    // QEMU acknowledges these two without implementing them.
    assert_eq!(protocol & (1 << 14 | 1 << 17), 0);
    assert_eq!(front.get(GET_QUEUE_NUM, &[]).u64(), u64::from(QUEUES));
    assert!(front.send(SET_PROTOCOL_FEATURES, 0, &PROTOCOL.to_ne_bytes(), &[]));
    assert_eq!(front.get(GET_MAX_MEM_SLOTS, &[]).u64(), 509);
    drop(front);
    bench.quiet();
}

#[test]
fn bits_that_were_not_offered_are_refused_and_not_acknowledged() {
    let bench = Bench::new();
    let front = bench.connect();
    front.negotiate(F_VERSION_1);
    for bit in 0..64 {
        let want = if OFFERED >> bit & 1 == 1 { 0 } else { 1 };
        let features = 1_u64 << bit | F_VERSION_1;
        assert_eq!(
            front.ack(SET_FEATURES, &features.to_ne_bytes(), &[]),
            want,
            "bit {bit}"
        );
        let last = bench.echo.acked.lock().unwrap().last().copied().unwrap();
        assert_eq!(
            last & !(OFFERED & !F_PROTOCOL),
            0,
            "the device sees what was offered, less the transport's bit"
        );
    }
    for bit in 0..64 {
        let want = if PROTOCOL >> bit & 1 == 1 { 0 } else { 1 };
        let features = 1_u64 << bit | 1 << 3;
        assert_eq!(
            front.ack(SET_PROTOCOL_FEATURES, &features.to_ne_bytes(), &[]),
            want,
            "protocol bit {bit}"
        );
    }
    drop(front);
    bench.quiet();
}

/// Without REPLY_ACK there is nobody to tell.
#[test]
fn a_refusal_that_cannot_be_told_ends_the_session() {
    let bench = Bench::new();
    let front = bench.connect();
    assert!(front.send(SET_FEATURES, NEED_REPLY, &(1_u64 << 63).to_ne_bytes(), &[]));
    assert_eq!(front.closed(), []);
    drop(front);
    let front = bench.connect();
    front.negotiate(F_VERSION_1);
    assert!(front.send(SET_FEATURES, 0, &(1_u64 << 63).to_ne_bytes(), &[]));
    assert_eq!(front.closed(), []);
    drop(front);
    bench.quiet();
}

/// A larger answer stops a VM from booting, a smaller one as well.
#[test]
fn get_config_answers_exactly_what_is_asked() {
    let bench = Bench::new();
    let front = bench.connect();
    front.negotiate(F_VERSION_1);
    for size in 1..=CONFIG_SIZE {
        let asked = config(0, &vec![0xff; size]);
        let got = front.get(GET_CONFIG, &asked).body;
        assert_eq!(got[..12], asked[..12]);
        assert_eq!(got[12..], bench.echo.config.lock().unwrap()[..size]);
    }
    let got = front.get(GET_CONFIG, &config(8, &[0; 4])).body;
    assert_eq!(got[12..], [8, 9, 10, 11]);
    drop(front);
    bench.quiet();
}

#[test]
fn get_config_past_the_end_answers_with_no_bytes() {
    let bench = Bench::new();
    let front = bench.connect();
    front.negotiate(F_VERSION_1);
    let size = u32::try_from(CONFIG_SIZE).unwrap();
    for (offset, length) in [(0, CONFIG_SIZE + 1), (size, 1), (u32::MAX, 4), (0, 4096)] {
        let got = front
            .get(GET_CONFIG, &config(offset, &vec![0; length]))
            .body;
        assert_eq!(
            got,
            [offset, 0, 0]
                .iter()
                .flat_map(|w| w.to_ne_bytes())
                .collect::<Vec<_>>()
        );
    }
    front.alive();
    drop(front);
    bench.quiet();
}

#[test]
fn a_configuration_whose_size_contradicts_its_length_ends_the_session() {
    let bench = Bench::new();
    for code in [GET_CONFIG, SET_CONFIG] {
        let front = bench.connect();
        front.negotiate(F_VERSION_1);
        let mut body = config(0, &[0; 8]);
        body[4..8].copy_from_slice(&4096_u32.to_ne_bytes());
        assert!(front.send(code, NEED_REPLY, &body, &[]));
        assert_eq!(front.closed(), []);
    }
    bench.quiet();
}

#[test]
fn set_config_writes_what_the_device_lets_it() {
    let bench = Bench::new();
    let front = bench.connect();
    front.negotiate(F_VERSION_1);
    front.ok(SET_CONFIG, &config(32, &[7]), &[]);
    assert_eq!(bench.echo.config.lock().unwrap()[32], 7);
    assert_ne!(
        front.ack(
            SET_CONFIG,
            &config(u32::try_from(CONFIG_SIZE).unwrap(), &[7]),
            &[]
        ),
        0
    );
    assert_ne!(front.ack(SET_CONFIG, &config(u32::MAX, &[7, 7]), &[]), 0);
    drop(front);
    bench.quiet();
}

fn region(slot: u64) -> Region {
    [slot << 20, 4096, 0x7000_0000_0000 + (slot << 20), 0]
}

#[test]
fn slots_up_to_the_limit_and_not_one_more() {
    let bench = Bench::new();
    let file = memfd(4096);
    bench.mark();
    let front = bench.connect();
    front.negotiate(F_VERSION_1);
    for slot in 0..600 {
        let want = u64::from(slot >= 509);
        assert_eq!(
            front.ack(ADD_MEM_REG, &single(region(slot)), &[file.as_fd()]),
            want,
            "slot {slot}"
        );
    }
    // A removal makes room for exactly one.
    front.ok(REM_MEM_REG, &single(region(17)), &[]);
    front.ok(ADD_MEM_REG, &single(region(700)), &[file.as_fd()]);
    assert_eq!(
        front.ack(ADD_MEM_REG, &single(region(701)), &[file.as_fd()]),
        1
    );
    drop(front);
    bench.quiet();
}

#[test]
fn regions_that_lie_are_refused() {
    let bench = Bench::new();
    let file = memfd(1 << 20);
    bench.mark();
    let front = bench.connect();
    front.negotiate(F_VERSION_1);
    front.ok(
        ADD_MEM_REG,
        &single([0, 1 << 20, 0x7000_0000_0000, 0]),
        &[file.as_fd()],
    );
    let lies: [(&str, Region); 9] = [
        ("empty", [1 << 30, 0, 0, 0]),
        ("guest address wraps", [u64::MAX - 4095, 8192, 0, 0]),
        ("user address wraps", [1 << 30, 8192, u64::MAX - 4095, 0]),
        ("offset wraps", [1 << 30, 8192, 0, u64::MAX - 4095]),
        ("past the end of the file", [1 << 30, (1 << 20) + 1, 0, 0]),
        (
            "offset past the end of the file",
            [1 << 30, 4096, 0, 1 << 20],
        ),
        ("2^40 bytes", [1 << 30, 1 << 40, 0, 0]),
        ("guest overlap", [4096, 4096, 0, 0]),
        ("user overlap", [1 << 30, 4096, 0x7000_0000_1000, 0]),
    ];
    for (what, region) in lies {
        assert_eq!(
            front.ack(ADD_MEM_REG, &single(region), &[file.as_fd()]),
            1,
            "{what}"
        );
    }
    assert_eq!(
        front.ack(REM_MEM_REG, &single([4096, 4096, 0, 0]), &[]),
        1,
        "never added"
    );
    // Nothing of all that had an effect. An old front end sends the descriptor with the removal.
    front.ok(
        REM_MEM_REG,
        &single([0, 1 << 20, 0x7000_0000_0000, 77]),
        &[file.as_fd()],
    );
    assert_eq!(
        front.ack(REM_MEM_REG, &single([0, 1 << 20, 0x7000_0000_0000, 0]), &[]),
        1
    );
    drop(front);
    bench.quiet();
}

#[test]
fn a_table_is_taken_whole_or_not_at_all() {
    let bench = Bench::new();
    let files: Vec<_> = (0..32).map(|_| memfd(4096)).collect();
    bench.mark();
    let front = bench.connect();
    front.negotiate(F_VERSION_1);
    let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let regions: Vec<_> = (0..32).map(region).collect();
    front.ok(SET_MEM_TABLE, &table(&regions), &fds);
    let mut overlapping = regions.clone();
    overlapping[31] = regions[0];
    assert_eq!(front.ack(SET_MEM_TABLE, &table(&overlapping), &fds), 1);
    // The first table is still in force.
    front.ok(REM_MEM_REG, &single(regions[31]), &[]);
    // A count that contradicts the length is no table.
    let mut body = table(&regions[..2]);
    body[0..4].copy_from_slice(&1_u32.to_ne_bytes());
    assert!(front.send(SET_MEM_TABLE, NEED_REPLY, &body, &fds[..2]));
    assert_eq!(front.closed(), []);
    drop(front);
    bench.quiet();
}

#[test]
fn memory_that_is_no_file_is_refused() {
    let bench = Bench::new();
    let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let directory = std::fs::File::open("/").unwrap();
    let event = eventfd();
    bench.mark();
    let front = bench.connect();
    front.negotiate(F_VERSION_1);
    for fd in [socket.as_fd(), directory.as_fd(), event.as_fd()] {
        assert_eq!(front.ack(ADD_MEM_REG, &single(region(0)), &[fd]), 1);
    }
    front.alive();
    drop(front);
    bench.quiet();
}

/// RESET_DEVICE makes the device new, but keeps what front ends do not send again.
#[test]
fn reset_device_keeps_memory_and_protocol_features() {
    let bench = Bench::new();
    let file = memfd(4096);
    bench.mark();
    let front = bench.connect();
    front.negotiate(F_VERSION_1 | F_PROTOCOL);
    front.ok(ADD_MEM_REG, &single(region(0)), &[file.as_fd()]);
    front.ok(SET_VRING_ENABLE, &state(0, 1), &[]);
    front.ok(RESET_DEVICE, &[], &[]);
    assert_eq!(bench.echo.resets.load(Ordering::SeqCst), 1);
    assert_eq!(
        front.ack(ADD_MEM_REG, &single(region(0)), &[file.as_fd()]),
        1,
        "the region is still there"
    );
    front.ok(SET_VRING_ENABLE, &state(0, 1), &[]);
    drop(front);
    bench.quiet();
    assert_eq!(
        bench.echo.resets.load(Ordering::SeqCst),
        1,
        "leaving is no reset"
    );
}
