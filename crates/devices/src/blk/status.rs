//! The status byte, and why a request is refused.

use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};

/// The last byte of every request (virtio 1.3, 5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// VIRTIO_BLK_S_OK.
    Ok = VIRTIO_BLK_S_OK as u8,
    /// VIRTIO_BLK_S_IOERR: device or driver error.
    IoErr = VIRTIO_BLK_S_IOERR as u8,
    /// VIRTIO_BLK_S_UNSUPP: unsupported by the device.
    Unsupp = VIRTIO_BLK_S_UNSUPP as u8,
}

/// A driver's mistake in one request. The request gets [`Refusal::status`]; the text is for debug logs, since a guest can
/// produce these at will.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A type that does not exist, or whose feature was not negotiated.
    #[error("request type {kind} is not supported")]
    UnknownType {
        /// As the driver wrote it.
        kind: u32,
    },
    /// A flag that does not exist, or unmap on a discard.
    #[error("segment flags {flags:#x} are not supported")]
    Flags {
        /// As the driver wrote them.
        flags: u32,
    },
    /// Fewer readable bytes than a header has.
    #[error("the header is short")]
    ShortHeader,
    /// Less room than the device ID string takes.
    #[error("room for {room} bytes of the device ID, 20 are needed")]
    ShortId {
        /// Bytes.
        room: u64,
    },
    /// Readable data with a request that writes to the guest, or the other way round.
    #[error("{len} bytes of data in the wrong direction")]
    WrongDirection {
        /// Bytes.
        len: u64,
    },
    /// A change to a disk that was offered as read-only.
    #[error("the disk is read-only")]
    ReadOnly,
    /// Past the end of the disk.
    #[error("{len} bytes from sector {sector} are out of range")]
    OutOfRange {
        /// First sector.
        sector: u64,
        /// Bytes.
        len: u64,
    },
    /// Not whole blocks.
    #[error("{len} bytes from sector {sector} are not whole blocks of {block}")]
    Misaligned {
        /// First sector.
        sector: u64,
        /// Bytes.
        len: u64,
        /// Bytes.
        block: u32,
    },
    /// Not a whole number of segments, or none.
    #[error("{len} bytes are no list of segments")]
    SegmentList {
        /// Bytes.
        len: u64,
    },
    /// More segments than the configuration space allows.
    #[error("{count} segments, {max} are allowed")]
    TooManySegments {
        /// In the list.
        count: u64,
        /// Allowed.
        max: u32,
    },
    /// A longer segment than the configuration space allows.
    #[error("a segment of {len} bytes, {max} are allowed")]
    SegmentTooLong {
        /// Bytes.
        len: u64,
        /// Bytes allowed.
        max: u64,
    },
}

impl Refusal {
    /// What the driver is told.
    pub fn status(&self) -> Status {
        match self {
            Refusal::UnknownType { .. } | Refusal::Flags { .. } => Status::Unsupp,
            _ => Status::IoErr,
        }
    }
}
