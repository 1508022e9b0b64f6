//! Memory that a queued operation may touch, and what keeps it mapped.
//!
//! # Contract
//! A [`Buffers`] is a list of host address ranges plus one *owner* (a lease on guest memory, a heap block) that keeps
//! them mapped. Guest and kernel may change the bytes at any moment, so this module never makes a Rust reference to
//! them: they are copied with volatile accesses, in aligned words where possible. A torn or stale byte is the guest's
//! own problem, never ours, as long as what was copied out is validated after the copy and not read a second time.
//!
//! # Handing the ranges to the kernel
//! Up to four ranges live inside the value itself, so [`Buffers::iovecs`] *moves with it*. The kernel reads an iovec
//! array when the entry is submitted (not when it is queued): keep the value in place from `IoPort::push` until the
//! completion, or use the plain read and write operations for a single range.
#![allow(unsafe_code)]

use smallvec::SmallVec;
use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    any::Any,
    ptr::NonNull,
    rc::Rc,
};

/// The list of ranges; four of them without a heap allocation.
pub type Iovecs = SmallVec<[libc::iovec; 4]>;

/// The scattered bytes of one request and the owner that keeps them mapped.
///
/// No range is empty. Offsets and lengths are in bytes, counted over all ranges in order.
pub struct Buffers {
    iov: Iovecs,
    len: u64,
    /// Only held: dropping it may unmap the ranges.
    owner: Option<Rc<dyn Any>>,
}

impl Buffers {
    /// No bytes, no owner.
    pub fn empty() -> Buffers {
        Buffers {
            iov: Iovecs::new(),
            len: 0,
            owner: None,
        }
    }

    /// Takes over ranges kept mapped by `owner`. Empty ranges are left out.
    ///
    /// # Safety
    /// Every range stays readable and writable memory for as long as `owner` (or a clone of it) lives, and no Rust
    /// reference to any of its bytes exists meanwhile.
    pub unsafe fn from_raw(mut iov: Iovecs, owner: Rc<dyn Any>) -> Buffers {
        iov.retain(|v| v.iov_len > 0);
        let len = iov
            .iter()
            .fold(0u64, |sum, v| sum.saturating_add(v.iov_len as u64));
        Buffers {
            iov,
            len,
            owner: Some(owner),
        }
    }

    /// A zeroed block of the heap whose address is a multiple of `align` (rounded up to a power of two). When the heap
    /// is exhausted the process ends, as with `Vec`; lengths that a guest chooses belong in [`Buffers::try_alloc`].
    pub fn alloc(len: usize, align: usize) -> Buffers {
        match Buffers::try_alloc(len, align) {
            Some(buffers) => buffers,
            None => handle_alloc_error(
                Layout::from_size_align(len, 1).unwrap_or_else(|_| Layout::new::<u8>()),
            ),
        }
    }

    /// As [`Buffers::alloc`]; `None` if there is no memory for it.
    pub fn try_alloc(len: usize, align: usize) -> Option<Buffers> {
        if len == 0 {
            return Some(Buffers::empty());
        }
        let block = HeapBlock::new(len, align.checked_next_power_of_two()?)?;
        let iov = SmallVec::from_iter([libc::iovec {
            iov_base: block.start.as_ptr().cast(),
            iov_len: len,
        }]);
        // SAFETY: the block has `len` bytes, is freed when the `Rc` given along is dropped, and nobody else knows it.
        Some(unsafe { Buffers::from_raw(iov, Rc::new(block)) })
    }

    /// Bytes in all ranges.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// No bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The ranges, as the kernel wants them. See the module's head: the array moves with the value.
    pub fn iovecs(&self) -> &[libc::iovec] {
        &self.iov
    }

    /// Copies bytes out, from offset `at`; returns how many were there.
    pub fn copy_to(&self, at: u64, dst: &mut [u8]) -> usize {
        let mut rest = dst;
        let copied = self.each_range(at, rest.len() as u64, |range, n| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(n);
            // SAFETY: `each_range` gives `n` mapped bytes (owner); `now` is ours and exactly as long.
            unsafe { load(range, now) };
            rest = later;
        });
        copied as usize
    }

    /// Copies bytes in, from offset `at`; returns how many fitted.
    pub fn copy_from(&self, at: u64, src: &[u8]) -> usize {
        let mut rest = src;
        let copied = self.each_range(at, rest.len() as u64, |range, n| {
            let (now, later) = rest.split_at(n);
            // SAFETY: `each_range` gives `n` mapped bytes (owner); `now` is exactly as long.
            unsafe { store(range, now) };
            rest = later;
        });
        copied as usize
    }

    /// Sets `len` bytes from offset `at`; returns how many fitted.
    pub fn fill(&self, at: u64, len: u64, byte: u8) -> u64 {
        let pattern = [byte; 256];
        self.each_range(at, len, |range, n| {
            let mut done = 0;
            while done < n {
                let step = (n - done).min(pattern.len());
                let (now, _) = pattern.split_at(step);
                // SAFETY: `each_range` gives `n` mapped bytes (owner), and done + step <= n.
                unsafe { store(range.add(done), now) };
                done += step;
            }
        })
    }

    /// Keeps the first `at` bytes and returns the others, with the same owner. `at` past the end returns none.
    pub fn split_off(&mut self, at: u64) -> Buffers {
        let mut tail = Buffers {
            iov: Iovecs::new(),
            len: 0,
            owner: self.owner.clone(),
        };
        let mut left = at;
        let mut keep = 0;
        for v in &mut self.iov {
            let n = v.iov_len as u64;
            if left >= n {
                left -= n;
                keep += 1;
                continue;
            }
            // The range is cut at `left` < its length (so `left` fits usize); those after it go whole (`left` is 0).
            let cut = left as usize;
            tail.iov.push(libc::iovec {
                iov_base: v.iov_base.cast::<u8>().wrapping_add(cut).cast(),
                iov_len: v.iov_len - cut,
            });
            v.iov_len = cut;
            keep += usize::from(cut > 0);
            left = 0;
        }
        self.iov.truncate(keep);
        tail.len = self.len.saturating_sub(at);
        self.len -= tail.len;
        tail
    }

    /// Drops the first `n` bytes: how a short read or write goes on.
    pub fn advance(&mut self, n: u64) {
        let mut left = n.min(self.len);
        self.len -= left;
        let mut gone = 0;
        for v in &mut self.iov {
            let cut = left.min(v.iov_len as u64) as usize;
            v.iov_base = v.iov_base.cast::<u8>().wrapping_add(cut).cast();
            v.iov_len -= cut;
            left -= cut as u64;
            if v.iov_len > 0 {
                break;
            }
            gone += 1;
        }
        self.iov.drain(..gone);
    }

    /// Every range's address and length are multiples of `align` (a power of two; 0 and 1 ask for nothing).
    pub fn is_aligned(&self, align: usize) -> bool {
        let mask = align.saturating_sub(1);
        self.iov
            .iter()
            .all(|v| (v.iov_base as usize | v.iov_len) & mask == 0)
    }

    /// Gives the emptied list back, so that its heap storage (more than four ranges) is used again.
    pub fn into_iovecs(mut self) -> Iovecs {
        self.iov.clear();
        self.iov
    }

    /// Calls `f` with each piece of `[at, at + len)` in order; returns how many bytes the pieces had.
    fn each_range(&self, at: u64, len: u64, mut f: impl FnMut(*mut u8, usize)) -> u64 {
        let mut skip = at;
        let mut left = len.min(self.len.saturating_sub(at));
        let mut done = 0;
        for v in &self.iov {
            if left == 0 {
                break;
            }
            let n = v.iov_len as u64;
            if skip >= n {
                skip -= n;
                continue;
            }
            let piece = left.min(n - skip);
            f(
                v.iov_base.cast::<u8>().wrapping_add(skip as usize),
                piece as usize,
            );
            skip = 0;
            left -= piece;
            done += piece;
        }
        done
    }
}

/// Owner of an allocated block.
struct HeapBlock {
    start: NonNull<u8>,
    layout: Layout,
}

impl HeapBlock {
    fn new(len: usize, align: usize) -> Option<HeapBlock> {
        let layout = Layout::from_size_align(len, align).ok()?;
        // SAFETY: the only caller, `try_alloc`, asks for at least one byte.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(HeapBlock { start, layout })
    }
}

impl Drop for HeapBlock {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, freed only here.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

const WORD: usize = size_of::<u64>();

/// Shared memory to private memory, each byte loaded once.
///
/// # Safety
/// `src` points to `dst.len()` mapped bytes.
unsafe fn load(src: *const u8, dst: &mut [u8]) {
    let head = src.align_offset(WORD).min(dst.len());
    let (first, rest) = dst.split_at_mut(head);
    let mut at = src;
    for byte in first {
        // SAFETY: within the `dst.len()` bytes promised by the caller.
        *byte = unsafe { at.read_volatile() };
        at = at.wrapping_add(1);
    }
    let mut words = rest.chunks_exact_mut(WORD);
    for word in &mut words {
        // SAFETY: aligned by `head`; eight bytes within those promised by the caller.
        let value = unsafe { at.cast::<u64>().read_volatile() };
        word.copy_from_slice(&value.to_ne_bytes());
        at = at.wrapping_add(WORD);
    }
    for byte in words.into_remainder() {
        // SAFETY: within the bytes promised by the caller.
        *byte = unsafe { at.read_volatile() };
        at = at.wrapping_add(1);
    }
}

/// Private memory to shared memory, each byte stored once.
///
/// # Safety
/// `dst` points to `src.len()` mapped, writable bytes.
unsafe fn store(dst: *mut u8, src: &[u8]) {
    let head = dst.align_offset(WORD).min(src.len());
    let (first, rest) = src.split_at(head);
    let mut at = dst;
    for byte in first {
        // SAFETY: within the `src.len()` bytes promised by the caller.
        unsafe { at.write_volatile(*byte) };
        at = at.wrapping_add(1);
    }
    let mut words = rest.chunks_exact(WORD);
    for word in &mut words {
        let mut value = [0; WORD];
        value.copy_from_slice(word);
        // SAFETY: aligned by `head`; eight bytes within those promised by the caller.
        unsafe { at.cast::<u64>().write_volatile(u64::from_ne_bytes(value)) };
        at = at.wrapping_add(WORD);
    }
    for byte in words.remainder() {
        // SAFETY: within the bytes promised by the caller.
        unsafe { at.write_volatile(*byte) };
        at = at.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests;
