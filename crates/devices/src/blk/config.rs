//! The configuration space: `struct virtio_blk_config`, little-endian (virtio 1.3, 5.2.4).
//!
//! The space always has the full length of the structure, whatever was negotiated: a front end asks for a prefix of its own
//! choice, often the size of the structure in the headers it was built with. Fields without a feature read as zero.

use super::request::SECTOR;
use outboard_storage::disk::Limits;

/// Bytes of the space.
pub const SIZE: usize = 96;

/// Where `writeback` is, the one field that a driver may write.
pub const WRITEBACK: usize = 32;

/// The space as it stands.
pub type Image = [u8; SIZE];

/// Segments of one DISCARD or WRITE_ZEROES at most. Linux fills such a list from one bio each; more would only let one
/// request occupy the disk for longer.
pub const MAX_SEGMENTS: u32 = 32;

/// Data segments of one request at most, for a ring of [`ASSUMED_RING`] descriptors with one for header and status each.
///
/// A chain must not be longer than the ring, even when it is indirect (2.7.5.3.1), but the ring's size is chosen by the
/// front end after this field was read, and drivers trust the field alone.
fn seg_max(queue_size: u16) -> u32 {
    u32::from(queue_size.min(ASSUMED_RING))
        .saturating_sub(2)
        .max(1)
}

/// The smallest ring among the defaults of QEMU (128), cloud-hypervisor (128) and Firecracker (256).
const ASSUMED_RING: u16 = 128;

/// What the fields are made from.
#[derive(Debug, Clone, Copy)]
pub struct Fields {
    /// Bytes; more than a whole number of sectors is cut.
    pub size: u64,
    /// What the disk says of itself.
    pub limits: Limits,
    /// Descriptors of a queue at most.
    pub queue_size: u16,
    /// Queues.
    pub num_queues: u16,
    /// Writes are volatile until a flush.
    pub writeback: bool,
    /// Nothing may be changed: there is no DISCARD and no WRITE_ZEROES.
    pub read_only: bool,
}

impl Fields {
    /// Longest segment of a DISCARD in sectors; 0: not supported.
    pub fn max_discard_sectors(&self) -> u32 {
        if self.read_only {
            0
        } else {
            whole_blocks(self.limits.max_discard, &self.limits)
        }
    }

    /// Longest segment of a WRITE_ZEROES in sectors; 0: not supported.
    pub fn max_write_zeroes_sectors(&self) -> u32 {
        if self.read_only {
            0
        } else {
            whole_blocks(self.limits.max_write_zeroes, &self.limits)
        }
    }

    /// The bytes, field after field as the specification has them.
    pub fn image(&self) -> Image {
        let limits = &self.limits;
        let block = limits.logical_block.max(1);
        let mut out = Writer {
            image: [0; SIZE],
            at: 0,
        };
        out.u64(self.size / SECTOR); // capacity
        out.u32(0); // size_max: not offered
        out.u32(seg_max(self.queue_size));
        out.u32(0); // geometry: not offered
        out.u32(limits.logical_block); // blk_size
        // topology, in logical blocks
        let per_physical = (limits.physical_block / block).max(1);
        out.u8(per_physical.ilog2() as u8);
        out.u8(u8::try_from(limits.alignment_offset / block).unwrap_or(0));
        out.u16(u16::try_from(limits.min_io / block).unwrap_or(u16::MAX));
        out.u32(limits.opt_io / block);
        out.u8(self.writeback.into());
        out.u8(0); // unused0
        out.u16(self.num_queues);
        let discard = self.max_discard_sectors();
        out.u32(discard);
        out.u32(if discard == 0 { 0 } else { MAX_SEGMENTS });
        let granularity = limits.discard_granularity.max(block) / SECTOR as u32;
        out.u32(if discard == 0 { 0 } else { granularity }); // discard_sector_alignment
        let zeroes = self.max_write_zeroes_sectors();
        out.u32(zeroes);
        out.u32(if zeroes == 0 { 0 } else { MAX_SEGMENTS });
        out.u8((zeroes != 0 && limits.write_zeroes_may_unmap).into());
        // unused1, secure erase and zoned: not offered
        out.image
    }
}

/// `bytes` in sectors, cut to whole logical blocks and to what a field of 32 bits can say.
fn whole_blocks(bytes: u64, limits: &Limits) -> u32 {
    let per_block = (limits.logical_block / SECTOR as u32).max(1);
    let sectors = u32::try_from(bytes / SECTOR).unwrap_or(u32::MAX);
    sectors - sectors % per_block
}

/// Fills an image from its start; what does not fit is left out (the fields are counted in the tests).
struct Writer {
    image: Image,
    at: usize,
}

impl Writer {
    fn bytes(&mut self, bytes: &[u8]) {
        let end = self.at.saturating_add(bytes.len());
        if let Some(field) = self.image.get_mut(self.at..end) {
            field.copy_from_slice(bytes);
        }
        self.at = end;
    }

    fn u8(&mut self, value: u8) {
        self.bytes(&[value]);
    }

    fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests;
