//! The promises, one function each.

pub use crate::random::random_operations_match_an_oracle;
use crate::{
    Subject,
    support::{Driver, empty, memory::Memory, pattern},
};
use outboard_storage::{
    disk::Op,
    uri::{OpenOptions, open},
};

const MIB: u64 = 1 << 20;

/// How large a disk each case wants.
#[allow(non_upper_case_globals)]
pub mod size {
    use super::MIB;
    pub const random_operations_match_an_oracle: u64 = 4 * MIB;
    pub const the_ends_of_the_disk: u64 = 300 * MIB;
    pub const out_of_range_is_an_error: u64 = MIB;
    pub const misaligned_is_an_error: u64 = MIB;
    pub const nothing_to_do_completes: u64 = MIB;
    pub const many_in_flight: u64 = 8 * MIB;
    pub const more_segments_than_the_kernel_takes: u64 = 64 * MIB;
    pub const long_transfers: u64 = 300 * MIB;
    pub const huge_segments: u64 = MIB;
    pub const discard_keeps_neighbours: u64 = MIB;
    pub const write_zeroes_read_as_zero: u64 = MIB;
    pub const flush_and_durable_writes: u64 = MIB;
    pub const queues_see_each_other: u64 = MIB;
    pub const buffers_come_back_whole: u64 = MIB;
    pub const read_only_refuses_changes: u64 = MIB;
    pub const limits_make_sense: u64 = MIB;
}

pub fn the_ends_of_the_disk(Subject { disk, .. }: Subject) {
    let mut driver = Driver::new(&*disk);
    let block = u64::from(disk.limits().logical_block);
    let bytes = pattern(1, block as usize);
    for offset in [0, disk.size() - block] {
        assert!(
            driver.read(offset, block as usize).iter().all(|b| *b == 0),
            "a fresh disk is zero"
        );
        driver.write(offset, &bytes);
        assert_eq!(driver.read(offset, block as usize), bytes);
    }
}

pub fn out_of_range_is_an_error(Subject { disk, .. }: Subject) {
    let mut driver = Driver::new(&*disk);
    let block = u64::from(disk.limits().logical_block);
    let size = disk.size();
    let last = u64::MAX - (block - 1);
    for (offset, len) in [
        (size, block),
        (size - block, 2 * block),
        (size + block, block),
        (last, block),
        (0, size + block),
    ] {
        let memory = Memory::plain(len as usize);
        for op in [
            Op::Read {
                offset,
                buf: memory.buffers(),
            },
            Op::Write {
                offset,
                buf: memory.buffers(),
                durable: false,
            },
            Op::Write {
                offset,
                buf: memory.buffers(),
                durable: true,
            },
            Op::Discard { offset, len },
            Op::WriteZeroes {
                offset,
                len,
                unmap: false,
            },
            Op::WriteZeroes {
                offset,
                len,
                unmap: true,
            },
        ] {
            assert_eq!(driver.errno(op), libc::EINVAL, "{offset} {len}");
        }
    }
    assert_eq!(
        driver.errno(Op::Discard {
            offset: block,
            len: last
        }),
        libc::EINVAL
    );
    assert_eq!(
        driver.errno(Op::WriteZeroes {
            offset: block,
            len: last,
            unmap: true
        }),
        libc::EINVAL
    );
}

pub fn misaligned_is_an_error(Subject { disk, .. }: Subject) {
    let mut driver = Driver::new(&*disk);
    let block = u64::from(disk.limits().logical_block);
    for (offset, len) in [
        (1, block),
        (block / 2, block),
        (0, block - 1),
        (0, block + 1),
        (block - 1, 1),
    ] {
        let memory = Memory::plain(len as usize);
        for op in [
            Op::Read {
                offset,
                buf: memory.buffers(),
            },
            Op::Write {
                offset,
                buf: memory.buffers(),
                durable: false,
            },
            Op::Discard { offset, len },
            Op::WriteZeroes {
                offset,
                len,
                unmap: false,
            },
        ] {
            assert_eq!(driver.errno(op), libc::EINVAL, "{offset} {len}");
        }
    }
}

pub fn nothing_to_do_completes(Subject { disk, .. }: Subject) {
    let mut driver = Driver::new(&*disk);
    for offset in [0, disk.size()] {
        driver
            .run(Op::Read {
                offset,
                buf: empty(),
            })
            .unwrap();
        driver
            .run(Op::Write {
                offset,
                buf: empty(),
                durable: true,
            })
            .unwrap();
        driver.run(Op::Discard { offset, len: 0 }).unwrap();
        driver
            .run(Op::WriteZeroes {
                offset,
                len: 0,
                unmap: true,
            })
            .unwrap();
    }
    driver.run(Op::Flush).unwrap();
}

pub fn many_in_flight(Subject { disk, .. }: Subject) {
    let mut driver = Driver::new(&*disk);
    let depth = 600; // more than the ring holds
    let len = 8192;
    let spots: Vec<u64> = (0..depth).map(|i| i * len).collect();
    let mut flying = Vec::new();
    for offset in &spots {
        let memory = Memory::plain(len as usize);
        memory.set(&pattern(*offset, len as usize));
        flying.push(driver.start(Op::Write {
            offset: *offset,
            buf: memory.buffers(),
            durable: false,
        }));
    }
    for token in flying {
        driver.finish(token).result.unwrap();
    }
    let mut flying = Vec::new();
    for offset in &spots {
        let memory = Memory::plain(len as usize);
        flying.push((
            driver.start(Op::Read {
                offset: *offset,
                buf: memory.buffers(),
            }),
            memory,
        ));
    }
    // Fetched backwards: the driver gets them in whatever order they come.
    for ((token, memory), offset) in flying.into_iter().zip(&spots).rev() {
        driver.finish(token).result.unwrap();
        assert_eq!(memory.get(), pattern(*offset, len as usize), "at {offset}");
    }
}

pub fn more_segments_than_the_kernel_takes(Subject { disk, .. }: Subject) {
    let mut driver = Driver::new(&*disk);
    let block = disk.limits().logical_block as usize;
    // Aligned for direct I/O, and once not.
    for skew in [0, 1] {
        let shape = vec![(block, skew); 1100];
        let from = Memory::scattered(&shape);
        let bytes = pattern(skew as u64, from.len());
        from.set(&bytes);
        driver
            .run(Op::Write {
                offset: 8 * MIB,
                buf: from.buffers(),
                durable: false,
            })
            .unwrap();
        assert_eq!(driver.read(8 * MIB, bytes.len()), bytes);
        let to = Memory::scattered(&shape);
        driver
            .run(Op::Read {
                offset: 8 * MIB,
                buf: to.buffers(),
            })
            .unwrap();
        assert_eq!(to.get(), bytes);
    }
}

pub fn long_transfers(Subject { disk, .. }: Subject) {
    let mut driver = Driver::new(&*disk);
    let len = 5 * MIB as usize;
    let bytes = pattern(3, len);
    let offset = 256 * MIB;
    for skew in [0, 7] {
        let from = Memory::scattered(&[(len / 2, skew), (len / 2, skew)]);
        from.set(&bytes);
        driver
            .run(Op::Write {
                offset,
                buf: from.buffers(),
                durable: false,
            })
            .unwrap();
        let to = Memory::scattered(&[(len / 4, skew), (len - len / 4, skew)]);
        driver
            .run(Op::Read {
                offset,
                buf: to.buffers(),
            })
            .unwrap();
        assert_eq!(to.get(), bytes);
        driver
            .run(Op::WriteZeroes {
                offset,
                len: len as u64,
                unmap: true,
            })
            .unwrap();
    }
}

/// The same memory many times over: what a hostile guest can make of a small one. Longer than the disk, so it must fail without
/// anybody having allocated as much.
pub fn huge_segments(Subject { disk, .. }: Subject) {
    let mut driver = Driver::new(&*disk);
    let block = disk.limits().logical_block as usize;
    let memory = Memory::repeated(block, 65_536);
    assert_eq!(
        driver.errno(Op::Read {
            offset: 0,
            buf: memory.buffers()
        }),
        libc::EINVAL
    );
    // And as long as the disk: the last copy wins.
    let memory = Memory::repeated(block, disk.size() as usize / block);
    driver
        .run(Op::Write {
            offset: 0,
            buf: memory.buffers(),
            durable: false,
        })
        .unwrap();
    driver.write(disk.size() - block as u64, &pattern(9, block));
    driver
        .run(Op::Read {
            offset: 0,
            buf: memory.buffers(),
        })
        .unwrap();
}

pub fn discard_keeps_neighbours(Subject { disk, .. }: Subject) {
    let limits = disk.limits();
    let mut driver = Driver::new(&*disk);
    let block = u64::from(limits.logical_block);
    if limits.max_discard == 0 {
        assert_eq!(
            driver.errno(Op::Discard {
                offset: 0,
                len: block
            }),
            libc::EOPNOTSUPP
        );
        return;
    }
    let size = disk.size() as usize;
    let bytes = pattern(4, size);
    driver.write(0, &bytes);
    let granularity = u64::from(limits.discard_granularity).max(block);
    for (offset, len) in [
        (block, block),
        (granularity + block, granularity),
        (8 * granularity, granularity),
        (16 * granularity - block, 4 * granularity + 2 * block),
        (MIB / 2 + block, MIB / 4),
    ] {
        driver.write(0, &bytes);
        driver.run(Op::Discard { offset, len }).unwrap();
        let now = driver.read(0, size);
        let (start, end) = (offset as usize, (offset + len) as usize);
        assert!(
            now[..start] == bytes[..start],
            "bytes before the range changed: {offset} {len}"
        );
        assert!(
            now[end..] == bytes[end..],
            "bytes after the range changed: {offset} {len}"
        );
    }
}

pub fn write_zeroes_read_as_zero(Subject { disk, .. }: Subject) {
    let limits = disk.limits();
    assert!(limits.max_write_zeroes > 0);
    let mut driver = Driver::new(&*disk);
    let block = u64::from(limits.logical_block);
    let size = disk.size() as usize;
    let bytes = pattern(5, size);
    for unmap in [false, true] {
        for (offset, len) in [
            (0, block),
            (block, block),
            (65_536 - block, 3 * block),
            (MIB / 4 + block, 200_704),
            (MIB / 2, MIB / 4),
            (disk.size() - block, block),
        ] {
            driver.write(0, &bytes);
            driver.run(Op::WriteZeroes { offset, len, unmap }).unwrap();
            let now = driver.read(0, size);
            let (start, end) = (offset as usize, (offset + len) as usize);
            assert!(
                now[..start] == bytes[..start],
                "bytes before the range changed: {offset} {len} {unmap}"
            );
            assert!(
                now[start..end].iter().all(|b| *b == 0),
                "not all zero: {offset} {len} {unmap}"
            );
            assert!(
                now[end..] == bytes[end..],
                "bytes after the range changed: {offset} {len} {unmap}"
            );
        }
    }
}

pub fn flush_and_durable_writes(
    Subject {
        disk,
        reopen,
        _keep,
    }: Subject,
) {
    let block = disk.limits().logical_block as usize;
    let (first, second) = (pattern(6, block), pattern(7, 2 * block));
    {
        let mut driver = Driver::new(&*disk);
        driver.write_as(0, &first, true);
        driver.write(block as u64, &second);
        driver
            .run(Op::WriteZeroes {
                offset: 2 * block as u64,
                len: block as u64,
                unmap: true,
            })
            .unwrap();
        driver.run(Op::Flush).unwrap();
        assert_eq!(driver.read(0, block), first);
    }
    // Also from a disk that is opened afresh.
    drop(disk);
    let Some(reopen) = reopen else { return };
    let disk = reopen();
    let mut driver = Driver::new(&*disk);
    assert_eq!(
        driver.read(0, 2 * block),
        [&first[..], &second[..block]].concat()
    );
    assert!(driver.read(2 * block as u64, block).iter().all(|b| *b == 0));
}

pub fn queues_see_each_other(Subject { disk, .. }: Subject) {
    let block = disk.limits().logical_block as usize;
    let (to_other, from_other) = (std::sync::mpsc::channel(), std::sync::mpsc::channel());
    std::thread::scope(|scope| {
        let disk = &*disk;
        scope.spawn(move || {
            let mut driver = Driver::new(disk);
            while let Ok(offset) = to_other.1.recv() {
                from_other.0.send(driver.read(offset, block)).unwrap();
            }
        });
        let mut driver = Driver::new(disk);
        for round in 0..50 {
            let offset = round % 7 * block as u64;
            let bytes = pattern(round, block);
            driver.write(offset, &bytes);
            to_other.0.send(offset).unwrap();
            assert_eq!(from_other.1.recv().unwrap(), bytes, "round {round}");
        }
        drop(to_other.0);
    });
}

pub fn buffers_come_back_whole(Subject { disk, .. }: Subject) {
    let mut driver = Driver::new(&*disk);
    let block = disk.limits().logical_block as usize;
    let memory = Memory::scattered(&[(block, 0), (3 * block, 5), (block, 512)]);
    let wanted: Vec<_> = memory
        .buffers()
        .iovecs()
        .iter()
        .map(|v| (v.iov_base, v.iov_len))
        .collect();
    for offset in [0, disk.size()] {
        for write in [true, false] {
            let buf = memory.buffers();
            let token = driver.start(match write {
                true => Op::Write {
                    offset,
                    buf,
                    durable: false,
                },
                false => Op::Read { offset, buf },
            });
            assert!(memory.holders() > 0, "an operation holds its memory");
            let completion = driver.finish(token);
            assert_eq!(completion.result.is_ok(), offset == 0);
            let got: Vec<_> = completion
                .buf
                .iovecs()
                .iter()
                .map(|v| (v.iov_base, v.iov_len))
                .collect();
            assert_eq!(got, wanted);
            drop(completion.buf);
            assert_eq!(memory.holders(), 0, "the disk kept the memory");
        }
    }
}

pub fn read_only_refuses_changes(
    Subject {
        disk,
        reopen,
        _keep,
    }: Subject,
) {
    let block = u64::from(disk.limits().logical_block);
    let bytes = pattern(8, block as usize);
    Driver::new(&*disk).write(0, &bytes);
    drop(disk);
    let (disk, bytes) = match reopen {
        Some(reopen) => (reopen(), bytes),
        None => (
            open(
                "ram:1M",
                &OpenOptions {
                    read_only: true,
                    ..Default::default()
                },
            )
            .unwrap(),
            vec![0; block as usize],
        ),
    };
    assert!(disk.is_read_only());
    let limits = disk.limits();
    assert_eq!((limits.max_discard, limits.max_write_zeroes), (0, 0));
    let mut driver = Driver::new(&*disk);
    let memory = Memory::plain(block as usize);
    for op in [
        Op::Write {
            offset: 0,
            buf: memory.buffers(),
            durable: false,
        },
        Op::Discard {
            offset: 0,
            len: block,
        },
        Op::WriteZeroes {
            offset: 0,
            len: block,
            unmap: true,
        },
        Op::WriteZeroes {
            offset: 0,
            len: block,
            unmap: false,
        },
    ] {
        assert_eq!(driver.errno(op), libc::EROFS);
    }
    driver.run(Op::Flush).unwrap();
    assert_eq!(driver.read(0, block as usize), bytes);
}

pub fn limits_make_sense(Subject { disk, .. }: Subject) {
    let limits = disk.limits();
    assert!(limits.logical_block.is_power_of_two() && limits.logical_block >= 512);
    assert!(
        limits.physical_block.is_power_of_two() && limits.physical_block >= limits.logical_block
    );
    assert!(limits.alignment_offset < limits.physical_block);
    let block = u64::from(limits.logical_block);
    assert_eq!(disk.size() % block, 0);
    assert_eq!(limits.max_discard % block, 0);
    assert_eq!(limits.max_write_zeroes % block, 0);
    assert!(!limits.write_zeroes_may_unmap || limits.max_write_zeroes > 0);
}
