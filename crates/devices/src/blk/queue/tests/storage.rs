//! The handler on a worker's reactor, with disks of the storage crate.

use super::*;
use outboard_reactor::{Config, Reactor};
use outboard_storage::uri::{OpenOptions, open};
use std::time::{Duration, Instant};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 32;

/// Passes until `count` requests are answered; their heads in the device's order.
fn answers(h: &mut Harness<dyn Disk>, reactor: &mut Reactor, count: usize) -> Vec<(u16, Answer)> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut answers = Vec::new();
    h.pass().unwrap();
    while answers.len() < count {
        answers.extend(h.answers());
        if answers.len() >= count {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "{} of {count} answered",
            answers.len()
        );
        reactor
            .wait(&mut Vec::new(), Some(Duration::from_secs(1)))
            .unwrap();
        h.completions();
    }
    answers
}

/// Writes all blocks, then reads and rewrites them at random, each verified, on a disk that answers in another order.
#[test]
fn requests_to_a_disk_that_completes_out_of_order_find_their_own_answers() {
    let mut reactor = Reactor::new(Config::default()).unwrap();
    let disk = open(
        "delay:0ms-3ms:ram:128K",
        &OpenOptions {
            seed: 7,
            ..OpenOptions::default()
        },
    )
    .unwrap();
    let mut h = Harness::on(&reactor, disk);
    let mut random = fastrand::Rng::with_seed(11);
    let mut stamps = vec![0u8; BLOCKS as usize];
    let mut overtaken = 0;
    for round in 0..20 {
        let mut sent = Vec::new();
        for block in 0..BLOCKS {
            let stamp = (round == 0 || random.bool()).then(|| random.u8(1..));
            let request = match stamp {
                Some(stamp) => write(block * 8, &[stamp; BLOCK]),
                None => read(block * 8, 8),
            };
            sent.push((h.send(&request, &Layout::default()), block as usize, stamp));
        }
        let answers = answers(&mut h, &mut reactor, sent.len());
        overtaken += answers
            .windows(2)
            .filter(|pair| pair[0].0 > pair[1].0)
            .count();
        for (head, block, stamp) in sent {
            let (_, answer) = answers
                .iter()
                .find(|(h, _)| *h == head)
                .expect("answered once");
            match stamp {
                Some(stamp) => {
                    assert_eq!(*answer, status(OK));
                    stamps[block] = stamp;
                }
                None => {
                    let room = vec![stamps[block]; BLOCK];
                    assert_eq!(
                        *answer,
                        Answer {
                            status: OK,
                            room,
                            used: BLOCK as u32 + 1
                        }
                    );
                }
            }
        }
    }
    assert!(overtaken > 100, "the disk kept the order: {overtaken}");
    assert_eq!(h.handler.in_flight(), 0);
}

#[test]
fn every_request_works_on_a_file() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let mut reactor = Reactor::new(Config::default()).unwrap();
    let uri = format!("file:{}", image.path().display());
    let mut h = Harness::on(&reactor, open(&uri, &OpenOptions::default()).unwrap());
    let requests = [
        write(8, &[5; 8192]),
        zeroes(&[(8, 8, 0)]),
        zeroes(&[(24, 8, 1), (32, 8, 0)]),
        flush(),
        read(8, 16),
        discard(&[(64, 64, 0), (256, 8, 0)]),
    ];
    for request in requests {
        h.send(&request, &Layout::default());
        let (_, answer) = answers(&mut h, &mut reactor, 1).remove(0);
        assert_eq!(answer.status, OK, "{request:?}");
        if request.room > 0 {
            assert_eq!(answer.room, [vec![0; 4096], vec![5; 4096]].concat());
        }
    }
    let bytes = std::fs::read(image.path()).unwrap();
    assert_eq!(bytes[8192..12288], [5; 4096]);
}

#[test]
fn a_queue_that_the_device_does_not_have_is_refused() {
    let reactor = Reactor::new(Config::default()).unwrap();
    let h = Harness::on(&reactor, open("null:1M", &OpenOptions::default()).unwrap());
    let setup = outboard_virtio::device::QueueSetup {
        index: 2,
        features: 0,
        port: reactor.port(),
    };
    let error = h.blk.open_queue(setup).err().expect("refused").to_string();
    assert!(error.contains("no queue 2"), "{error}");
}
