//! The virtio-blk configuration space (virtio 1.3, section 5.2.4), read by hand: the bindings' struct has padding at
//! its end and grows from kernel to kernel.

/// Bytes of the configuration space up to and including `secure_erase_sector_alignment`: what every front end asks for.
pub const CONFIG_SIZE: usize = 60;
/// Offset of the `wce` byte, the one the guest may write.
pub const WCE_OFFSET: u32 = 32;

/// Defines the config struct and its parser from one list of fields, each `name: type = offset`.
macro_rules! config {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $offset:literal),* $(,)?) => {
        /// The device's configuration as GET_CONFIG answered.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct BlkConfig {
            $($(#[$doc])* pub $name: $type,)*
            /// The bytes themselves.
            pub bytes: Vec<u8>,
        }

        impl BlkConfig {
            /// Reads the fields; those beyond the end of `bytes` are 0.
            #[must_use]
            pub fn parse(bytes: &[u8]) -> Self {
                Self {
                    $($name: bytes
                        .get($offset..$offset + size_of::<$type>())
                        .and_then(|field| field.try_into().ok())
                        .map_or(0, <$type>::from_le_bytes),)*
                    bytes: bytes.to_vec(),
                }
            }
        }
    };
}

config! {
    /// Size of the disk in sectors of 512 bytes.
    capacity: u64 = 0,
    /// Largest segment in bytes.
    size_max: u32 = 8,
    /// Largest number of segments in a request.
    seg_max: u32 = 12,
    /// Block size in bytes.
    blk_size: u32 = 20,
    /// log2 of logical blocks in a physical block.
    physical_block_exp: u8 = 24,
    /// Offset of the first aligned logical block.
    alignment_offset: u8 = 25,
    /// Smallest efficient I/O in logical blocks.
    min_io_size: u16 = 26,
    /// Optimal sustained I/O in logical blocks.
    opt_io_size: u32 = 28,
    /// 1 if the cache is in writeback mode.
    wce: u8 = 32,
    /// Number of queues.
    num_queues: u16 = 34,
    /// Largest discard in sectors.
    max_discard_sectors: u32 = 36,
    /// Most segments in a discard.
    max_discard_seg: u32 = 40,
    /// Alignment of discards in sectors.
    discard_sector_alignment: u32 = 44,
    /// Largest write zeroes in sectors.
    max_write_zeroes_sectors: u32 = 48,
    /// Most segments in a write zeroes.
    max_write_zeroes_seg: u32 = 52,
    /// 1 if write zeroes with unmap may deallocate.
    write_zeroes_may_unmap: u8 = 56,
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use virtio_bindings::bindings::virtio_blk::virtio_blk_config as C;

    use super::*;

    #[test]
    fn fields_lie_where_the_kernel_has_them() {
        let bytes: Vec<u8> = (1..=CONFIG_SIZE as u8).collect();
        let config = BlkConfig::parse(&bytes);
        let at = |offset: usize| u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap());
        assert_eq!(config.capacity as u32, at(0));
        assert_eq!(config.seg_max, at(offset_of!(C, seg_max)));
        assert_eq!(config.blk_size, at(offset_of!(C, blk_size)));
        assert_eq!(config.min_io_size, at(offset_of!(C, min_io_size)) as u16);
        assert_eq!(config.opt_io_size, at(offset_of!(C, opt_io_size)));
        assert_eq!(config.wce, bytes[offset_of!(C, wce)]);
        assert_eq!(WCE_OFFSET as usize, offset_of!(C, wce));
        assert_eq!(config.num_queues, at(offset_of!(C, num_queues)) as u16);
        assert_eq!(
            config.max_discard_sectors,
            at(offset_of!(C, max_discard_sectors))
        );
        assert_eq!(
            config.max_write_zeroes_seg,
            at(offset_of!(C, max_write_zeroes_seg))
        );
        assert_eq!(
            config.write_zeroes_may_unmap,
            bytes[offset_of!(C, write_zeroes_may_unmap)]
        );
        assert_eq!(
            BlkConfig::parse(&bytes[..8]).seg_max,
            0,
            "a short answer has no such field"
        );
    }
}
