//! A discard on `ram` gives the memory back. Alone in its program, since it looks at the whole process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod support;

use outboard_storage::{
    disk::Op,
    uri::{OpenOptions, open},
};
use support::Driver;

const SIZE: u64 = 128 << 20;
const PIECE: u64 = 1 << 20;

fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size() as u64
}

#[test]
fn memory_is_taken_by_writes_only_and_given_back_by_discard_and_unmap() {
    let disk = open(&format!("ram:{SIZE}"), &OpenOptions::default()).unwrap();
    let mut driver = Driver::new(&*disk);
    let start = resident();
    for give_back in [
        |offset, len| Op::Discard { offset, len },
        |offset, len| Op::WriteZeroes {
            offset,
            len,
            unmap: true,
        },
    ] {
        for offset in (0..SIZE).step_by(PIECE as usize * 16) {
            driver.read(offset, PIECE as usize);
        }
        assert!(resident() < start + SIZE / 4, "reading takes memory");
        // Copied by the disk from the same piece again and again.
        let piece = vec![1; PIECE as usize];
        for offset in (0..SIZE / 2).step_by(PIECE as usize) {
            driver.write(offset, &piece);
        }
        assert!(resident() > start + SIZE / 4);
        let span = disk.limits().max_discard;
        for offset in (0..SIZE).step_by(span as usize) {
            driver.run(give_back(offset, span)).unwrap();
        }
        assert!(resident() < start + SIZE / 4, "the memory was kept");
    }
}
