//! Random operations, many in flight, against a copy of the disk in memory.

use crate::{
    Subject,
    support::{Driver, memory::Memory, pattern},
};
use outboard_storage::disk::Op;

/// What an operation in flight does to the oracle.
enum Expect {
    Read {
        offset: usize,
        memory: Memory,
    },
    Written,
    /// Undefined content: learnt by reading.
    Discarded {
        offset: usize,
        len: usize,
    },
}

pub fn random_operations_match_an_oracle(Subject { disk, .. }: Subject) {
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    eprintln!("SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut driver = Driver::new(&*disk);
    let limits = disk.limits();
    let block = limits.logical_block as usize;
    let blocks = disk.size() as usize / block;
    let mut oracle = vec![0u8; disk.size() as usize];

    for round in 0..25 {
        let depth = *random.choice(&[1, 4, 24]).unwrap();
        let mut flying = Vec::new();
        for range in disjoint_ranges(&mut random, blocks, depth) {
            let (start, end) = (range.start * block, range.end * block);
            let (offset, len) = (start as u64, (end - start) as u64);
            let (op, expect) = match random.u8(0..10) {
                0..=3 => {
                    let memory = Memory::random(&mut random, end - start, 8);
                    (
                        Op::Read {
                            offset,
                            buf: memory.buffers(),
                        },
                        Expect::Read {
                            offset: start,
                            memory,
                        },
                    )
                }
                4..=7 => {
                    let memory = Memory::random(&mut random, end - start, 8);
                    let bytes = pattern(random.u64(..), end - start);
                    memory.set(&bytes);
                    oracle[start..end].copy_from_slice(&bytes);
                    let durable = random.u8(0..8) == 0;
                    (
                        Op::Write {
                            offset,
                            buf: memory.buffers(),
                            durable,
                        },
                        Expect::Written,
                    )
                }
                8 if limits.max_discard > 0 => (
                    Op::Discard { offset, len },
                    Expect::Discarded {
                        offset: start,
                        len: end - start,
                    },
                ),
                _ => {
                    oracle[start..end].fill(0);
                    (
                        Op::WriteZeroes {
                            offset,
                            len,
                            unmap: random.bool(),
                        },
                        Expect::Written,
                    )
                }
            };
            flying.push((driver.start(op), expect));
        }
        let flush = random.bool().then(|| driver.start(Op::Flush));
        random.shuffle(&mut flying);
        for (token, expect) in flying {
            driver.finish(token).result.unwrap();
            match expect {
                Expect::Read { offset, memory } => {
                    let got = memory.get();
                    assert!(
                        got == oracle[offset..offset + got.len()],
                        "SEED={seed} round {round}: wrong data at {offset}"
                    );
                }
                Expect::Written => {}
                Expect::Discarded { offset, len } => {
                    let now = driver.read(offset as u64, len);
                    oracle[offset..offset + len].copy_from_slice(&now);
                }
            }
        }
        if let Some(token) = flush {
            driver.finish(token).result.unwrap();
        }
    }
    let all = driver.read(0, oracle.len());
    assert!(
        all == oracle,
        "SEED={seed}: the disk is not what was written"
    );
}

/// Ranges of blocks that do not overlap, in random order.
fn disjoint_ranges(
    random: &mut fastrand::Rng,
    blocks: usize,
    count: usize,
) -> Vec<std::ops::Range<usize>> {
    let share = blocks / count;
    let mut ranges: Vec<_> = (0..count)
        .map(|i| {
            let most = match random.bool() {
                true => 8.min(share),
                false => share,
            };
            let len = random.usize(1..=most);
            let start = i * share + random.usize(0..=share - len);
            start..start + len
        })
        .collect();
    random.shuffle(&mut ranges);
    ranges
}
