//! One descriptor chain becomes one validated request, or the status that refuses it (virtio 1.3, 5.2.6).
//!
//! [`parse`] is pure: it copies the header (and a segment list) out of guest memory once, judges only the copies, and
//! touches neither ring nor disk. What it returns needs no further check.
//!
//! A driver may cut a request into descriptors as it likes (2.7.4: no device may depend on the framing), so nothing here
//! sees a descriptor: a [`Chain`] is already gathered into its readable bytes and its writable bytes. Readable: sixteen
//! bytes of header, then the data of OUT, DISCARD and WRITE_ZEROES. Writable: the data of IN and GET_ID, then one byte
//! of status, the very last one.
//!
//! Where the specification leaves room:
//! - An unknown or unoffered type is UNSUPP; every other fault of the driver is IOERR ("device or driver error").
//! - Data in the wrong direction is refused rather than ignored: a driver that sends data with a read, or offers room
//!   for it with a write, means something else than the device would do. FLUSH is the exception: a driver only SHOULD
//!   NOT include data there, so data with a flush is ignored.
//! - GET_ID with less than 20 bytes of room is refused, since a driver MUST give 20 and a cut identity may be another
//!   disk's. More room is harmless: the rest of it stays untouched.
//! - Reading or writing no bytes at a valid place succeeds and does nothing; so does a segment of no sectors.
//! - All flags of a segment list are looked at before any range, since UNSUPP for an unknown flag is a MUST.

use super::status::Refusal;
use outboard_reactor::Buffers;
use outboard_virtio::queue::{Chain, QueueError};
use smallvec::SmallVec;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

/// Bytes of a sector, the unit of every sector number on the wire, whatever the block size.
pub const SECTOR: u64 = 512;

/// Bytes of the device ID string.
pub const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;

/// Bytes of the header: type, reserved, sector.
const HEADER: usize = 16;

/// Bytes of one `virtio_blk_discard_write_zeroes`.
const SEGMENT: usize = 16;

/// What a request is judged by, apart from the disk's present size. Fixed as long as a queue runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Logical block in bytes: a power of two, at least [`SECTOR`]. Offsets and lengths are multiples of it.
    pub block: u32,
    /// Everything that would change data is refused.
    pub read_only: bool,
    /// Longest segment of a DISCARD in bytes; 0: DISCARD was not negotiated.
    pub max_discard: u64,
    /// Longest segment of a WRITE_ZEROES in bytes; 0: WRITE_ZEROES was not negotiated.
    pub max_write_zeroes: u64,
    /// Segments in one list at most, as the configuration space says.
    pub max_segments: u32,
}

/// A chain, judged. The status must be written and the head pushed as used, whatever the request is.
pub struct Parsed {
    /// Names the chain in the used ring.
    pub head: u16,
    /// The one byte of status.
    pub status: Buffers,
    /// What to do, or why not.
    pub request: Result<Request, Refusal>,
}

/// A request that may be carried out as it stands: in range, aligned, permitted.
pub enum Request {
    /// Fill `data` from the disk.
    In {
        /// Bytes from the start of the disk.
        offset: u64,
        /// Never empty.
        data: Buffers,
    },
    /// Write `data` to the disk.
    Out {
        /// Bytes from the start of the disk.
        offset: u64,
        /// Never empty.
        data: Buffers,
    },
    /// Commit all completed writes.
    Flush,
    /// Copy the device ID string into `data`.
    GetId {
        /// At least [`ID_BYTES`] bytes.
        data: Buffers,
    },
    /// Release these ranges; what they read as afterwards is undefined.
    Discard(Segments),
    /// Let these ranges read as zeroes.
    WriteZeroes(Segments),
    /// A valid request about no bytes at all.
    Nothing,
}

/// Ranges of one request, in the driver's order; never empty.
pub type Segments = SmallVec<[Segment; 4]>;

/// One range of a DISCARD or WRITE_ZEROES, in range and aligned; never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Bytes from the start of the disk.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// The space may be released (WRITE_ZEROES only).
    pub unmap: bool,
}

/// Judges one chain against a disk of `size` bytes.
///
/// # Errors
/// A chain with no writable byte: there is nowhere to put a status, so the ring cannot be served any further.
pub fn parse(chain: Chain, rules: &Rules, size: u64) -> Result<Parsed, QueueError> {
    let Chain {
        head,
        mut readable,
        writable: mut data_in,
    } = chain;
    let Some(room) = data_in.len().checked_sub(1) else {
        return Err(QueueError::Bad(format!(
            "the chain at descriptor {head} has no writable byte for the status"
        )));
    };
    let status = data_in.split_off(room);
    let mut header = [0; HEADER];
    let request = if readable.copy_to(0, &mut header) < HEADER {
        Err(Refusal::ShortHeader)
    } else {
        readable.advance(HEADER as u64);
        judge(header, readable, data_in, rules, size)
    };
    Ok(Parsed {
        head,
        status,
        request,
    })
}

fn judge(
    header: [u8; HEADER],
    data_out: Buffers,
    data_in: Buffers,
    rules: &Rules,
    size: u64,
) -> Result<Request, Refusal> {
    // le32 type, le32 reserved, le64 sector.
    let header = u128::from_le_bytes(header);
    let kind = header as u32;
    let sector = (header >> 64) as u64;
    match kind {
        VIRTIO_BLK_T_IN => {
            refuse_data(&data_out)?;
            let offset = place(sector, data_in.len(), rules, size)?;
            if data_in.is_empty() {
                return Ok(Request::Nothing);
            }
            Ok(Request::In {
                offset,
                data: data_in,
            })
        }
        VIRTIO_BLK_T_OUT => {
            refuse_change(rules)?;
            refuse_data(&data_in)?;
            let offset = place(sector, data_out.len(), rules, size)?;
            if data_out.is_empty() {
                return Ok(Request::Nothing);
            }
            Ok(Request::Out {
                offset,
                data: data_out,
            })
        }
        VIRTIO_BLK_T_FLUSH => Ok(Request::Flush),
        VIRTIO_BLK_T_GET_ID => {
            refuse_data(&data_out)?;
            if data_in.len() < ID_BYTES as u64 {
                return Err(Refusal::ShortId {
                    room: data_in.len(),
                });
            }
            Ok(Request::GetId { data: data_in })
        }
        VIRTIO_BLK_T_DISCARD => {
            refuse_change(rules)?;
            if rules.max_discard == 0 {
                return Err(Refusal::UnknownType { kind });
            }
            refuse_data(&data_in)?;
            let segments = segments(&data_out, 0, rules.max_discard, rules, size)?;
            Ok(if segments.is_empty() {
                Request::Nothing
            } else {
                Request::Discard(segments)
            })
        }
        VIRTIO_BLK_T_WRITE_ZEROES => {
            refuse_change(rules)?;
            if rules.max_write_zeroes == 0 {
                return Err(Refusal::UnknownType { kind });
            }
            refuse_data(&data_in)?;
            let known = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
            let segments = segments(&data_out, known, rules.max_write_zeroes, rules, size)?;
            Ok(if segments.is_empty() {
                Request::Nothing
            } else {
                Request::WriteZeroes(segments)
            })
        }
        kind => Err(Refusal::UnknownType { kind }),
    }
}

/// Refuses data that travels against the request's direction.
fn refuse_data(data: &Buffers) -> Result<(), Refusal> {
    if data.is_empty() {
        Ok(())
    } else {
        Err(Refusal::WrongDirection { len: data.len() })
    }
}

fn refuse_change(rules: &Rules) -> Result<(), Refusal> {
    if rules.read_only {
        Err(Refusal::ReadOnly)
    } else {
        Ok(())
    }
}

/// The offset in bytes of `len` bytes from `sector`, if they are whole blocks and inside the disk.
fn place(sector: u64, len: u64, rules: &Rules, size: u64) -> Result<u64, Refusal> {
    let out_of_range = Refusal::OutOfRange { sector, len };
    let offset = sector.checked_mul(SECTOR).ok_or(out_of_range)?;
    let end = offset.checked_add(len).ok_or(out_of_range)?;
    if end > size {
        return Err(out_of_range);
    }
    // The block size is a power of two.
    let inside_block = u64::from(rules.block).wrapping_sub(1);
    if (offset | len) & inside_block != 0 {
        return Err(Refusal::Misaligned {
            sector,
            len,
            block: rules.block,
        });
    }
    Ok(offset)
}

/// Reads a list of segments, once, and judges the copy. Segments of no sectors are checked and left out.
fn segments(
    list: &Buffers,
    known_flags: u32,
    max_len: u64,
    rules: &Rules,
    size: u64,
) -> Result<Segments, Refusal> {
    let len = list.len();
    if len == 0 || !len.is_multiple_of(SEGMENT as u64) {
        return Err(Refusal::SegmentList { len });
    }
    let count = len / SEGMENT as u64;
    if count > u64::from(rules.max_segments) {
        return Err(Refusal::TooManySegments {
            count,
            max: rules.max_segments,
        });
    }
    // First as the driver wrote them: sector and number of sectors ...
    let mut raw: SmallVec<[(u64, u32, bool); 4]> = SmallVec::new();
    for index in 0..count {
        let mut bytes = [0; SEGMENT];
        list.copy_to(index * SEGMENT as u64, &mut bytes);
        // le64 sector, le32 num_sectors, le32 flags.
        let segment = u128::from_le_bytes(bytes);
        let flags = (segment >> 96) as u32;
        if flags & !known_flags != 0 {
            return Err(Refusal::Flags { flags });
        }
        let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
        raw.push((segment as u64, (segment >> 64) as u32, unmap));
    }
    // ... then, all flags being known, as ranges.
    let mut segments = Segments::new();
    for (sector, sectors, unmap) in raw {
        let len = u64::from(sectors) * SECTOR;
        if len > max_len {
            return Err(Refusal::SegmentTooLong { len, max: max_len });
        }
        let offset = place(sector, len, rules, size)?;
        if len != 0 {
            segments.push(Segment { offset, len, unmap });
        }
    }
    Ok(segments)
}

#[cfg(test)]
mod tests;
