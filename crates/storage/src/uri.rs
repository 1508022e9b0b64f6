//! Disks by name: `file:PATH`, `ram:SIZE`, `null:SIZE`, `delay:MIN-MAX:URI`, or a bare path.
//!
//! A name with a colon before the first slash has a scheme; anything else is a path (so `./a:b` names a file with a colon).
mod nearest;
mod quantity;

use crate::{delay::DelayDisk, disk::Disk, file, null::NullDisk, ram::RamDisk};
pub use quantity::{parse_duration, parse_size};
use std::{path::Path, sync::Arc};

/// As QEMU means them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheMode {
    /// Page cache; a flush makes writes durable.
    #[default]
    Writeback,
    /// No page cache (`O_DIRECT`); a flush makes writes durable.
    None,
    /// Page cache; every write is durable when it completes.
    Writethrough,
    /// No page cache (`O_DIRECT`); every write is durable when it completes.
    Directsync,
    /// Page cache; flushes and durability are ignored. For disks that may be lost.
    Unsafe,
}

impl CacheMode {
    /// Every mode, with the name it has on command lines and in configuration files.
    pub const NAMES: [(&'static str, CacheMode); 5] = [
        ("writeback", CacheMode::Writeback),
        ("none", CacheMode::None),
        ("writethrough", CacheMode::Writethrough),
        ("directsync", CacheMode::Directsync),
        ("unsafe", CacheMode::Unsafe),
    ];

    /// The mode's name.
    pub fn name(self) -> &'static str {
        Self::NAMES
            .iter()
            .find(|(_, mode)| *mode == self)
            .map_or("", |(name, _)| name)
    }

    /// Whether I/O goes around the page cache.
    pub fn is_direct(self) -> bool {
        matches!(self, CacheMode::None | CacheMode::Directsync)
    }

    /// Whether every write is durable when it completes.
    pub fn is_writethrough(self) -> bool {
        matches!(self, CacheMode::Writethrough | CacheMode::Directsync)
    }
}

impl std::fmt::Display for CacheMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for CacheMode {
    type Err = OpenError;

    fn from_str(text: &str) -> Result<CacheMode, OpenError> {
        match Self::NAMES.iter().find(|(name, _)| *name == text) {
            Some((_, mode)) => Ok(*mode),
            None => Err(OpenError(format!(
                "unknown cache mode \"{text}\"{}",
                nearest::hint(text, Self::NAMES.iter().map(|(name, _)| *name))
            ))),
        }
    }
}

/// How to open a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Refuse changes, and share the image with other readers.
    pub read_only: bool,
    /// Only `file` looks at it.
    pub cache: CacheMode,
    /// Logical block size in bytes; `None`: the disk's own.
    pub block_size: Option<u32>,
    /// Seed of `delay` and other wrappers.
    pub seed: u64,
}

/// One line: what failed, on what, why, what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct OpenError(pub String);

const SCHEMES: [&str; 4] = ["file", "ram", "null", "delay"];
/// The block size of disks that have none of their own, and the smallest there is.
const SECTOR: u32 = 512;
/// No guest takes larger logical blocks.
const MAX_BLOCK: u32 = 65536;

/// Opens the disk that `uri` names. On an error nothing was created or changed.
pub fn open(uri: &str, options: &OpenOptions) -> Result<Arc<dyn Disk>, OpenError> {
    if let Some(size) = options.block_size
        && !(size.is_power_of_two() && (SECTOR..=MAX_BLOCK).contains(&size))
    {
        return Err(OpenError(format!(
            "block size {size} is not a power of two from {SECTOR} to {MAX_BLOCK}"
        )));
    }
    if uri.is_empty() || uri == "file:" {
        return Err(OpenError(
            "the disk's name is empty; give file:PATH, a path, ram:SIZE or null:SIZE".into(),
        ));
    }
    match split_scheme(uri) {
        None => Ok(Arc::new(file::open(uri, Path::new(uri), options)?)),
        Some(("file", path)) => Ok(Arc::new(file::open(uri, Path::new(path), options)?)),
        Some(("ram", size)) => {
            let (size, block) = sized(uri, size, options)?;
            let disk =
                RamDisk::new(uri.to_owned(), size, block, options.read_only).map_err(|e| {
                    OpenError(format!(
                        "{uri}: cannot reserve the memory: {e}; take a smaller size"
                    ))
                })?;
            Ok(Arc::new(disk))
        }
        Some(("null", size)) => {
            let (size, block) = sized(uri, size, options)?;
            Ok(Arc::new(NullDisk::new(
                uri.to_owned(),
                size,
                block,
                options.read_only,
            )))
        }
        Some(("delay", rest)) => {
            let (range, inner) = rest.split_once(':').ok_or_else(|| {
                OpenError(format!(
                    "{uri}: write delay:MIN-MAX:URI, for example delay:1ms-20ms:ram:1G"
                ))
            })?;
            let (min, max) = quantity::parse_duration_range(range)
                .map_err(|e| OpenError(format!("{uri}: {e}")))?;
            Ok(Arc::new(DelayDisk::new(
                uri.to_owned(),
                open(inner, options)?,
                min,
                max,
                options.seed,
            )))
        }
        Some((scheme, _)) => Err(OpenError(format!(
            "{uri}: unknown kind of disk \"{scheme}\"{}; for a file of that name write file:{uri}",
            nearest::hint(scheme, SCHEMES)
        ))),
    }
}

/// Scheme and rest, if the name has a scheme.
fn split_scheme(uri: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = uri.split_once(':')?;
    if scheme.contains('/') {
        None
    } else {
        Some((scheme, rest))
    }
}

/// Size and logical block of a disk that is as large as its name says.
fn sized(uri: &str, text: &str, options: &OpenOptions) -> Result<(u64, u32), OpenError> {
    let size = parse_size(text).map_err(|e| OpenError(format!("{uri}: {e}")))?;
    let block = options.block_size.unwrap_or(SECTOR);
    if size == 0 {
        return Err(OpenError(format!(
            "{uri}: a disk of no bytes; give a size, for example 1G"
        )));
    }
    if !size.is_multiple_of(u64::from(block)) {
        return Err(OpenError(format!(
            "{uri}: {size} bytes are not a multiple of the block size {block}"
        )));
    }
    Ok((size, block))
}

#[cfg(test)]
mod tests;
