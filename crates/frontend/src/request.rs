//! virtio-blk requests (virtio 1.3, section 5.2.6) and how they are cut into descriptors.

use std::borrow::Cow;

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use crate::error::{Error, Result};

/// Bytes of the request header: type, reserved (ioprio), sector.
pub const HEADER: u32 = 16;
/// Bytes of a sector, the unit of all sector numbers.
pub const SECTOR: u64 = 512;
/// Status of a request that worked.
pub const STATUS_OK: u8 = 0;
/// Status of a request that failed.
pub const STATUS_IOERR: u8 = 1;
/// Status of a request that the device does not know.
pub const STATUS_UNSUPP: u8 = 2;
/// What the driver writes into the status byte before it offers a request: no answer of any device.
pub const STATUS_NONE: u8 = 0xaa;

/// A range of DISCARD or WRITE_ZEROES.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// First sector.
    pub sector: u64,
    /// Number of sectors.
    pub sectors: u32,
    /// Bit 0: WRITE_ZEROES may deallocate.
    pub flags: u32,
}

impl Range {
    /// A range with no flags.
    #[must_use]
    pub fn new(sector: u64, sectors: u32) -> Self {
        Self {
            sector,
            sectors,
            flags: 0,
        }
    }

    /// The same range with `VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP`.
    #[must_use]
    pub fn unmap(self) -> Self {
        Self { flags: 1, ..self }
    }

    /// The bytes of `struct virtio_blk_discard_write_zeroes`.
    #[must_use]
    pub fn encode(ranges: &[Self]) -> Vec<u8> {
        ranges
            .iter()
            .flat_map(|range| {
                let mut bytes = [0; 16];
                let (sector, rest) = bytes.split_at_mut(8);
                let (sectors, flags) = rest.split_at_mut(4);
                sector.copy_from_slice(&range.sector.to_le_bytes());
                sectors.copy_from_slice(&range.sectors.to_le_bytes());
                flags.copy_from_slice(&range.flags.to_le_bytes());
                bytes
            })
            .collect()
    }
}

/// How a request is cut into descriptors. Virtio forbids the device to assume anything here (2.7.4.2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// Header, data and status in one descriptor each, like every real driver.
    #[default]
    Classic,
    /// The device-readable bytes (header, then data) and the device-writable bytes (data, then status) cut into
    /// descriptors of these lengths. Lengths need not add up to the whole: a short one makes a malformed request.
    Cut {
        /// Lengths of the readable descriptors.
        readable: Vec<u32>,
        /// Lengths of the writable descriptors.
        writable: Vec<u32>,
    },
}

/// A request before it is placed on a ring.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// VIRTIO_BLK_T_…, or any other number.
    pub kind: u32,
    /// First sector.
    pub sector: u64,
    /// Data for the device.
    pub output: Cow<'a, [u8]>,
    /// Bytes of data expected from the device.
    pub input: u32,
    /// How it is cut.
    pub layout: Layout,
    /// Through an indirect table; `None` leaves it to the queue's setting.
    pub indirect: Option<bool>,
}

impl<'a> Request<'a> {
    /// Any type of request.
    #[must_use]
    pub fn raw(kind: u32, sector: u64, output: impl Into<Cow<'a, [u8]>>, input: u32) -> Self {
        Self {
            kind,
            sector,
            output: output.into(),
            input,
            layout: Layout::Classic,
            indirect: None,
        }
    }

    /// Reads `length` bytes.
    #[must_use]
    pub fn read(sector: u64, length: u32) -> Self {
        Self::raw(VIRTIO_BLK_T_IN, sector, &[][..], length)
    }

    /// Writes the data.
    #[must_use]
    pub fn write(sector: u64, data: &'a [u8]) -> Self {
        Self::raw(VIRTIO_BLK_T_OUT, sector, data, 0)
    }

    /// Makes earlier writes durable.
    #[must_use]
    pub fn flush() -> Self {
        Self::raw(VIRTIO_BLK_T_FLUSH, 0, &[][..], 0)
    }

    /// Asks for the serial number.
    #[must_use]
    pub fn get_id() -> Self {
        Self::raw(VIRTIO_BLK_T_GET_ID, 0, &[][..], VIRTIO_BLK_ID_BYTES)
    }

    /// Declares ranges unused.
    #[must_use]
    pub fn discard(ranges: &[Range]) -> Self {
        Self::raw(VIRTIO_BLK_T_DISCARD, 0, Range::encode(ranges), 0)
    }

    /// Zeroes ranges.
    #[must_use]
    pub fn write_zeroes(ranges: &[Range]) -> Self {
        Self::raw(VIRTIO_BLK_T_WRITE_ZEROES, 0, Range::encode(ranges), 0)
    }

    /// The same request cut differently.
    #[must_use]
    pub fn cut(self, readable: &[u32], writable: &[u32]) -> Self {
        let layout = Layout::Cut {
            readable: readable.to_vec(),
            writable: writable.to_vec(),
        };
        Self { layout, ..self }
    }

    /// The same request through an indirect table, or not.
    #[must_use]
    pub fn indirect(self, indirect: bool) -> Self {
        Self {
            indirect: Some(indirect),
            ..self
        }
    }

    /// The name for messages.
    #[must_use]
    pub fn name(&self) -> &'static str {
        kind_name(self.kind)
    }
}

/// The name of a request type.
#[must_use]
pub fn kind_name(kind: u32) -> &'static str {
    match kind {
        VIRTIO_BLK_T_IN => "read",
        VIRTIO_BLK_T_OUT => "write",
        VIRTIO_BLK_T_FLUSH => "flush",
        VIRTIO_BLK_T_GET_ID => "get-id",
        VIRTIO_BLK_T_DISCARD => "discard",
        VIRTIO_BLK_T_WRITE_ZEROES => "write-zeroes",
        _ => "request of unknown type",
    }
}

/// The device's answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Type of the request.
    pub kind: u32,
    /// Its first sector.
    pub sector: u64,
    /// Status byte; [`STATUS_NONE`] if the device wrote none.
    pub status: u8,
    /// Bytes written according to the used element: data and status.
    pub used: u32,
    /// The data read, as long as asked for.
    pub data: Vec<u8>,
}

impl Reply {
    /// The reply if its status is OK, else an error.
    pub fn ok(self) -> Result<Self> {
        if self.status == STATUS_OK {
            return Ok(self);
        }
        Err(Error::Status {
            request: kind_name(self.kind),
            sector: self.sector,
            status: self.status,
        })
    }
}
