//! Memory that a queued operation may touch, and what keeps it mapped.
use smallvec::SmallVec;
use std::{any::Any, rc::Rc};

/// The scattered bytes of one request: host addresses and the owner that keeps them mapped. Other parties (guest, kernel)
/// may change the bytes at any time, so they are only ever copied, never referenced.
/// An empty segment never occurs. Total length fits u64; each segment fits usize.
pub struct Buffers { iov: SmallVec<[libc::iovec; 4]>, len: u64, #[allow(dead_code)] owner: Option<Rc<dyn Any>> }

#[allow(unsafe_code)]
impl Buffers {
    pub fn empty() -> Buffers { Buffers { iov: SmallVec::new(), len: 0, owner: None } }
    /// # Safety
    /// Every segment stays readable and writable memory as long as `owner` lives.
    pub unsafe fn from_raw(iov: SmallVec<[libc::iovec; 4]>, owner: Rc<dyn Any>) -> Buffers {
        let len = iov.iter().map(|v| v.iov_len as u64).sum();
        Buffers { iov, len, owner: Some(owner) }
    }
    /// A zeroed heap buffer with the given alignment (power of two): bounce buffers and tests.
    pub fn alloc(len: usize, align: usize) -> Buffers { let _ = (len, align); todo!() }
    pub fn len(&self) -> u64 { self.len }
    pub fn is_empty(&self) -> bool { self.len == 0 }
    pub fn iovecs(&self) -> &[libc::iovec] { &self.iov }
    /// Copies out of the scattered bytes from `at`; returns how many were there.
    pub fn copy_to(&self, at: u64, dst: &mut [u8]) -> usize { let _ = (at, dst); todo!() }
    /// Copies into the scattered bytes from `at`; returns how many fitted.
    pub fn copy_from(&self, at: u64, src: &[u8]) -> usize { let _ = (at, src); todo!() }
    pub fn fill(&self, at: u64, len: u64, byte: u8) -> u64 { let _ = (at, len, byte); todo!() }
    /// Keeps the first `at` bytes, returns the rest (same owner).
    pub fn split_off(&mut self, at: u64) -> Buffers { let _ = at; todo!() }
    /// Drops the first n bytes (short reads and writes are resumed so).
    pub fn advance(&mut self, n: u64) { let _ = n; todo!() }
    /// Every segment's address and length are multiples of `align`.
    pub fn is_aligned(&self, align: usize) -> bool { let _ = align; todo!() }
    /// Takes the iovec storage back for reuse.
    pub fn into_iovecs(self) -> SmallVec<[libc::iovec; 4]> { self.iov }
}
