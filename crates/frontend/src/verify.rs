//! Blocks that prove where and when they were written.
//!
//! Every sector of a block carries its own number, the sequence number of the write, and a checksum over all of it.
//! Reading it back tells a flipped bit from a block that came from elsewhere, a write that was lost, and a write of
//! which only a part arrived.

use std::fmt;

/// Bytes of a sector.
pub const SECTOR: usize = 512;

const MAGIC: u64 = u64::from_le_bytes(*b"outboard");
const WORDS: usize = SECTOR / 8;

/// What is wrong with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// The sector was never stamped: all zeroes, or not ours.
    Unstamped {
        /// The sector that was read.
        sector: u64,
    },
    /// The checksum does not match.
    Corrupt {
        /// The sector that was read.
        sector: u64,
    },
    /// A whole and sound sector, of another place.
    Misplaced {
        /// The sector that was read.
        sector: u64,
        /// The sector it was written to.
        found: u64,
    },
    /// A whole and sound sector, of another write than the last.
    Stale {
        /// The sector that was read.
        sector: u64,
        /// The write it should be of.
        expected: u64,
        /// The write it is of.
        found: u64,
    },
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unstamped { sector } => write!(f, "sector {sector} was never written"),
            Self::Corrupt { sector } => write!(f, "sector {sector} is corrupt"),
            Self::Misplaced { sector, found } => {
                write!(f, "sector {sector} holds what was written to {found}")
            }
            Self::Stale {
                sector,
                expected,
                found,
            } => {
                write!(
                    f,
                    "sector {sector} holds write {found} instead of write {expected}"
                )
            }
        }
    }
}

/// Each step is a bijection of the state for a given word, and of the word for a given state: two sectors that differ
/// in one word never have the same sum.
fn step(sum: u64, word: u64) -> u64 {
    (sum ^ word)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(29)
}

/// The words of a sector but for the checksum: magic, number, sequence, then a stream of the two.
fn words(sector: u64, sequence: u64) -> impl Iterator<Item = u64> {
    let seed = step(step(MAGIC, sector), sequence);
    let stream = (4..WORDS as u64).map(move |index| step(seed, index));
    [MAGIC, sector, sequence].into_iter().chain(stream)
}

/// Stamps every sector of `block`, whose first sector on the disk is `sector`. Bytes behind the last whole sector are
/// left alone.
pub fn stamp(block: &mut [u8], sector: u64, sequence: u64) {
    for (bytes, sector) in block.chunks_exact_mut(SECTOR).zip(sector..) {
        let sum = words(sector, sequence).fold(0, step);
        let all = words(sector, sequence)
            .take(3)
            .chain([sum])
            .chain(words(sector, sequence).skip(3));
        for (place, word) in bytes.chunks_exact_mut(8).zip(all) {
            place.copy_from_slice(&word.to_le_bytes());
        }
    }
}

/// Checks every sector of a block that was read from `sector`; it must be of the write `sequence`.
pub fn check(block: &[u8], sector: u64, sequence: u64) -> Result<(), Flaw> {
    for (bytes, sector) in block.chunks_exact(SECTOR).zip(sector..) {
        let mut head = [0; 4];
        let mut sum = 0;
        for (index, word) in bytes.chunks_exact(8).enumerate() {
            let word = word.try_into().map_or(0, u64::from_le_bytes);
            if let Some(place) = head.get_mut(index) {
                *place = word;
            }
            if index != 3 {
                sum = step(sum, word);
            }
        }
        let [magic, found_sector, found, checksum] = head;
        if magic != MAGIC {
            return Err(Flaw::Unstamped { sector });
        }
        if sum != checksum {
            return Err(Flaw::Corrupt { sector });
        }
        if found_sector != sector {
            return Err(Flaw::Misplaced {
                sector,
                found: found_sector,
            });
        }
        if found != sequence {
            return Err(Flaw::Stale {
                sector,
                expected: sequence,
                found,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(sector: u64, sequence: u64) -> Vec<u8> {
        let mut block = vec![0; 4096];
        stamp(&mut block, sector, sequence);
        block
    }

    #[test]
    fn what_was_written_is_accepted() {
        assert_eq!(check(&block(100, 7), 100, 7), Ok(()));
        assert_eq!(
            check(&block(u64::MAX - 8, u64::MAX), u64::MAX - 8, u64::MAX),
            Ok(())
        );
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let good = block(8, 3);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(check(&bad, 8, 3).is_err(), "bit {bit}");
        }
        let mut bad = good.clone();
        bad[5 * SECTOR + 100] ^= 0x10;
        assert_eq!(
            check(&bad, 8, 3),
            Err(Flaw::Corrupt { sector: 13 }),
            "and its sector is named"
        );
    }

    #[test]
    fn lost_torn_and_misplaced_writes_are_told_apart() {
        let old = block(8, 3);
        assert_eq!(
            check(&old, 8, 4),
            Err(Flaw::Stale {
                sector: 8,
                expected: 4,
                found: 3
            })
        );
        let mut torn = block(8, 4);
        torn[1024..].copy_from_slice(&old[1024..]);
        assert_eq!(
            check(&torn, 8, 4),
            Err(Flaw::Stale {
                sector: 10,
                expected: 4,
                found: 3
            })
        );
        assert_eq!(
            check(&block(16, 4), 8, 4),
            Err(Flaw::Misplaced {
                sector: 8,
                found: 16
            })
        );
        assert_eq!(check(&[0; 512], 8, 4), Err(Flaw::Unstamped { sector: 8 }));
    }
}
