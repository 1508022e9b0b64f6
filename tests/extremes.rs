//! Requests as large and as scattered as a ring allows: more segments than one system call takes, odd addresses and lengths
//! under direct I/O, almost 4 GiB at once.

use outboard_frontend::{
    Driver, Options, QueueOptions, STATUS_IOERR, STATUS_NONE, STATUS_OK, Segment,
};
use outboard_tests::daemon::{Daemon, Site};
use outboard_tests::load::pattern;
use outboard_tests::process::SOON;
use virtio_bindings::bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use vm_memory::GuestAddress;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const RING: u16 = 4096;

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [
        kind.to_le_bytes().to_vec(),
        vec![0; 4],
        sector.to_le_bytes().to_vec(),
    ]
    .concat()
}

/// One request of these data segments; status and used length.
fn run(
    daemon: &Daemon,
    queue: &mut Driver,
    kind: u32,
    sector: u64,
    data: &[(GuestAddress, u32)],
) -> (u8, u32) {
    let memory = queue.memory().clone();
    let head = memory.alloc(16, 16).unwrap();
    let status = memory.alloc(1, 1).unwrap();
    memory.write(head, &header(kind, sector)).unwrap();
    memory.write(status, &[STATUS_NONE]).unwrap();
    let mut chain = vec![Segment {
        address: head,
        length: 16,
        writable: false,
    }];
    chain.extend(data.iter().map(|&(address, length)| Segment {
        address,
        length,
        writable: kind == VIRTIO_BLK_T_IN,
    }));
    chain.push(Segment {
        address: status,
        length: 1,
        writable: true,
    });
    queue.submit_chain(&chain).unwrap();
    queue.kick().unwrap();
    let done = queue
        .next(SOON)
        .unwrap_or_else(|error| panic!("{error}\n{}", daemon.process.stderr()));
    (memory.read(status, 1).unwrap()[0], done.used)
}

#[test]
fn thousands_of_odd_segments_are_one_request() {
    // 3500 segments of 1, 2 … bytes from addresses as odd, with a gap behind each.
    const SEGMENTS: u64 = 3500;
    for cache in ["writeback", "none", "directsync"] {
        let site = Site::new();
        let image = site.image("disk.raw", 16 * MIB);
        let args = ["--blk-file", "{}/disk.raw", "--queue-size", "4096"];
        let daemon = site.blk(&[&args[..], &["--cache", cache]].concat());
        let mut connection =
            daemon.connect_with(&Options::new(daemon.socket()).regions(&[64 * MIB]));
        let shape = QueueOptions {
            size: RING,
            ..QueueOptions::default()
        };
        let mut queue = connection.queue(0, shape).unwrap();
        connection.start(&mut queue).unwrap();

        let mut segments = vec![];
        let base = connection.memory().alloc(8 * MIB, 4096).unwrap();
        let (mut at, mut total) = (base.0 + 1, 0);
        for n in 0..SEGMENTS {
            let length = n % 1500 + 1;
            segments.push((GuestAddress(at), length as u32));
            at += length + n % 3;
            total += length;
        }
        // To a whole number of the largest blocks that direct I/O asks for.
        let rest = total.next_multiple_of(4096) - total;
        segments.push((GuestAddress(at), rest as u32));
        total += rest;

        let data = pattern(11, total as usize);
        let mut offset = 0;
        for &(address, length) in &segments {
            let end = offset + length as usize;
            connection
                .memory()
                .write(address, &data[offset..end])
                .unwrap();
            offset = end;
        }
        let wrote = run(&daemon, &mut queue, VIRTIO_BLK_T_OUT, 8, &segments);
        assert_eq!(wrote, (STATUS_OK, 1), "{cache}");
        let bytes = std::fs::read(&image).unwrap();
        assert!(bytes[4096..4096 + total as usize] == data, "{cache}");
        let others = bytes[..4096].iter().chain(&bytes[4096 + total as usize..]);
        assert!(others.copied().all(|byte| byte == 0), "{cache}");

        let area = (at + rest - base.0) as usize;
        connection.memory().write(base, &vec![0xee; area]).unwrap();
        let read = run(&daemon, &mut queue, VIRTIO_BLK_T_IN, 8, &segments);
        assert_eq!(read, (STATUS_OK, total as u32 + 1), "{cache}");
        let memory = connection.memory().read(base, area).unwrap();
        let mut expected = vec![0xee; area];
        let mut offset = 0;
        for &(address, length) in &segments {
            let (start, length) = ((address.0 - base.0) as usize, length as usize);
            expected[start..start + length].copy_from_slice(&data[offset..offset + length]);
            offset += length;
        }
        assert!(memory == expected, "{cache}: the gaps are the guest's own");
    }
}

/// No chain may have more than 2^32 bytes (2.7.5.2), and no system call transfers more than 2^31.
#[test]
fn almost_four_gigabytes_are_one_request() {
    for disk in ["null:8G", "file:{}/disk.raw"] {
        let site = Site::new();
        site.image("disk.raw", 8 * GIB);
        // Around the page cache, which would be filled with zeroes.
        let daemon = site.blk(&["--disk", disk, "--cache", "none"]);
        let mut connection = daemon.connect();
        let shape = QueueOptions {
            size: 256,
            ..QueueOptions::default()
        };
        let mut queue = connection.queue(0, shape).unwrap();
        connection.start(&mut queue).unwrap();
        // The same 32 MiB again and again.
        let buffer = connection.memory().alloc(32 * MIB, 4096).unwrap();
        let segments = [(buffer, 32 * MIB as u32); 127];
        let total = segments.len() as u32 * 32 * MIB as u32;
        let end = GuestAddress(buffer.0 + 32 * MIB - 1);
        connection.memory().write(end, &[0xee]).unwrap();
        let read = run(&daemon, &mut queue, VIRTIO_BLK_T_IN, 0, &segments);
        assert_eq!(read, (STATUS_OK, total + 1), "{disk}");
        let byte = connection.memory().read(end, 1).unwrap()[0];
        let expected = if disk.starts_with("null") { 0xee } else { 0 };
        assert_eq!(byte, expected, "{disk}");
        // The last one of these is behind the end.
        let sector = (8 * GIB - u64::from(total)) / 512 + 1;
        let read = run(&daemon, &mut queue, VIRTIO_BLK_T_IN, sector, &segments);
        assert_eq!(read, (STATUS_IOERR, 1), "{disk}");
    }
}
