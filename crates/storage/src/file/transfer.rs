//! One read or write: as io_uring operations, resumed until all bytes went over.
use super::{
    Image,
    bounce::{BouncePool, PIECE},
    queue::Next,
    slot::Slot,
};
use io_uring::{opcode, squeue::Entry, types::Fd};
use outboard_reactor::Buffers;
use std::os::fd::AsRawFd;

/// The kernel takes no more segments in one operation.
const MAX_SEGMENTS: usize = 1024;
/// What one operation takes of a longer transfer, in bytes. The kernel would take 2 GiB, and what lies in the page cache it copies
/// while the worker submits: all rings of the worker would wait for one guest's copy. Beyond what guests ask for in one request,
/// and a round number, which keeps what is left aligned.
pub(super) const MAX_LENGTH: usize = 4 << 20;
/// `RWF_DSYNC`: the bytes are on stable storage when the write completes.
const RWF_DSYNC: i32 = libc::RWF_DSYNC;

/// Whether the segments are fit for direct I/O of the image as they are.
pub(super) fn needs_bounce(image: &Image, buf: &Buffers) -> bool {
    let Some(align) = image.direct else {
        return false;
    };
    // Powers of two.
    let address = align.memory as usize - 1;
    let length = align.io as usize - 1;
    buf.iovecs()
        .iter()
        .any(|v| v.iov_base.addr() & address != 0 || v.iov_len & length != 0)
}

/// A read of what is left.
pub(super) fn read_entry(image: &Image, slot: &mut Slot, bounces: &mut BouncePool) -> Entry {
    let fd = Fd(image.file.as_raw_fd());
    let at = slot.position();
    if slot.bounced {
        let piece = slot.left().min(PIECE as u64) as u32;
        let bounce = slot.bounce.get_or_insert_with(|| bounces.take());
        return opcode::Read::new(fd, bounce.bytes_mut().as_mut_ptr(), piece)
            .offset(at)
            .build();
    }
    match next_segments(slot) {
        [one] => opcode::Read::new(fd, one.iov_base.cast(), one.iov_len.min(MAX_LENGTH) as u32)
            .offset(at)
            .build(),
        many => opcode::Readv::new(fd, many.as_ptr(), many.len() as u32)
            .offset(at)
            .build(),
    }
}

/// A write of what is left.
pub(super) fn write_entry(
    image: &Image,
    slot: &mut Slot,
    durable: bool,
    bounces: &mut BouncePool,
) -> Entry {
    let fd = Fd(image.file.as_raw_fd());
    let at = slot.position();
    let flags = if durable { RWF_DSYNC } else { 0 };
    if slot.bounced {
        let piece = slot.left().min(PIECE as u64) as usize;
        let bounce = slot.bounce.get_or_insert_with(|| bounces.take());
        if let Some(target) = bounce.bytes_mut().get_mut(..piece) {
            slot.buf.copy_to(slot.done, target);
        }
        return opcode::Write::new(fd, bounce.bytes().as_ptr(), piece as u32)
            .offset(at)
            .rw_flags(flags)
            .build();
    }
    match next_segments(slot) {
        [one] => opcode::Write::new(fd, one.iov_base.cast(), one.iov_len.min(MAX_LENGTH) as u32)
            .offset(at)
            .rw_flags(flags)
            .build(),
        many => opcode::Writev::new(fd, many.as_ptr(), many.len() as u32)
            .offset(at)
            .rw_flags(flags)
            .build(),
    }
}

/// The next segments to transfer: at most [`MAX_SEGMENTS`] of at most [`MAX_LENGTH`] in all, or one that is longer. The list
/// stays where it is until the slot is started again.
pub(super) fn next_segments(slot: &mut Slot) -> &[libc::iovec] {
    if slot.done == 0 {
        return first_of(slot.buf.iovecs());
    }
    slot.rest.clear();
    let mut skip = slot.done;
    for segment in slot.buf.iovecs() {
        if slot.rest.len() == MAX_SEGMENTS {
            break;
        }
        let len = segment.iov_len as u64;
        if skip >= len {
            skip -= len;
            continue;
        }
        // `skip` is less than the segment's length, so fits.
        slot.rest.push(libc::iovec {
            iov_base: segment.iov_base.wrapping_byte_add(skip as usize),
            iov_len: segment.iov_len - skip as usize,
        });
        skip = 0;
    }
    first_of(&slot.rest)
}

fn first_of(segments: &[libc::iovec]) -> &[libc::iovec] {
    let mut length = 0_usize;
    let fit = segments.iter().take(MAX_SEGMENTS).take_while(|segment| {
        length = length.saturating_add(segment.iov_len);
        length <= MAX_LENGTH
    });
    segments.get(..fit.count().max(1)).unwrap_or_default()
}

/// What follows a read of `count` bytes.
pub(super) fn after_read(image: &Image, slot: &mut Slot, count: u64) -> Next {
    if slot.bounced
        && let Some(bounce) = &slot.bounce
        && let Some(bytes) = bounce.bytes().get(..count as usize)
    {
        slot.buf.copy_from(slot.done, bytes);
    }
    slot.done = slot.done.saturating_add(count).min(slot.len);
    // Direct I/O ends within a block only at the end of the file.
    let at_end = count == 0
        || image
            .direct
            .is_some_and(|align| !count.is_multiple_of(u64::from(align.io)));
    if at_end {
        slot.buf.fill(slot.done, slot.left(), 0);
        slot.done = slot.len;
    }
    if slot.left() == 0 {
        Next::Done(Ok(()))
    } else {
        Next::Again
    }
}

/// What follows a write of `count` bytes.
pub(super) fn after_write(image: &Image, slot: &mut Slot, count: u64) -> Next {
    // Where direct I/O stops within a block (no kernel is known to), the block is written once more.
    let whole = match image.direct {
        Some(align) if count < slot.left() => count - count % u64::from(align.io),
        _ => count,
    };
    if whole == 0 {
        return Next::Done(Err(libc::EIO));
    }
    slot.done = slot.done.saturating_add(whole).min(slot.len);
    if slot.left() == 0 {
        Next::Done(Ok(()))
    } else {
        Next::Again
    }
}
