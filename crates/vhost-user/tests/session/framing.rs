//! Bytes in any portions, deadlines, numbers of descriptors.

use crate::{
    harness::Bench,
    raw::{self, *},
};
use outboard_vhost_user::Limits;
use std::{io::Write, os::fd::AsFd, time::Duration};

/// Deadlines so short that a test may wait for them.
fn hasty() -> Limits {
    Limits {
        first_message: Duration::from_millis(50),
        message: Duration::from_millis(50),
        reply: Duration::from_millis(50),
    }
}

#[test]
fn a_message_may_come_byte_by_byte() {
    let bench = Bench::new();
    let front = bench.connect();
    for byte in message(GET_FEATURES, VERSION, &[]) {
        assert!(front.bytes(&[byte], &[]));
    }
    assert_eq!(front.reply().code, GET_FEATURES);
    let body = config(0, &[0; 20]);
    assert!(front.send(SET_PROTOCOL_FEATURES, 0, &PROTOCOL.to_ne_bytes(), &[]));
    for byte in message(GET_CONFIG, VERSION, &body) {
        assert!(front.bytes(&[byte], &[]));
    }
    assert_eq!(front.reply().body.len(), body.len());
    drop(front);
    bench.quiet();
}

/// The descriptors are wherever the sender put them: here on a byte in the middle of the body.
#[test]
fn descriptors_may_come_with_any_byte_of_their_message() {
    let bench = Bench::new();
    let call = eventfd();
    bench.mark();
    let front = bench.connect();
    front.negotiate(F_VERSION_1 | F_PROTOCOL);
    let bytes = message(SET_VRING_CALL, VERSION | NEED_REPLY, &0_u64.to_ne_bytes());
    assert!(front.bytes(&bytes[..14], &[]));
    assert!(front.bytes(&bytes[14..], &[call.as_fd()]));
    assert_eq!(front.reply().u64(), 0);
    drop(front);
    bench.quiet();
}

/// A receiver that reads ahead would give the second message's descriptor to the first.
#[test]
fn descriptors_stay_with_their_message() {
    let bench = Bench::new();
    let call = eventfd();
    bench.mark();
    let front = bench.connect();
    front.negotiate(F_VERSION_1 | F_PROTOCOL);
    let mut first = message(SET_OWNER, VERSION | NEED_REPLY, &[]);
    let second = message(SET_VRING_CALL, VERSION | NEED_REPLY, &0_u64.to_ne_bytes());
    first.extend_from_slice(&second[..1]);
    assert!(front.bytes(&first, &[]));
    assert!(front.bytes(&second[1..], &[call.as_fd()]));
    assert_eq!((front.reply().code, front.reply().u64()), (SET_OWNER, 0));
    drop(front);
    bench.quiet();
}

#[test]
fn many_messages_in_one_send_are_many_messages() {
    let bench = Bench::new();
    let front = bench.connect();
    let bytes = message(GET_FEATURES, VERSION, &[]).repeat(200);
    assert!(front.bytes(&bytes, &[]));
    for _ in 0..200 {
        assert_eq!(front.reply().code, GET_FEATURES);
    }
    drop(front);
    bench.quiet();
}

#[test]
fn a_bad_header_ends_the_session() {
    let bench = Bench::new();
    let bad = [
        ("version 0", header(GET_FEATURES, 0, 0)),
        ("version 2", header(GET_FEATURES, 2, 0)),
        ("version 3", header(GET_FEATURES, 3, 0)),
        ("a reply", header(GET_FEATURES, VERSION | REPLY, 0)),
        ("a reserved flag", header(GET_FEATURES, VERSION | 0x10, 0)),
        (
            "the highest flag",
            header(GET_FEATURES, VERSION | 0x8000_0000, 0),
        ),
        (
            "a body where none belongs",
            header(GET_FEATURES, VERSION, 8),
        ),
        (
            "no body where one belongs",
            header(SET_FEATURES, VERSION, 0),
        ),
        ("half a body", header(SET_FEATURES, VERSION, 4)),
        ("too long a body", header(SET_FEATURES, VERSION, 12)),
        ("4 GiB", header(SET_MEM_TABLE, VERSION, u32::MAX)),
        ("33 regions", header(SET_MEM_TABLE, VERSION, 8 + 33 * 32)),
        ("no region", header(SET_MEM_TABLE, VERSION, 8)),
        (
            "a fraction of a region",
            header(SET_MEM_TABLE, VERSION, 8 + 31),
        ),
        ("600 regions", header(SET_MEM_TABLE, VERSION, 8 + 600 * 32)),
        (
            "an endless configuration",
            header(GET_CONFIG, VERSION, 12 + 4097),
        ),
        (
            "an unknown request with a long body",
            header(999, VERSION, 5000),
        ),
    ];
    for (what, bytes) in bad {
        let front = bench.connect();
        front.alive();
        assert!(front.bytes(&bytes, &[]), "{what}");
        // Not one byte of what follows a header error may be taken for a message.
        front.bytes(&message(GET_FEATURES, VERSION, &[]), &[]);
        assert_eq!(front.closed(), [], "{what}");
    }
    bench.quiet();
}

#[test]
fn more_descriptors_than_the_message_takes_end_the_session() {
    let bench = Bench::new();
    let full: Vec<_> = (0..32).map(|i| [i << 20, 4096, i << 20, 0]).collect();
    let cases = [
        (GET_FEATURES, vec![], 1),
        (SET_FEATURES, F_VERSION_1.to_ne_bytes().to_vec(), 1),
        (SET_VRING_CALL, 0_u64.to_ne_bytes().to_vec(), 2),
        // Complete in themselves; the kernel could hand over as many as belong and drop the rest.
        (SET_MEM_TABLE, table(&full), 33),
        (SET_MEM_TABLE, table(&full), 253),
        (SET_MEM_TABLE, table(&[[0, 4096, 0, 0]]), 33),
        (SET_MEM_TABLE, table(&[[0, 4096, 0, 0]]), 253),
        (SET_MEM_TABLE, table(&[[0, 4096, 0, 0]]), 2),
        (ADD_MEM_REG, single([0, 4096, 0, 0]), 2),
        (SET_BACKEND_REQ_FD, vec![], 3),
        (999, vec![], 1),
    ];
    for (code, body, count) in cases {
        let front = bench.connect();
        assert!(front.send(SET_PROTOCOL_FEATURES, 0, &PROTOCOL.to_ne_bytes(), &[]));
        let fds: Vec<_> = (0..count).map(|_| memfd(4096)).collect();
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        // With an acknowledgement asked for: this is no refusal, it is the end.
        assert!(front.send(code, NEED_REPLY, &body, &fds));
        assert_eq!(
            front.closed(),
            [],
            "request {code} with {count} descriptors"
        );
    }
    bench.quiet();
}

/// One descriptor with every byte: no single portion has too many.
#[test]
fn descriptors_in_portions_are_counted_together() {
    let bench = Bench::new();
    let fd = eventfd();
    bench.mark();
    let front = bench.connect();
    for byte in message(GET_FEATURES, VERSION, &[]) {
        if !front.bytes(&[byte], &[fd.as_fd()]) {
            break;
        }
    }
    assert_eq!(front.closed(), []);
    drop(front);
    bench.quiet();
}

#[test]
fn fewer_descriptors_than_the_message_takes_end_the_session() {
    let bench = Bench::new();
    let fd = eventfd();
    bench.mark();
    let cases = [
        (SET_VRING_KICK, 0_u64.to_ne_bytes().to_vec()),
        (SET_VRING_CALL, 0_u64.to_ne_bytes().to_vec()),
        (SET_VRING_ERR, 0_u64.to_ne_bytes().to_vec()),
        (SET_MEM_TABLE, table(&[[0, 4096, 0, 0]])),
        (ADD_MEM_REG, single([0, 4096, 0, 0])),
        (SET_BACKEND_REQ_FD, vec![]),
    ];
    for (code, body) in cases {
        let front = bench.connect();
        assert!(front.send(SET_PROTOCOL_FEATURES, 0, &PROTOCOL.to_ne_bytes(), &[]));
        assert!(front.send(code, NEED_REPLY, &body, &[]));
        assert_eq!(front.closed(), [], "request {code}");
    }
    // And the other way round: the flag that says "no descriptor", with one.
    let front = bench.connect();
    assert!(front.send(SET_VRING_KICK, 0, &0x100_u64.to_ne_bytes(), &[fd.as_fd()]));
    assert_eq!(front.closed(), []);
    drop(front);
    bench.quiet();
}

#[test]
fn a_front_end_that_never_speaks_is_let_go() {
    let bench = Bench::with(hasty());
    let front = bench.connect();
    assert_eq!(front.closed(), []);
    drop(front);
    bench.quiet();
}

#[test]
fn half_a_message_is_not_waited_for_for_ever() {
    let bench = Bench::with(hasty());
    for length in [1, 11, 12, 13, 19] {
        let front = bench.connect();
        front.alive();
        let bytes = message(SET_FEATURES, VERSION, &F_VERSION_1.to_ne_bytes());
        assert!(front.bytes(&bytes[..length], &[]));
        assert_eq!(front.closed(), [], "{length} bytes");
    }
    bench.quiet();
}

/// The deadline is for the message, not for each byte: dripping does not prolong it.
#[test]
fn a_message_that_drips_is_not_waited_for_for_ever() {
    let bench = Bench::with(hasty());
    let front = bench.connect();
    front.alive();
    let mut header = message(SET_MEM_TABLE, VERSION, &[]);
    header[8..12].copy_from_slice(&(8_u32 + 32 * 32).to_ne_bytes());
    assert!(front.bytes(&header, &[]));
    let mut sent = 0;
    while front.bytes(&[0], &[]) {
        sent += 1;
        assert!(sent < 1000, "the whole body was waited for");
        std::thread::sleep(Duration::from_millis(2));
    }
    drop(front);
    bench.quiet();
}

/// The same within the header.
#[test]
fn a_header_that_drips_is_not_waited_for_for_ever() {
    let bench = Bench::with(hasty());
    let front = bench.connect();
    front.alive();
    for byte in message(GET_FEATURES, VERSION, &[]) {
        if !front.bytes(&[byte], &[]) {
            break;
        }
        std::thread::sleep(Duration::from_millis(40));
    }
    assert_eq!(
        front.closed(),
        [],
        "the header came in twelve portions, each in time"
    );
    drop(front);
    bench.quiet();
}

/// Between messages a front end may be silent as long as it likes.
#[test]
fn a_front_end_that_has_spoken_may_be_silent() {
    let bench = Bench::with(hasty());
    let front = bench.connect();
    front.alive();
    std::thread::sleep(Duration::from_millis(200));
    front.alive();
    drop(front);
    bench.quiet();
}

#[test]
fn a_front_end_that_does_not_read_is_let_go() {
    let bench = Bench::with(hasty());
    let front = bench.connect();
    let bytes = message(GET_FEATURES, VERSION, &[]).repeat(100);
    front.0.set_write_timeout(Some(raw::PATIENCE)).unwrap();
    // Until the other end closes: 20 bytes of reply for 12 of request fill its socket first.
    let mut sent = 0_u64;
    while (&front.0).write_all(&bytes).is_ok() {
        sent += 100;
        assert!(sent < 10_000_000, "replies without end, unread");
    }
    drop(front);
    bench.quiet();
}
