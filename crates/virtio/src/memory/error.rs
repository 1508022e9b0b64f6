use super::{MAX_BYTES, MAX_REGIONS, RegionInfo};
use std::io;

/// Why a memory table, or one region of it, was refused. Nothing stays mapped of what was refused.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The table has no room for another region.
    #[error("a memory table holds at most {MAX_REGIONS} regions: remove one first")]
    TooMany,
    /// The regions have so many bytes together.
    #[error("a memory table of {0:#x} bytes: it may have at most {MAX_BYTES:#x}")]
    TooLarge(u64),
    /// A region of no bytes.
    #[error("{0} is empty")]
    Empty(RegionInfo),
    /// The end of the region is not a 64-bit address or offset.
    #[error("{region} wraps: its {what} plus its size exceed 64 bits")]
    Wraps {
        /// The refused region.
        region: RegionInfo,
        /// Which of its three positions wraps.
        what: &'static str,
    },
    /// The descriptor is neither a regular file nor a memfd, so it cannot hold guest memory.
    #[error(
        "{region}: its descriptor is a {kind}; guest memory must be a memfd or a regular file (share=on)"
    )]
    NotAFile {
        /// The refused region.
        region: RegionInfo,
        /// What the descriptor is.
        kind: &'static str,
    },
    /// The file ends before the region does; a touch behind the end would be fatal.
    #[error("{region} ends behind the end of its file ({file_size:#x} bytes)")]
    PastEnd {
        /// The refused region.
        region: RegionInfo,
        /// Size of the file in bytes.
        file_size: u64,
    },
    /// Two regions claim the same addresses.
    #[error("{one} and {other} overlap in {space} addresses")]
    Overlap {
        /// The region with the lower address.
        one: RegionInfo,
        /// The region with the higher address.
        other: RegionInfo,
        /// `guest` or `user`.
        space: &'static str,
    },
    /// No region of the table has these addresses and this size.
    #[error("the memory table has no {0}")]
    NotFound(RegionInfo),
    /// The file could not be examined.
    #[error("cannot examine the file of {0}")]
    Stat(RegionInfo, #[source] io::Error),
    /// The file could not be mapped (read-only descriptor, sealed memfd, no address space left).
    #[error("cannot map {0} for reading and writing")]
    Map(RegionInfo, #[source] io::Error),
}

/// A range of guest addresses that no region, or no run of adjacent regions, holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{len:#x} bytes at guest address {addr:#x} are not in guest memory")]
pub struct OutOfMemory {
    /// Start of the range.
    pub addr: u64,
    /// Length of the range in bytes.
    pub len: u64,
}
