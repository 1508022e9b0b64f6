//! The front end against a back end that is not ours: what it says of our daemon is worth something only if it says
//! the truth of qemu-storage-daemon.

use std::time::Duration;

use outboard_frontend::bench::{BenchArgs, Mode, Pattern, measure};
use outboard_frontend::driver::drain;
use outboard_frontend::{
    Completion, Connection, Options, QueueOptions, Range, Request, STATUS_IOERR, STATUS_OK,
    STATUS_UNSUPP, TableMessage,
};
use outboard_tests::load::{Load, pattern};
use outboard_tests::process::SOON;
use outboard_tests::qsd::{Qsd, available};
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

const MIB: u64 = 1 << 20;

#[test]
fn every_request_does_what_it_says() {
    if !available("every_request_does_what_it_says") {
        return;
    }
    let qsd = Qsd::file(16 * MIB, 1, "");
    let mut connection = Connection::open(&Options::new(qsd.socket())).unwrap();
    let config = connection.config().unwrap();
    assert_eq!(config.capacity, 16 * MIB / 512);
    let mut queue = connection.queue(0, QueueOptions::default()).unwrap();
    connection.start(&mut queue).unwrap();

    let data = pattern(1, 64 << 10);
    queue.write(8, &data).unwrap();
    assert_eq!(queue.read(8, data.len() as u32).unwrap(), data);
    assert_eq!(
        queue.read(0, 4096).unwrap(),
        [0; 4096],
        "the neighbours are untouched"
    );
    queue.flush().unwrap();
    let image = std::fs::read(qsd.image()).unwrap();
    assert_eq!(
        &image[8 * 512..8 * 512 + data.len()],
        data,
        "the bytes are in the file"
    );

    assert_eq!(
        queue.get_id().unwrap(),
        b"vhost_user_blk",
        "the serial that qemu-storage-daemon gives"
    );

    queue.write_zeroes(&[Range::new(16, 8).unmap()]).unwrap();
    let after = queue.read(8, data.len() as u32).unwrap();
    assert_eq!(after[..8 * 512], data[..8 * 512]);
    assert!(
        after[8 * 512..16 * 512].iter().all(|byte| *byte == 0),
        "zeroed"
    );
    assert_eq!(after[16 * 512..], data[16 * 512..]);
    queue.discard(&[Range::new(64, 64)]).unwrap();

    let beyond = queue
        .run(&Request::read(config.capacity, 512), SOON)
        .unwrap();
    assert_eq!(beyond.status, STATUS_IOERR);
    let unknown = queue
        .run(&Request::raw(0x5eed, 0, &[][..], 512), SOON)
        .unwrap();
    assert_eq!(unknown.status, STATUS_UNSUPP);
    let read = queue.run(&Request::read(8, 512), SOON).unwrap();
    assert_eq!(
        (read.status, read.used),
        (STATUS_OK, 513),
        "data and status"
    );
    assert_eq!(connection.server_pid().unwrap(), qsd.process.pid());
}

#[test]
fn any_cut_of_a_request_arrives_whole() {
    if !available("any_cut_of_a_request_arrives_whole") {
        return;
    }
    let qsd = Qsd::file(MIB, 1, "");
    let mut connection = Connection::open(&Options::new(qsd.socket())).unwrap();
    assert!(connection.has(VIRTIO_RING_F_INDIRECT_DESC));
    let mut queue = connection.queue(0, QueueOptions::default()).unwrap();
    connection.start(&mut queue).unwrap();
    let data = pattern(2, 2048);
    for indirect in [false, true] {
        let whole = Request::write(4, &data)
            .cut(&[16 + 2048], &[1])
            .indirect(indirect);
        queue.run(&whole, SOON).unwrap().ok().unwrap();
        let pieces = Request::write(8, &data)
            .cut(&[5, 11, 1, 1000, 1047], &[1])
            .indirect(indirect);
        queue.run(&pieces, SOON).unwrap().ok().unwrap();
        for sector in [4, 8] {
            let classic = Request::read(sector, 2048).indirect(indirect);
            assert_eq!(queue.run(&classic, SOON).unwrap().ok().unwrap().data, data);
            let joined = Request::read(sector, 2048)
                .cut(&[16], &[2049])
                .indirect(indirect);
            assert_eq!(queue.run(&joined, SOON).unwrap().ok().unwrap().data, data);
            let pieces = Request::read(sector, 2048)
                .cut(&[8, 8], &[700, 1, 1347, 1])
                .indirect(indirect);
            assert_eq!(queue.run(&pieces, SOON).unwrap().ok().unwrap().data, data);
        }
        queue.write(4, &[0; 4096]).unwrap();
    }
}

#[test]
fn two_queues_in_two_threads_event_and_polled_with_and_without_event_idx() {
    if !available("two_queues_in_two_threads_event_and_polled_with_and_without_event_idx") {
        return;
    }
    let qsd = Qsd::file(4 * MIB, 2, "");
    for without in [
        &[][..],
        &[VIRTIO_RING_F_EVENT_IDX],
        &[VIRTIO_RING_F_INDIRECT_DESC],
    ] {
        for completion in [Completion::Event, Completion::Polled] {
            let mut connection =
                Connection::open(&Options::new(qsd.socket()).without(without)).unwrap();
            assert_eq!(connection.queue_count(), 2);
            let shape = QueueOptions {
                completion,
                indirect: true,
                ..QueueOptions::default()
            };
            let mut queues: Vec<_> = (0..2)
                .map(|index| connection.queue(index, shape).unwrap())
                .collect();
            for (index, queue) in queues.iter_mut().enumerate() {
                connection.start(queue).unwrap();
                // The disk is what the round before left; the model begins with zeroes.
                queue
                    .write_zeroes(&[Range::new(index as u64 * 2048, 2048)])
                    .unwrap();
            }
            std::thread::scope(|scope| {
                for (index, queue) in queues.iter_mut().enumerate() {
                    scope.spawn(move || {
                        Load::new(index as u64 * 2048, 256, 1024, index as u64).run(queue, 16, 3000)
                    });
                }
            });
            for queue in &queues {
                assert_eq!(queue.counters().completed, 3001);
                assert_eq!(queue.in_flight(), 0);
            }
        }
    }
}

#[test]
fn a_ring_can_be_stopped_and_started_and_goes_on_where_it_was() {
    if !available("a_ring_can_be_stopped_and_started_and_goes_on_where_it_was") {
        return;
    }
    let qsd = Qsd::file(MIB, 1, "");
    let mut connection = Connection::open(&Options::new(qsd.socket())).unwrap();
    let mut queue = connection
        .queue(
            0,
            QueueOptions {
                size: 16,
                ..QueueOptions::default()
            },
        )
        .unwrap();
    for round in 0..50_u64 {
        connection.start(&mut queue).unwrap();
        let data = pattern(round, 512);
        for sector in 0..3 {
            queue.write(sector, &data).unwrap();
            assert_eq!(queue.read(sector, 512).unwrap(), data);
        }
        let base = connection.stop(&mut queue).unwrap();
        assert_eq!(u64::from(base), (round + 1) * 6);
        // Offered while stopped: to be found at the next start.
        if round == 49 {
            let slot = queue.submit(&Request::read(2, 512)).unwrap();
            queue.kick().unwrap();
            connection.start(&mut queue).unwrap();
            assert_eq!(queue.wait_for(slot, SOON).unwrap().data, data);
        }
    }
}

#[test]
fn the_call_eventfd_can_be_swapped_with_requests_in_flight() {
    if !available("the_call_eventfd_can_be_swapped_with_requests_in_flight") {
        return;
    }
    let qsd = Qsd::file(MIB, 1, "");
    let mut connection = Connection::open(&Options::new(qsd.socket())).unwrap();
    let mut queue = connection.queue(0, QueueOptions::default()).unwrap();
    connection.start(&mut queue).unwrap();
    for _ in 0..200 {
        let slots: Vec<_> = (0..8)
            .map(|i| queue.submit(&Request::read(i, 512)).unwrap())
            .collect();
        queue.kick().unwrap();
        let old = connection.swap_call(&mut queue).unwrap();
        for slot in slots {
            queue.wait_for(slot, SOON).unwrap().ok().unwrap();
        }
        drain(&old).unwrap();
        queue.read(0, 512).unwrap();
        assert_eq!(
            drain(&old).unwrap(),
            0,
            "a signal on the eventfd that was taken away"
        );
    }
}

#[test]
fn regions_can_be_many_and_told_one_by_one() {
    if !available("regions_can_be_many_and_told_one_by_one") {
        return;
    }
    let qsd = Qsd::file(MIB, 1, "");
    for table in [TableMessage::SetMemTable, TableMessage::AddMemReg] {
        let options = Options {
            table,
            ..Options::new(qsd.socket()).regions(&[MIB, 4096, 32 * MIB])
        };
        let mut connection = Connection::open(&options).unwrap();
        let shape = QueueOptions {
            buffer_region: 2,
            ..QueueOptions::default()
        };
        let mut queue = connection.queue(0, shape).unwrap();
        connection.start(&mut queue).unwrap();
        let data = pattern(3, 4096);
        queue.write(0, &data).unwrap();
        assert_eq!(queue.read(0, 4096).unwrap(), data);
    }
}

#[test]
fn a_front_end_that_comes_back_offers_what_was_not_completed() {
    if !available("a_front_end_that_comes_back_offers_what_was_not_completed") {
        return;
    }
    let qsd = Qsd::file(MIB, 1, "");
    let options = Options::new(qsd.socket());
    let mut connection = Connection::open(&options).unwrap();
    let mut queue = connection.queue(0, QueueOptions::default()).unwrap();
    connection.start(&mut queue).unwrap();
    let data = pattern(4, 4096);
    queue.write(0, &data).unwrap();
    connection.stop(&mut queue).unwrap();
    // Submitted to nobody: the ring is stopped, the connection goes away.
    let slots: Vec<_> = (0..8)
        .map(|i| queue.submit(&Request::read(i, 512)).unwrap())
        .collect();
    queue.kick().unwrap();
    let memory = connection.memory().clone();
    drop(connection);
    let mut connection = Connection::open_with(&options, memory).unwrap();
    queue.requeue_in_flight();
    connection.start(&mut queue).unwrap();
    for (sector, slot) in slots.into_iter().enumerate() {
        let reply = queue.wait_for(slot, SOON).unwrap().ok().unwrap();
        assert_eq!(reply.data, data[sector * 512..(sector + 1) * 512]);
    }
}

#[test]
fn a_wait_that_ends_says_whether_the_device_was_slow() {
    if !available("a_wait_that_ends_says_whether_the_device_was_slow") {
        return;
    }
    let qsd = Qsd::null(MIB, 1);
    let mut connection = Connection::open(&Options::new(qsd.socket())).unwrap();
    let mut queue = connection.queue(0, QueueOptions::default()).unwrap();
    // Not started: nothing can complete.
    let slot = queue.submit(&Request::read(0, 512)).unwrap();
    queue.kick().unwrap();
    let error = queue.wait_for(slot, Duration::from_millis(20)).unwrap_err();
    assert!(
        matches!(error, outboard_frontend::Error::Timeout { .. }),
        "{error}"
    );
    connection.start(&mut queue).unwrap();
    assert_eq!(queue.wait_for(slot, SOON).unwrap().status, STATUS_OK);
}

fn bench_args(qsd: &Qsd) -> BenchArgs {
    BenchArgs {
        rw: Pattern::RandRw,
        depth: 8,
        queues: 2,
        span: Some(MIB),
        warmup: 0.0,
        ios: Some(3001),
        verify: true,
        ..BenchArgs::new(qsd.socket())
    }
}

#[test]
fn the_bench_counts_what_it_did_and_finds_the_disk_sound() {
    if !available("the_bench_counts_what_it_did_and_finds_the_disk_sound") {
        return;
    }
    let qsd = Qsd::file(2 * MIB, 2, "");
    for (mode, direct) in [(Mode::Event, false), (Mode::Polled, true)] {
        let report = measure(&BenchArgs {
            mode,
            direct,
            ..bench_args(&qsd)
        })
        .unwrap();
        assert_eq!((report.fault(), report.ios), (None, 3001));
        assert_eq!(report.server_pid, qsd.process.pid());
        assert!(
            report.server_cpu_us_per_io > 0.0,
            "3001 requests cost the back end something"
        );
        let verified = report.verified.as_ref().unwrap();
        // The final pass alone reads every block of the span; of 3001 requests 70 % are reads.
        assert!(verified.checked > MIB / 4096 + 1500, "{verified:?}");
        let parsed: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
        assert_eq!(parsed["ios"], 3001);
        assert_eq!(
            parsed["latency_us"]["p50"].as_f64(),
            Some(report.latency_us.p50)
        );
        if mode == Mode::Polled {
            assert_eq!(
                parsed["calls_per_io"], 0.0,
                "a polling client asks for no calls"
            );
        }
    }
}

#[test]
fn the_bench_finds_out_a_disk_that_forgets() {
    if !available("the_bench_finds_out_a_disk_that_forgets") {
        return;
    }
    let qsd = Qsd::null(2 * MIB, 2);
    let report = measure(&bench_args(&qsd)).unwrap();
    let verified = report.verified.as_ref().unwrap();
    assert_eq!(verified.flaws, verified.checked, "every block is gone");
    assert!(
        report.fault().unwrap().contains("blocks were wrong"),
        "and the run is a failure"
    );
    assert!(
        verified.shown[0].contains("was never written"),
        "{verified:?}"
    );
}

#[test]
fn the_bench_refuses_what_it_cannot_do() {
    if !available("the_bench_refuses_what_it_cannot_do") {
        return;
    }
    let qsd = Qsd::null(MIB, 2);
    let good = bench_args(&qsd);
    for (bad, word) in [
        (
            BenchArgs {
                queues: 3,
                ..good.clone()
            },
            "3 queues",
        ),
        (
            BenchArgs {
                span: Some(2 * MIB),
                ..good.clone()
            },
            "span",
        ),
        (
            BenchArgs {
                span: Some(4096),
                ..good.clone()
            },
            "span",
        ),
        (
            BenchArgs {
                block_size: 1000,
                ..good.clone()
            },
            "block size",
        ),
        (
            BenchArgs {
                ios: Some(0),
                ..good.clone()
            },
            "nothing to measure",
        ),
        (
            BenchArgs {
                seconds: 0.0,
                ios: None,
                ..good.clone()
            },
            "nothing to measure",
        ),
        (
            BenchArgs {
                warmup: -1.0,
                ..good.clone()
            },
            "warm-up",
        ),
    ] {
        let error = measure(&bad).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}
