//! `delay`: late and out of order, but never too early.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use outboard_storage::{
    disk::Op,
    uri::{OpenOptions, open},
};
use std::time::{Duration, Instant};
use support::{Driver, empty};

/// Runs `count` operations at once and returns the order in which they completed, by position.
fn order(uri: &str, seed: u64, count: u32) -> Vec<u32> {
    let options = OpenOptions {
        seed,
        ..Default::default()
    };
    let disk = open(uri, &options).unwrap();
    let mut driver = Driver::new(&*disk);
    let tokens: Vec<_> = (0..count)
        .map(|_| {
            driver.start(Op::Read {
                offset: 0,
                buf: empty(),
            })
        })
        .collect();
    tokens
        .iter()
        .for_each(|token| driver.finish(*token).result.unwrap());
    let position = |token| tokens.iter().position(|t| *t == token).unwrap() as u32;
    driver.order.iter().map(|token| position(*token)).collect()
}

#[test]
fn operations_complete_out_of_order() {
    let order = order("delay:1ms-200ms:ram:1M", 1, 16);
    assert!(!order.is_sorted(), "{order:?}");
}

#[test]
fn nothing_completes_before_its_delay() {
    let disk = open("delay:30ms-40ms:ram:1M", &OpenOptions::default()).unwrap();
    let mut driver = Driver::new(&*disk);
    for _ in 0..3 {
        let start = Instant::now();
        driver.run(Op::Flush).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(30));
    }
}

#[test]
fn errors_are_delayed_too_and_stay_errors() {
    let disk = open("delay:1ms-2ms:ram:1M", &OpenOptions::default()).unwrap();
    let mut driver = Driver::new(&*disk);
    assert_eq!(
        driver.errno(Op::Discard {
            offset: 1 << 20,
            len: 512
        }),
        libc::EINVAL
    );
}

#[test]
fn effects_are_not_delayed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, [0; 4096]).unwrap();
    let uri = format!("delay:3600s:file:{}", path.display());
    let disk = open(&uri, &OpenOptions::default()).unwrap();
    let memory = support::memory::Memory::plain(4096);
    memory.set(&[7; 4096]);
    let mut driver = Driver::new(&*disk);
    driver.start(Op::Write {
        offset: 0,
        buf: memory.buffers(),
        durable: false,
    });
    let deadline = Instant::now() + Duration::from_secs(60);
    while std::fs::read(&path).unwrap() != [7; 4096] {
        assert!(Instant::now() < deadline, "the write waits for its delay");
        driver.poll(Duration::from_millis(10));
    }
    assert!(driver.order.is_empty(), "it completed too early");
    driver.drop_queue();
}
