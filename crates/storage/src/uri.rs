//! `file:PATH`, `ram:SIZE`, `null:SIZE`, `delay:MIN-MAX:URI`.
use crate::disk::Disk;
use std::sync::Arc;

/// As QEMU means them: writeback (page cache), none (O_DIRECT), writethrough (page cache, every write durable),
/// directsync (O_DIRECT, every write durable), unsafe (page cache, flushes ignored).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheMode { #[default] Writeback, None, Writethrough, Directsync, Unsafe }
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenOptions { pub read_only: bool, pub cache: CacheMode, /// bytes; None: the disk's own
    pub block_size: Option<u32>, /// seed of delay and other wrappers
    pub seed: u64 }
/// One line: what failed, on what, why, what to do.
#[derive(Debug, thiserror::Error)] #[error("{0}")] pub struct OpenError(pub String);
pub fn open(uri: &str, options: &OpenOptions) -> Result<Arc<dyn Disk>, OpenError> { let _ = (uri, options); todo!() }
/// `1G`, `512M`, `4096`, `1.5T`: bytes, powers of 1024.
pub fn parse_size(text: &str) -> Result<u64, OpenError> { let _ = text; todo!() }
