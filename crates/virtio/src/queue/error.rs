use crate::memory::OutOfMemory;

/// The ring itself is broken: the device stops using it. (A bad *request* in a sound ring is the device's to answer.)
///
/// Section numbers are those of virtio 1.3.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// 2.7: the queue size is a power of two of at most 32768.
    #[error("queue size {0} is not a power of two from 1 to 32768")]
    Size(u16),
    /// A part of the ring is not in guest memory, or not contiguous there (it spans regions).
    #[error(
        "the {part} ({len:#x} bytes at guest address {addr:#x}) does not lie within one memory region"
    )]
    Unmapped {
        /// Descriptor table, available ring or used ring.
        part: &'static str,
        /// Its guest address.
        addr: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// 2.7: descriptor table, available and used ring are aligned to 16, 2 and 4 bytes.
    #[error("the {part} at guest address {addr:#x} is not aligned to {align} bytes")]
    Misaligned {
        /// Descriptor table, available ring or used ring.
        part: &'static str,
        /// Its guest address.
        addr: u64,
        /// Alignment in bytes it must have.
        align: u64,
    },
    /// 2.7.13.3: the driver makes at most as many requests available as there are descriptors, and never takes one back.
    #[error(
        "avail.idx is {avail_idx} where the device is at {next_avail}: more than {size} ahead, or back"
    )]
    AvailIndex {
        /// What the driver wrote.
        avail_idx: u16,
        /// Where the device goes on.
        next_avail: u16,
        /// Queue size.
        size: u16,
    },
    /// More requests were made available than the ring has descriptors, counting those that the driver has not seen as used yet.
    #[error("more than {0} requests are outstanding in a ring of as many descriptors")]
    TooManyOutstanding(u16),
    /// 2.7.6: entries of the available ring and `next` fields are indices into the table.
    #[error("descriptor index {index} in a table of {size}")]
    Index {
        /// The index that is out of range.
        index: u16,
        /// Entries in the table.
        size: u32,
    },
    /// 2.7.13: a descriptor belongs to the device from the time it is made available until it is used.
    #[error("descriptor {0} was made available again while its request is in flight")]
    HeadInFlight(u16),
    /// 2.7.5.2: a chain is no longer than the table that holds it, so it does not loop.
    #[error(
        "the chain at descriptor {head} does not end within the {size} descriptors of its table: a loop"
    )]
    Endless {
        /// First descriptor of the chain.
        head: u16,
        /// Entries in the table.
        size: u32,
    },
    /// 2.7.5.2: a chain is at most 2^32 bytes long.
    #[error("the chain at descriptor {0} is longer than 2^32 bytes")]
    TooLong(u16),
    /// Its buffers run over more regions of guest memory than a chain can have descriptors.
    #[error("the chain at descriptor {0} lies in more than 32768 pieces")]
    TooManyPieces(u16),
    /// 2.7.4.2: device-readable buffers come before device-writable ones.
    #[error("the chain at descriptor {0} has a readable buffer after a writable one")]
    Order(u16),
    /// A buffer, or an indirect table, is not in guest memory.
    #[error("the chain at descriptor {head}: {range}")]
    Memory {
        /// First descriptor of the chain.
        head: u16,
        /// What it points to.
        range: OutOfMemory,
    },
    /// 2.7.5.3.1: the driver uses an indirect table only when that was negotiated, not within another, and not in the middle of a chain.
    #[error("the chain at descriptor {head} has an indirect table {why}")]
    Indirect {
        /// First descriptor of the chain.
        head: u16,
        /// Which of the rules is broken.
        why: &'static str,
    },
    /// 2.7.5.3: an indirect table is a whole number of descriptors, at least one, at most 32768.
    #[error("the chain at descriptor {head} has an indirect table of {len} bytes")]
    IndirectLength {
        /// First descriptor of the chain.
        head: u16,
        /// Length in bytes as the driver gave it.
        len: u32,
    },
    /// The device gave back a request that is not in flight: a bug of the device model, not of the driver.
    #[error("the device used descriptor {0}, which is not in flight")]
    NotInFlight(u16),
    /// The device cannot answer a request in the way its type demands (no room for a status, for one).
    #[error("{0}")]
    Bad(String),
}
