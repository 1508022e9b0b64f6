use super::*;
use std::mem::offset_of;
use virtio_bindings::virtio_blk::virtio_blk_config;

fn fields() -> Fields {
    Fields {
        size: 10 << 30,
        limits: Limits {
            logical_block: 512,
            physical_block: 4096,
            alignment_offset: 1024,
            min_io: 4096,
            opt_io: 1 << 20,
            max_discard: 1 << 30,
            discard_granularity: 4096,
            max_write_zeroes: 1 << 20,
            write_zeroes_may_unmap: true,
        },
        queue_size: 64,
        num_queues: 3,
        writeback: true,
        read_only: false,
    }
}

/// The little-endian number of `len` bytes at `at`, found by the kernel's own structure.
fn number(fields: &Fields, at: usize, len: usize) -> u64 {
    fields.image()[at..at + len]
        .iter()
        .rev()
        .fold(0, |n, byte| n << 8 | u64::from(*byte))
}

#[test]
fn every_field_is_where_the_structure_has_it() {
    assert_eq!(size_of::<virtio_blk_config>(), SIZE);
    assert_eq!(offset_of!(virtio_blk_config, wce), WRITEBACK);
    let fields = fields();
    for (name, at, len, value) in [
        (
            "capacity",
            offset_of!(virtio_blk_config, capacity),
            8,
            (10 << 30) / 512,
        ),
        ("size_max", offset_of!(virtio_blk_config, size_max), 4, 0),
        ("seg_max", offset_of!(virtio_blk_config, seg_max), 4, 62),
        ("geometry", offset_of!(virtio_blk_config, geometry), 4, 0),
        ("blk_size", offset_of!(virtio_blk_config, blk_size), 4, 512),
        (
            "physical_block_exp",
            offset_of!(virtio_blk_config, physical_block_exp),
            1,
            3,
        ),
        (
            "alignment_offset",
            offset_of!(virtio_blk_config, alignment_offset),
            1,
            2,
        ),
        (
            "min_io_size",
            offset_of!(virtio_blk_config, min_io_size),
            2,
            8,
        ),
        (
            "opt_io_size",
            offset_of!(virtio_blk_config, opt_io_size),
            4,
            2048,
        ),
        ("writeback", offset_of!(virtio_blk_config, wce), 1, 1),
        ("unused0", offset_of!(virtio_blk_config, wce) + 1, 1, 0),
        (
            "num_queues",
            offset_of!(virtio_blk_config, num_queues),
            2,
            3,
        ),
        (
            "max_discard_sectors",
            offset_of!(virtio_blk_config, max_discard_sectors),
            4,
            1 << 21,
        ),
        (
            "max_discard_seg",
            offset_of!(virtio_blk_config, max_discard_seg),
            4,
            32,
        ),
        (
            "discard_sector_alignment",
            offset_of!(virtio_blk_config, discard_sector_alignment),
            4,
            8,
        ),
        (
            "max_write_zeroes_sectors",
            offset_of!(virtio_blk_config, max_write_zeroes_sectors),
            4,
            2048,
        ),
        (
            "max_write_zeroes_seg",
            offset_of!(virtio_blk_config, max_write_zeroes_seg),
            4,
            32,
        ),
        (
            "write_zeroes_may_unmap",
            offset_of!(virtio_blk_config, write_zeroes_may_unmap),
            1,
            1,
        ),
    ] {
        assert_eq!(number(&fields, at, len), value, "{name}");
    }
    let unused = offset_of!(virtio_blk_config, write_zeroes_may_unmap) + 1;
    assert!(
        fields.image()[unused..].iter().all(|byte| *byte == 0),
        "unused1, secure erase, zoned"
    );
}

#[test]
fn topology_is_in_logical_blocks() {
    let mut fields = fields();
    fields.limits.logical_block = 4096;
    assert_eq!(
        number(
            &fields,
            offset_of!(virtio_blk_config, physical_block_exp),
            1
        ),
        0,
        "one logical block is one physical block"
    );
    assert_eq!(
        number(&fields, offset_of!(virtio_blk_config, min_io_size), 2),
        1
    );
    assert_eq!(
        number(&fields, offset_of!(virtio_blk_config, opt_io_size), 4),
        256
    );
}

#[test]
fn values_that_no_field_can_hold_are_cut_to_what_it_can() {
    let mut fields = fields();
    fields.limits.max_discard = u64::MAX;
    fields.limits.max_write_zeroes = u64::MAX;
    fields.limits.min_io = u32::MAX;
    fields.limits.alignment_offset = u32::MAX;
    fields.limits.logical_block = 4096;
    assert_eq!(
        fields.max_discard_sectors(),
        u32::MAX - 7,
        "whole blocks of 8 sectors"
    );
    assert_eq!(fields.max_write_zeroes_sectors(), u32::MAX - 7);
    assert_eq!(
        number(&fields, offset_of!(virtio_blk_config, min_io_size), 2),
        0xffff
    );
    assert_eq!(
        number(&fields, offset_of!(virtio_blk_config, alignment_offset), 1),
        0,
        "not known"
    );
}

#[test]
fn what_the_disk_cannot_do_or_must_not_reads_as_zero() {
    let discard = offset_of!(virtio_blk_config, max_discard_sectors);
    let mut cannot = fields();
    cannot.limits.max_discard = 0;
    cannot.limits.max_write_zeroes = 511;
    let must_not = Fields {
        read_only: true,
        ..fields()
    };
    for fields in [cannot, must_not] {
        assert_eq!(
            (
                fields.max_discard_sectors(),
                fields.max_write_zeroes_sectors()
            ),
            (0, 0)
        );
        assert!(fields.image()[discard..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn seg_max_fits_the_smaller_of_the_queue_and_a_ring_of_128() {
    let seg_max = |queue_size| {
        number(
            &Fields {
                queue_size,
                ..fields()
            },
            offset_of!(virtio_blk_config, seg_max),
            4,
        )
    };
    assert_eq!(
        [2, 4, 64, 128, 256, 32768].map(seg_max),
        [1, 2, 62, 126, 126, 126]
    );
}
