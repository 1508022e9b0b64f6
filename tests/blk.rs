//! Every request and every feature of the block device, from the socket to the image.

use std::os::unix::fs::MetadataExt;

use outboard_frontend::config::{CONFIG_SIZE, WCE_OFFSET};
use outboard_frontend::{
    Completion, Options, QueueOptions, Range, Request, STATUS_IOERR, STATUS_OK, TableMessage,
};
use outboard_tests::daemon::Site;
use outboard_tests::load::{Load, pattern};
use outboard_tests::process::SOON;
use vhost::vhost_user::message::FrontendReq;
use virtio_bindings::bindings::virtio_blk::*;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

const MIB: u64 = 1 << 20;

#[test]
fn every_request_does_what_it_says_to_the_image() {
    let site = Site::new();
    let image = site.image("disk.raw", 16 * MIB);
    let daemon = site.blk(&["--blk-file", "{}/disk.raw", "--serial", "outboard 1"]);
    let mut connection = daemon.connect();
    assert_eq!(connection.server_pid().unwrap(), daemon.process.pid());
    let mut queue = connection.queue(0, QueueOptions::default()).unwrap();
    connection.start(&mut queue).unwrap();

    let data = pattern(1, 128 << 10);
    let write = queue.run(&Request::write(8, &data), SOON).unwrap();
    assert_eq!((write.status, write.used), (STATUS_OK, 1));
    let read = queue
        .run(&Request::read(8, data.len() as u32), SOON)
        .unwrap();
    assert_eq!((read.status, read.used), (STATUS_OK, data.len() as u32 + 1));
    assert!(read.data == data);
    assert_eq!(
        queue.read(0, 4096).unwrap(),
        [0; 4096],
        "the neighbours are untouched"
    );
    let flush = queue.run(&Request::flush(), SOON).unwrap();
    assert_eq!((flush.status, flush.used), (STATUS_OK, 1));
    assert!(
        std::fs::read(&image).unwrap()[4096..4096 + data.len()] == data,
        "the bytes are in the image"
    );

    let id = queue.run(&Request::get_id(), SOON).unwrap();
    assert_eq!((id.status, id.used), (STATUS_OK, 21));
    assert_eq!(id.data, b"outboard 1\0\0\0\0\0\0\0\0\0\0");

    // Two segments with a gap, one allowed to release its space.
    queue
        .write_zeroes(&[Range::new(16, 8), Range::new(32, 8).unmap()])
        .unwrap();
    let mut expected = data.clone();
    expected[8 * 512..16 * 512].fill(0);
    expected[24 * 512..32 * 512].fill(0);
    assert!(queue.read(8, data.len() as u32).unwrap() == expected);

    queue
        .discard(&[Range::new(64, 64), Range::new(160, 64)])
        .unwrap();
    expected[56 * 512..120 * 512].fill(0);
    expected[152 * 512..216 * 512].fill(0);
    assert!(
        queue.read(8, data.len() as u32).unwrap() == expected,
        "a file's holes read as zeroes"
    );
    let file = std::fs::File::open(&image).unwrap();
    for (sector, sectors) in [(64, 64), (160, 64)] {
        let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(sector * 512)).unwrap();
        assert_eq!(
            data,
            (sector + sectors) * 512,
            "the space from sector {sector} on is released"
        );
    }

    let mut disk = vec![0; 16 << 20];
    disk[4096..4096 + data.len()].copy_from_slice(&expected);
    assert!(
        std::fs::read(&image).unwrap() == disk,
        "and nothing else was changed"
    );
}

#[test]
fn any_cut_of_a_request_arrives_whole() {
    let site = Site::new();
    let daemon = site.blk(&["--disk", "ram:1M"]);
    let mut connection = daemon.connect();
    assert!(connection.has(VIRTIO_RING_F_INDIRECT_DESC));
    let mut queue = connection.queue(0, QueueOptions::default()).unwrap();
    connection.start(&mut queue).unwrap();
    let mut random = fastrand::Rng::with_seed(1);
    // Descriptors of random lengths that add up to `length`.
    let mut cut = |length: u32| {
        let mut lengths = vec![];
        let mut left = length;
        while left > 0 && lengths.len() < 20 {
            let piece = if random.bool() {
                random.u32(1..=left.min(20))
            } else {
                random.u32(1..=left)
            };
            lengths.push(piece);
            left -= piece;
        }
        lengths.extend((left > 0).then_some(left));
        lengths
    };
    for round in 0..200 {
        let data = pattern(round + 1, 2048);
        let sector = round % 100 * 4;
        let indirect = round % 2 == 0;
        let write = Request::write(sector, &data)
            .cut(&cut(16 + 2048), &[1])
            .indirect(indirect);
        assert_eq!(
            queue.run(&write, SOON).unwrap().ok().unwrap().used,
            1,
            "{:?}",
            write.layout
        );
        let read = Request::read(sector, 2048)
            .cut(&cut(16), &cut(2048 + 1))
            .indirect(indirect);
        let reply = queue.run(&read, SOON).unwrap().ok().unwrap();
        assert!(
            reply.data == data && reply.used == 2049,
            "{:?}",
            read.layout
        );
        let id = Request::get_id().cut(&cut(16), &cut(21)).indirect(indirect);
        assert_eq!(
            queue.run(&id, SOON).unwrap().ok().unwrap().data,
            [0; 20],
            "no serial was given"
        );
        let list = Range::encode(&[Range::new(sector, 1), Range::new(sector + 3, 1)]);
        let zeroes = Request::raw(VIRTIO_BLK_T_WRITE_ZEROES, 0, list, 0).cut(&cut(16 + 32), &[1]);
        queue
            .run(&zeroes.indirect(indirect), SOON)
            .unwrap()
            .ok()
            .unwrap();
        let reply = queue.read(sector, 2048).unwrap();
        assert!(
            reply[..512] == [0; 512]
                && reply[512..1536] == data[512..1536]
                && reply[1536..] == [0; 512]
        );
    }
}

#[test]
fn four_queues_in_four_threads_with_and_without_event_idx_and_indirect() {
    const PART: usize = 256;
    let site = Site::new();
    let image = site.image("disk.raw", 4 * MIB);
    let daemon = site.blk(&[
        "--blk-file",
        "{}/disk.raw",
        "--num-queues",
        "4",
        "--workers",
        "2",
    ]);
    let mut loads: Vec<_> = (0..4).map(|n| Load::new(n * 2048, PART, 1024, n)).collect();
    for without in [
        &[][..],
        &[VIRTIO_RING_F_EVENT_IDX],
        &[VIRTIO_RING_F_INDIRECT_DESC],
    ] {
        for completion in [Completion::Event, Completion::Polled] {
            let mut connection =
                daemon.connect_with(&Options::new(daemon.socket()).without(without));
            assert_eq!(connection.queue_count(), 4);
            let shape = QueueOptions {
                completion,
                indirect: true,
                ..QueueOptions::default()
            };
            let mut queues: Vec<_> = (0..4)
                .map(|index| connection.queue(index, shape).unwrap())
                .collect();
            for queue in &mut queues {
                connection.start(queue).unwrap();
            }
            std::thread::scope(|scope| {
                for (queue, load) in queues.iter_mut().zip(&mut loads) {
                    scope.spawn(move || load.run(queue, 16, 1000));
                }
            });
            for queue in &mut queues {
                assert_eq!((queue.counters().completed, queue.in_flight()), (1000, 0));
                assert_eq!(connection.stop(queue).unwrap(), 1000);
            }
        }
    }
    let bytes = std::fs::read(&image).unwrap();
    loads.iter().for_each(|load| load.verify(&bytes));
}

#[test]
fn features_and_configuration_are_those_of_the_options() {
    let site = Site::new();
    site.image("disk.raw", 8 * MIB);
    let daemon = site.blk(&[
        "--blk-file",
        "{}/disk.raw",
        "--num-queues",
        "3",
        "--queue-size",
        "64",
    ]);
    let mut connection = daemon.connect();
    for feature in [
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_CONFIG_WCE,
        VIRTIO_BLK_F_MQ,
        VIRTIO_BLK_F_DISCARD,
        VIRTIO_BLK_F_WRITE_ZEROES,
    ] {
        assert!(connection.has(feature), "feature {feature}");
    }
    for feature in [
        VIRTIO_BLK_F_RO,
        VIRTIO_BLK_F_SECURE_ERASE,
        VIRTIO_BLK_F_ZONED,
        VIRTIO_BLK_F_SIZE_MAX,
    ] {
        assert_eq!(connection.offered() >> feature & 1, 0, "feature {feature}");
    }
    let config = connection.config().unwrap();
    assert_eq!(
        (config.capacity, config.num_queues, config.blk_size),
        (8 * MIB / 512, 3, 512)
    );
    assert_eq!((config.seg_max, config.wce), (62, 1));
    assert!(config.max_discard_seg > 1 && config.max_write_zeroes_seg > 1);
    assert!(config.max_discard_sectors >= 2048 && config.max_write_zeroes_sectors >= 2048);
    assert_eq!(config.write_zeroes_may_unmap, 1);
    assert_eq!(connection.queue_count(), 3);
}

#[test]
fn topology_is_that_of_the_file_system() {
    let site = Site::new();
    let image = site.image("disk.raw", 8 * MIB);
    let preferred = std::fs::metadata(&image).unwrap().blksize();
    for (args, block) in [
        (&[][..], 512),
        (&["--block-size", "1024"], 1024),
        (&["--block-size", "4096"], 4096),
    ] {
        let daemon = site.blk(&[&["--blk-file", "{}/disk.raw"], args].concat());
        let config = daemon.connect().config().unwrap();
        assert_eq!(u64::from(config.blk_size), block);
        let physical = block << config.physical_block_exp;
        assert_eq!(physical, preferred.max(block), "the file system's block");
        assert_eq!(u64::from(config.min_io_size) * block, physical);
        assert_eq!(u64::from(config.discard_sector_alignment) * 512, physical);
        assert_eq!(config.alignment_offset, 0);
    }
}

#[test]
fn a_disk_of_4096_byte_blocks_takes_whole_blocks_only() {
    let site = Site::new();
    site.image("disk.raw", MIB);
    let daemon = site.blk(&["--blk-file", "{}/disk.raw", "--block-size", "4096"]);
    let mut connection = daemon.connect();
    assert_eq!(connection.config().unwrap().blk_size, 4096);
    let mut queue = connection.queue(0, QueueOptions::default()).unwrap();
    connection.start(&mut queue).unwrap();
    let data = pattern(1, 8192);
    queue.write(8, &data).unwrap();
    assert!(queue.read(8, 8192).unwrap() == data);
    for (sector, length) in [(8, 512), (9, 4096), (8, 4608), (15, 512)] {
        assert_eq!(
            queue
                .run(&Request::read(sector, length), SOON)
                .unwrap()
                .status,
            STATUS_IOERR
        );
        let write = Request::write(sector, &data[..length as usize]);
        assert_eq!(
            queue.run(&write, SOON).unwrap().status,
            STATUS_IOERR,
            "{length} bytes at {sector}"
        );
    }
    let zeroes = Request::write_zeroes(&[Range::new(8, 4)]);
    assert_eq!(queue.run(&zeroes, SOON).unwrap().status, STATUS_IOERR);
    assert!(queue.read(8, 8192).unwrap() == data, "nothing was written");
}

#[test]
fn get_config_answers_exactly_the_bytes_asked_for() {
    let site = Site::new();
    let daemon = site.blk(&["--disk", "ram:1M"]);
    let connection = daemon.connect();
    let wire = connection.wire().unwrap();
    let get_config = FrontendReq::GET_CONFIG as u32;
    let ask = |offset: u32, size: u32| {
        let head = [offset, size, 0].map(u32::to_ne_bytes).concat();
        let payload = [head, vec![0; size as usize]].concat();
        wire.ask(get_config, &payload, &[], SOON).unwrap().payload
    };
    let whole = ask(0, CONFIG_SIZE as u32);
    assert_eq!(whole.len(), 12 + CONFIG_SIZE);
    assert_eq!(whole[12..20], 2048u64.to_le_bytes());
    for size in 1..=CONFIG_SIZE as u32 {
        let reply = ask(0, size);
        assert_eq!(
            reply[..12],
            [0, size, 0].map(u32::to_ne_bytes).concat(),
            "a prefix of {size} bytes"
        );
        assert_eq!(reply[12..], whole[12..12 + size as usize]);
    }
    for (offset, size) in [(8, 8), (32, 1), (20, 40)] {
        assert_eq!(
            ask(offset, size)[12..],
            whole[12 + offset as usize..(12 + offset + size) as usize]
        );
    }
    // The specification's answer to a range that is not there: no bytes.
    let reply = ask(200, 56);
    assert_eq!((reply.len(), &reply[4..8]), (12, &[0; 4][..]));
}

#[test]
fn a_read_only_disk_is_offered_as_such_and_nothing_changes_it() {
    let site = Site::new();
    let image = site.path("disk.raw");
    let data = pattern(9, 1 << 20);
    std::fs::write(&image, &data).unwrap();
    let daemon = site.blk(&["--blk-file", "{}/disk.raw", "--read-only"]);
    let mut connection = daemon.connect();
    assert!(connection.has(VIRTIO_BLK_F_RO) && connection.has(VIRTIO_BLK_F_FLUSH));
    assert!(!connection.has(VIRTIO_BLK_F_DISCARD) && !connection.has(VIRTIO_BLK_F_WRITE_ZEROES));
    let mut queue = connection.queue(0, QueueOptions::default()).unwrap();
    connection.start(&mut queue).unwrap();
    for change in [
        Request::write(0, &[1; 512]),
        Request::discard(&[Range::new(0, 8)]),
        Request::write_zeroes(&[Range::new(0, 8)]),
    ] {
        let reply = queue.run(&change, SOON).unwrap();
        assert_eq!(
            (reply.status, reply.used),
            (STATUS_IOERR, 1),
            "{}",
            change.name()
        );
    }
    assert!(queue.read(0, 65536).unwrap() == data[..65536]);
    queue.flush().unwrap();
    assert!(std::fs::read(&image).unwrap() == data);
    // Readers do not exclude each other.
    let other = Site::new();
    let second = other.blk(&["--blk-file", image.to_str().unwrap(), "--read-only"]);
    assert!(second.connect().has(VIRTIO_BLK_F_RO));
}

#[test]
fn the_driver_switches_the_cache_mode_if_it_negotiated_that() {
    let site = Site::new();
    for (cache, start) in [("writeback", 1), ("writethrough", 0), ("unsafe", 1)] {
        site.image("disk.raw", MIB);
        let daemon = site.blk(&["--blk-file", "{}/disk.raw", "--cache", cache]);
        let mut connection = daemon.connect();
        let mut queue = connection.queue(0, QueueOptions::default()).unwrap();
        connection.start(&mut queue).unwrap();
        assert_eq!(connection.config().unwrap().wce, start, "{cache}");
        for mode in [0, 1, 0] {
            connection.set_config(WCE_OFFSET, &[mode]).unwrap();
            assert_eq!(connection.config().unwrap().wce, mode);
            // Whatever the mode, requests work; that writes are durable is shown where the disk can be watched.
            let data = pattern(u64::from(mode) + 1, 4096);
            queue.write(0, &data).unwrap();
            queue.write_zeroes(&[Range::new(8, 8)]).unwrap();
            queue.discard(&[Range::new(16, 8)]).unwrap();
            assert!(queue.read(0, 4096).unwrap() == data);
        }
        assert!(
            connection.set_config(0, &[1; 8]).is_err(),
            "the capacity is not the driver's to write"
        );
        drop(connection);

        let mut next =
            daemon.connect_with(&Options::new(daemon.socket()).without(&[VIRTIO_BLK_F_CONFIG_WCE]));
        assert!(next.set_config(WCE_OFFSET, &[0]).is_err(), "not negotiated");
    }
}

#[test]
fn a_driver_that_can_neither_flush_nor_switch_finds_a_write_through_cache() {
    let site = Site::new();
    let daemon = site.blk(&["--disk", "ram:1M"]);
    let without = [VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH];
    let mut connection = daemon.connect_with(&Options::new(daemon.socket()).without(&without));
    assert_eq!(connection.config().unwrap().wce, 0);
    let mut queue = connection.queue(0, QueueOptions::default()).unwrap();
    connection.start(&mut queue).unwrap();
    queue.write(0, &[3; 512]).unwrap();
    assert_eq!(queue.read(0, 512).unwrap(), [3; 512]);
}

#[test]
fn what_one_front_end_wrote_the_next_one_reads() {
    let site = Site::new();
    site.image("disk.raw", MIB);
    let daemon = site.blk(&["--blk-file", "{}/disk.raw"]);
    let idle = daemon.idle_fds();
    for round in 0..20u64 {
        let table = if round % 2 == 0 {
            TableMessage::SetMemTable
        } else {
            TableMessage::AddMemReg
        };
        let options = Options {
            table,
            ..Options::new(daemon.socket()).regions(&[MIB, 16 * MIB])
        };
        let mut connection = daemon.connect_with(&options);
        let shape = QueueOptions {
            buffer_region: 1,
            ..QueueOptions::default()
        };
        let mut queue = connection.queue(0, shape).unwrap();
        connection.start(&mut queue).unwrap();
        assert!(
            queue.read(round, 4096).unwrap() == pattern(round, 4096),
            "round {round}"
        );
        queue.write(round + 1, &pattern(round + 1, 4096)).unwrap();
        if round % 3 == 0 {
            connection.stop(&mut queue).unwrap();
        }
    }
    daemon.wait_idle(&idle);
}
