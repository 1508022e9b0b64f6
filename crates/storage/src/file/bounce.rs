//! Aligned memory for direct I/O of guests whose segments are not aligned.
//!
//! A bounce buffer has a fixed size, whatever the guest asks for: a long request goes through it piece by piece, so that a queue
//! full of huge misaligned requests costs a bounded amount of memory.

/// Bytes that go through a bounce buffer at once.
pub(super) const PIECE: usize = 128 << 10;
/// Buffers kept for reuse.
const KEPT: usize = 16;

/// Zeroed memory at an aligned address.
pub(super) struct AlignedBuf {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// `align` is a power of two.
    pub(super) fn new(len: usize, align: usize) -> AlignedBuf {
        let memory = vec![0; len + align];
        let start = memory.as_ptr().align_offset(align).min(align);
        AlignedBuf { memory, start, len }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.memory
            .get(self.start..self.start + self.len)
            .unwrap_or(&[])
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory
            .get_mut(self.start..self.start + self.len)
            .unwrap_or(&mut [])
    }
}

/// One queue's bounce buffers.
pub(super) struct BouncePool {
    align: usize,
    free: Vec<AlignedBuf>,
}

impl BouncePool {
    pub(super) fn new(align: u32) -> BouncePool {
        BouncePool {
            align: align.max(1) as usize,
            free: Vec::new(),
        }
    }

    /// A buffer of [`PIECE`] bytes with any content.
    pub(super) fn take(&mut self) -> AlignedBuf {
        self.free
            .pop()
            .unwrap_or_else(|| AlignedBuf::new(PIECE, self.align))
    }

    pub(super) fn give_back(&mut self, buf: AlignedBuf) {
        if self.free.len() < KEPT {
            self.free.push(buf);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_as_long_as_asked() {
        for align in [1, 4, 512, 4096, 65536] {
            let mut buf = AlignedBuf::new(1000, align);
            assert_eq!(buf.bytes().len(), 1000);
            assert_eq!(buf.bytes().as_ptr().addr() % align, 0);
            buf.bytes_mut().fill(1);
            assert!(buf.bytes().iter().all(|b| *b == 1));
        }
    }

    #[test]
    fn a_pool_keeps_a_bounded_number() {
        let mut pool = BouncePool::new(512);
        let many: Vec<_> = (0..40).map(|_| pool.take()).collect();
        many.into_iter().for_each(|buf| pool.give_back(buf));
        assert_eq!(pool.free.len(), KEPT);
    }
}
