//! Memory as a guest might give it: segments of any size at any address, with bytes between them that nobody may touch.
#![allow(unsafe_code)]

use outboard_reactor::Buffers;
use smallvec::SmallVec;
use std::{any::Any, rc::Rc};

/// What lies between the segments.
const GUARD: u8 = 0xa5;
/// Bytes of guard before, between and after segments, at least.
const GAP: usize = 16;

pub struct Memory {
    arena: Rc<Buffers>,
    /// Offset in the arena and length of each segment.
    segments: Vec<(usize, usize)>,
}

impl Memory {
    /// One aligned segment.
    pub fn plain(len: usize) -> Memory {
        Memory::scattered(&[(len, 0)])
    }

    /// Segments of these lengths, each so many bytes behind an address that is a multiple of 512.
    pub fn scattered(shape: &[(usize, usize)]) -> Memory {
        let mut at = 0;
        let mut segments = Vec::new();
        for (len, skew) in shape {
            let start = (at + GAP).next_multiple_of(512) + skew;
            segments.push((start, *len));
            at = start + len;
        }
        let len = at + GAP;
        let arena = Buffers::alloc(len, 4096);
        arena.fill(0, len as u64, GUARD);
        Memory {
            arena: Rc::new(arena),
            segments,
        }
    }

    /// `len` bytes, a multiple of 512, in up to `most` segments: some aligned to sectors, some to nothing.
    pub fn random(random: &mut fastrand::Rng, len: usize, most: usize) -> Memory {
        let unit = *random.choice(&[512, 512, 1]).unwrap();
        let skews: &[usize] = random
            .choice(&[&[0][..], &[0, 512][..], &[0, 1, 3, 8][..]])
            .unwrap();
        let mut left = len;
        let mut shape = Vec::new();
        while left > 0 {
            let piece = match shape.len() + 1 < most && left > unit {
                true => random.usize(1..=left / unit) * unit,
                false => left,
            };
            shape.push((piece, *random.choice(skews).unwrap()));
            left -= piece;
        }
        Memory::scattered(&shape)
    }

    pub fn len(&self) -> usize {
        self.segments.iter().map(|(_, len)| len).sum()
    }

    pub fn set(&self, bytes: &[u8]) {
        let mut rest = bytes;
        for (start, len) in &self.segments {
            let (now, later) = rest.split_at(*len);
            assert_eq!(self.arena.copy_from(*start as u64, now), *len);
            rest = later;
        }
        assert!(rest.is_empty());
    }

    /// The segments' bytes, after a look at what lies between them.
    pub fn get(&self) -> Vec<u8> {
        let mut all = vec![0; self.arena.len() as usize];
        self.arena.copy_to(0, &mut all);
        let mut bytes = Vec::new();
        let mut at = 0;
        for (start, len) in &self.segments {
            assert!(
                all[at..*start].iter().all(|b| *b == GUARD),
                "bytes before a segment were changed"
            );
            bytes.extend_from_slice(&all[*start..start + len]);
            at = start + len;
        }
        assert!(
            all[at..].iter().all(|b| *b == GUARD),
            "bytes after the last segment were changed"
        );
        bytes
    }

    pub fn buffers(&self) -> Buffers {
        let base = self.arena.iovecs()[0].iov_base;
        let iov: SmallVec<[libc::iovec; 4]> = self
            .segments
            .iter()
            .map(|(start, len)| libc::iovec {
                iov_base: base.wrapping_byte_add(*start),
                iov_len: *len,
            })
            .collect();
        let owner: Rc<dyn Any> = self.arena.clone();
        // SAFETY: the segments lie in the arena, which the owner keeps; nobody has a reference to its bytes.
        unsafe { Buffers::from_raw(iov, owner) }
    }

    /// How many operations and others hold the memory.
    pub fn holders(&self) -> usize {
        Rc::strong_count(&self.arena) - 1
    }
}

impl Memory {
    /// The same `len` bytes as segment `times` over.
    pub fn repeated(len: usize, times: usize) -> Memory {
        let Memory { arena, segments } = Memory::plain(len);
        Memory {
            arena,
            segments: segments.repeat(times),
        }
    }
}
