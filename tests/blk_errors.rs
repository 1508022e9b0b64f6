//! Drivers that make mistakes get the right status; drivers that break their ring lose the ring, and nobody else does.

use std::time::Instant;

use outboard_frontend::driver::drain;
use outboard_frontend::{
    Connection, Descriptor, Driver, Options, QueueOptions, Range, Request, STATUS_IOERR,
    STATUS_NONE, STATUS_OK, STATUS_UNSUPP, Segment,
};
use outboard_tests::daemon::{Site, connect};
use outboard_tests::load::{Load, pattern};
use outboard_tests::process::{Process, SOON};
use virtio_bindings::bindings::virtio_blk::*;
use vm_memory::GuestAddress;

const MIB: u64 = 1 << 20;
const SECTORS: u64 = MIB / 512;

#[test]
fn every_mistake_gets_its_status_and_the_queue_goes_on() {
    let site = Site::new();
    let image = site.path("disk.raw");
    let data = pattern(5, MIB as usize);
    std::fs::write(&image, &data).unwrap();
    let daemon = site.blk(&["--blk-file", "{}/disk.raw"]);
    let mut connection = daemon.connect();
    let config = connection.config().unwrap();
    let mut queue = connection.queue(0, QueueOptions::default()).unwrap();
    connection.start(&mut queue).unwrap();
    let too_many = vec![Range::new(0, 1); config.max_discard_seg as usize + 1];
    let list = |flags| {
        vec![Range {
            sector: 0,
            sectors: 8,
            flags,
        }]
    };
    let sector = [7; 512];
    let raw = |kind, at, output: &[u8], input| Request::raw(kind, at, output.to_vec(), input);
    for (what, request, status) in [
        (
            "a read past the end",
            Request::read(SECTORS, 512),
            STATUS_IOERR,
        ),
        (
            "a read across the end",
            Request::read(SECTORS - 1, 1024),
            STATUS_IOERR,
        ),
        (
            "a read whose end wraps",
            Request::read(u64::MAX, 1024),
            STATUS_IOERR,
        ),
        (
            "a read whose offset wraps",
            Request::read(1 << 55, 512),
            STATUS_IOERR,
        ),
        (
            "a write past the end",
            Request::write(SECTORS, &sector),
            STATUS_IOERR,
        ),
        (
            "a write whose offset wraps",
            Request::write(u64::MAX / 512 + 1, &sector),
            STATUS_IOERR,
        ),
        (
            "a read of no whole sector",
            Request::read(0, 100),
            STATUS_IOERR,
        ),
        (
            "a write of no whole sector",
            Request::write(0, &sector[..511]),
            STATUS_IOERR,
        ),
        (
            "a read with data",
            raw(VIRTIO_BLK_T_IN, 0, &sector, 512),
            STATUS_IOERR,
        ),
        (
            "a write with room",
            raw(VIRTIO_BLK_T_OUT, 0, &sector, 512),
            STATUS_IOERR,
        ),
        (
            "a write of room alone",
            raw(VIRTIO_BLK_T_OUT, 0, &[], 512),
            STATUS_IOERR,
        ),
        (
            "a short get-id",
            raw(VIRTIO_BLK_T_GET_ID, 0, &[], 19),
            STATUS_IOERR,
        ),
        (
            "a short header",
            Request::flush().cut(&[15], &[1]),
            STATUS_IOERR,
        ),
        (
            "a header of one byte",
            Request::flush().cut(&[1], &[1]),
            STATUS_IOERR,
        ),
        (
            "a discard of nothing",
            raw(VIRTIO_BLK_T_DISCARD, 0, &[], 0),
            STATUS_IOERR,
        ),
        (
            "a cut segment",
            raw(VIRTIO_BLK_T_DISCARD, 0, &[0; 24], 0),
            STATUS_IOERR,
        ),
        (
            "too many segments",
            Request::discard(&too_many),
            STATUS_IOERR,
        ),
        (
            "a discard past the end",
            Request::discard(&[Range::new(SECTORS - 1, 2)]),
            STATUS_IOERR,
        ),
        (
            "zeroes from where it wraps",
            Request::write_zeroes(&[Range::new(u64::MAX, 8)]),
            STATUS_IOERR,
        ),
        (
            "one bad segment of two",
            Request::discard(&[Range::new(0, 8), Range::new(SECTORS, 8)]),
            STATUS_IOERR,
        ),
        (
            "a discard with unmap",
            Request::discard(&list(1)),
            STATUS_UNSUPP,
        ),
        (
            "a discard with an unknown flag",
            Request::discard(&list(4)),
            STATUS_UNSUPP,
        ),
        (
            "zeroes with an unknown flag",
            Request::write_zeroes(&list(2)),
            STATUS_UNSUPP,
        ),
        (
            "a SCSI command",
            raw(VIRTIO_BLK_T_SCSI_CMD, 0, &[], 512),
            STATUS_UNSUPP,
        ),
        (
            "a secure erase",
            raw(VIRTIO_BLK_T_SECURE_ERASE, 0, &[0; 16], 0),
            STATUS_UNSUPP,
        ),
        ("an unknown type", raw(0x5eed, 0, &[], 0), STATUS_UNSUPP),
        (
            "a barrier",
            raw(VIRTIO_BLK_T_BARRIER, 0, &[], 0),
            STATUS_UNSUPP,
        ),
    ] {
        let reply = queue
            .run(&request, SOON)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!((reply.status, reply.used), (status, 1), "{what}");
        assert!(
            reply.data.iter().all(|byte| *byte == STATUS_NONE),
            "{what}: data was written"
        );
        assert_eq!(
            queue.read(8, 512).unwrap(),
            data[4096..4608],
            "after {what}"
        );
    }
    assert!(
        std::fs::read(&image).unwrap() == data,
        "no refused request changed the image"
    );
    assert_eq!(drain(queue.err_fd()).unwrap(), 0, "the ring never broke");
    assert_eq!(daemon.process.stderr(), "", "a guest cannot fill the log");
}

#[test]
fn discard_and_write_zeroes_that_were_not_negotiated_are_unsupported() {
    let site = Site::new();
    let daemon = site.blk(&["--disk", "ram:1M"]);
    let without = [VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES];
    let mut connection = daemon.connect_with(&Options::new(daemon.socket()).without(&without));
    let mut queue = connection.queue(0, QueueOptions::default()).unwrap();
    connection.start(&mut queue).unwrap();
    queue.write(0, &[5; 4096]).unwrap();
    for request in [
        Request::discard(&[Range::new(0, 8)]),
        Request::write_zeroes(&[Range::new(0, 8)]),
    ] {
        assert_eq!(queue.run(&request, SOON).unwrap().status, STATUS_UNSUPP);
    }
    assert_eq!(queue.read(0, 4096).unwrap(), [5; 4096]);
}

/// Offers something that no device can serve.
type Break = fn(&mut Driver, &Connection);

fn chain(queue: &mut Driver, segments: &[Segment]) {
    queue.submit_chain(segments).unwrap();
}

fn at(connection: &Connection, bytes: u64) -> GuestAddress {
    connection.memory().alloc(bytes, 16).unwrap()
}

fn readable(address: GuestAddress, length: u32) -> Segment {
    Segment {
        address,
        length,
        writable: false,
    }
}

fn writable(address: GuestAddress, length: u32) -> Segment {
    Segment {
        address,
        length,
        writable: true,
    }
}

/// Each with what the log line is to say.
const BREAKS: [(&str, Break, &str); 9] = [
    (
        "no room for a status",
        |q, c| chain(q, &[readable(at(c, 16), 16)]),
        "status",
    ),
    (
        "readable after writable",
        |q, c| chain(q, &[writable(at(c, 1), 1), readable(at(c, 16), 16)]),
        "readable",
    ),
    (
        "an address outside memory",
        |q, _| chain(q, &[readable(GuestAddress(1 << 50), 16)]),
        "memory",
    ),
    (
        "a buffer across the end of memory",
        |q, c| {
            let (start, size) = c.memory().region(0).unwrap();
            chain(q, &[readable(GuestAddress(start.0 + size - 8), 16)]);
        },
        "memory",
    ),
    (
        "a descriptor that points to itself",
        |q, c| {
            let address = at(c, 16).0;
            q.ring().write_descriptor(
                5,
                Descriptor {
                    address,
                    length: 16,
                    flags: 1,
                    next: 5,
                },
            );
            q.ring().push_raw(5);
        },
        "chain",
    ),
    (
        "a next out of the table",
        |q, c| {
            let address = at(c, 16).0;
            q.ring().write_descriptor(
                5,
                Descriptor {
                    address,
                    length: 16,
                    flags: 1,
                    next: 128,
                },
            );
            q.ring().push_raw(5);
        },
        "128",
    ),
    (
        "a head out of the table",
        |q, _| q.ring().push_raw(0x8000),
        "32768",
    ),
    (
        "an indirect table in an indirect table",
        |q, c| {
            let (outer, inner) = (at(c, 16), at(c, 16));
            let bytes = |address: u64| {
                let mut bytes = address.to_le_bytes().to_vec();
                bytes.extend(16u32.to_le_bytes());
                bytes.extend([4, 0, 0, 0]);
                bytes
            };
            c.memory().write(outer, &bytes(inner.0)).unwrap();
            c.memory().write(inner, &bytes(inner.0)).unwrap();
            q.ring().write_descriptor(
                5,
                Descriptor {
                    address: outer.0,
                    length: 16,
                    flags: 4,
                    next: 0,
                },
            );
            q.ring().push_raw(5);
        },
        "indirect",
    ),
    (
        "an avail index that jumps",
        |q, _| {
            let index = q.state().avail_idx.wrapping_add(1000);
            q.ring().write_avail_idx(index);
        },
        "avail",
    ),
];

/// Waits until the err eventfd was signalled.
fn wait_error(queue: &Driver, what: &str, process: &Process) {
    let deadline = Instant::now() + SOON;
    while drain(queue.err_fd()).unwrap() == 0 {
        assert!(
            Instant::now() < deadline,
            "{what}: the err eventfd stays silent\n{}",
            process.stderr()
        );
        std::thread::yield_now();
    }
}

#[test]
fn a_broken_ring_is_stopped_with_a_log_line_and_the_err_eventfd_and_nobody_else_is() {
    let site = Site::new();
    let config = "
workers = 1
[[device]]
name = \"broken\"
type = \"blk\"
socket = \"{}/broken.sock\"
disk = \"ram:1M\"
[[device]]
name = \"whole\"
type = \"blk\"
socket = \"{}/whole.sock\"
disk = \"ram:1M\"
";
    let process = site.serve(config, &["broken.sock", "whole.sock"]);
    let mut whole = connect(&Options::new(site.path("whole.sock")), &process);
    let mut neighbour = whole.queue(0, QueueOptions::default()).unwrap();
    whole.start(&mut neighbour).unwrap();
    let mut load = Load::new(0, 64, 4096, 3);

    for (what, break_ring, says) in BREAKS {
        let mut connection = connect(&Options::new(site.path("broken.sock")), &process);
        let mut queue = connection.queue(0, QueueOptions::default()).unwrap();
        let mut sibling = connection.queue(1, QueueOptions::default()).unwrap();
        connection.start(&mut queue).unwrap();
        connection.start(&mut sibling).unwrap();
        queue.write(0, &[1; 512]).unwrap();
        let lines = process.stderr().lines().count();

        break_ring(&mut queue, &connection);
        queue.kick().unwrap();
        queue.force_kick().unwrap();
        wait_error(&queue, what, &process);

        load.run(&mut neighbour, 8, 200);
        sibling
            .read(0, 512)
            .unwrap_or_else(|error| panic!("{what}: the device's other queue: {error}"));
        // The session is whole, and the stopped ring can be asked for its state.
        connection.barrier().unwrap();
        connection
            .stop_ring(0)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        let deadline = Instant::now() + SOON;
        let mut log = process.stderr();
        while log.lines().count() == lines {
            assert!(Instant::now() < deadline, "{what}: no line in the log");
            std::thread::yield_now();
            log = process.stderr();
        }
        let new: Vec<&str> = log.lines().skip(lines).collect();
        assert_eq!(new.len(), 1, "{what}: one line:\n{}", new.join("\n"));
        assert!(
            new[0].contains("broken") && new[0].contains(says),
            "{what}: {}",
            new[0]
        );
        assert_eq!(
            drain(neighbour.err_fd()).unwrap() + drain(sibling.err_fd()).unwrap(),
            0,
            "{what}"
        );
    }

    // A front end that starts anew finds the device as good as new.
    let mut connection = connect(&Options::new(site.path("broken.sock")), &process);
    let mut queue = connection.queue(0, QueueOptions::default()).unwrap();
    connection.start(&mut queue).unwrap();
    assert_eq!(queue.read(0, 512).unwrap(), [1; 512]);
}

#[test]
fn nothing_more_is_taken_from_a_broken_ring() {
    let site = Site::new();
    let daemon = site.blk(&["--disk", "ram:1M"]);
    let mut connection = daemon.connect();
    let mut queue = connection.queue(0, QueueOptions::default()).unwrap();
    connection.start(&mut queue).unwrap();
    queue.read(0, 512).unwrap();
    let before = queue.state().used_idx;
    let address = connection.memory().alloc(16, 16).unwrap();
    chain(&mut queue, &[readable(address, 16)]);
    let slot = queue.submit(&Request::write(0, &[9; 512])).unwrap();
    queue.kick().unwrap();
    wait_error(&queue, "no room for a status", &daemon.process);
    queue.force_kick().unwrap();
    // Answered when the worker has handed the ring back: from here on it cannot be looked at.
    let next_avail = connection.stop_ring(0).unwrap();
    let state = queue.state();
    // The broken chain was taken (and is never answered); what is behind it was not.
    assert_eq!(
        (next_avail, state.used_idx),
        (before + 1, before),
        "{state}: {slot:?} is behind the broken chain"
    );
    drop(connection);
    let mut connection = daemon.connect();
    let mut fresh = connection.queue(0, QueueOptions::default()).unwrap();
    connection.start(&mut fresh).unwrap();
    let reply = fresh.run(&Request::read(0, 512), SOON).unwrap();
    assert_eq!(
        (reply.status, reply.data),
        (STATUS_OK, vec![0; 512]),
        "the write behind it was not done"
    );
}
