//! Discard and write-zeroes: which method, and what when the filesystem cannot.
//!
//! | | image file | block device |
//! |-|-|-|
//! | discard | punch a hole | BLKDISCARD, on the helper thread |
//! | write-zeroes, unmap | punch a hole → zero the range → write zeroes | the same: the kernel's fallocate on block devices zeroes with the device's own command |
//! | write-zeroes | zero the range → write zeroes | the same |
//!
//! `fallocate` changes exactly the bytes of its range: what is smaller than a block is zeroed, neighbours stay. Each arrow is
//! followed when the method before is not supported, and the image remembers that. In the writethrough modes a
//! write-zeroes ends with a flush of its own, since a write is durable there when it completes.
use super::{
    Image, Kind,
    helper::Job,
    queue::Next,
    slot::{Slot, Work, ZeroMethod},
};
use io_uring::{opcode, squeue::Entry, types::Fd};
use outboard_reactor::RemotePort;
use std::{
    os::fd::AsRawFd,
    sync::{Arc, atomic::Ordering},
};

/// What is written where zeroes have to be written. Aligned for all direct I/O there is.
#[repr(align(65536))]
struct Zeroes([u8; 65536]);
static ZEROES: Zeroes = Zeroes([0; 65536]);

/// The first method to try.
pub(super) fn first_method(image: &Image, unmap: bool) -> ZeroMethod {
    if unmap && image.can.punch() {
        ZeroMethod::Punch
    } else if image.can.zero_range() {
        ZeroMethod::ZeroRange
    } else {
        ZeroMethod::Write
    }
}

/// One step of a write-zeroes.
pub(super) fn zero_entry(image: &Image, slot: &Slot, method: ZeroMethod) -> Entry {
    match method {
        ZeroMethod::Punch => fallocate(image, slot, libc::FALLOC_FL_PUNCH_HOLE),
        ZeroMethod::ZeroRange => fallocate(image, slot, libc::FALLOC_FL_ZERO_RANGE),
        ZeroMethod::Write => {
            let piece = slot.left().min(ZEROES.0.len() as u64) as u32;
            opcode::Write::new(Fd(image.file.as_raw_fd()), ZEROES.0.as_ptr(), piece)
                .offset(slot.position())
                .build()
        }
    }
}

/// A discard of an image file.
pub(super) fn discard_entry(image: &Image, slot: &Slot) -> Entry {
    fallocate(image, slot, libc::FALLOC_FL_PUNCH_HOLE)
}

fn fallocate(image: &Image, slot: &Slot, mode: i32) -> Entry {
    // Keeping the size: an image that was cut short meanwhile must not grow.
    opcode::Fallocate::new(Fd(image.file.as_raw_fd()), slot.left())
        .offset(slot.position())
        .mode(mode | libc::FALLOC_FL_KEEP_SIZE)
        .build()
}

/// Whether a discard goes to the helper thread.
pub(super) fn discards_by_helper(image: &Image) -> bool {
    image.kind == Kind::BlockDevice
}

/// Hands a discard to the helper thread; the error is an errno.
pub(super) fn discard_by_helper(
    image: &Arc<Image>,
    slot: &Slot,
    port: RemotePort,
    token: u32,
) -> Result<(), i32> {
    let job = Job {
        image: Arc::clone(image),
        offset: slot.offset,
        len: slot.len,
        port,
        token,
    };
    image.helper.submit(job)
}

/// What follows a step of a write-zeroes that succeeded; `count` counts for written zeroes only.
pub(super) fn after_zero(image: &Image, slot: &mut Slot, method: ZeroMethod, count: u64) -> Next {
    match method {
        ZeroMethod::Punch | ZeroMethod::ZeroRange => slot.done = slot.len,
        ZeroMethod::Write => match super::transfer::after_write(image, slot, count) {
            Next::Done(Ok(())) => {}
            next => return next,
        },
    }
    if image.writethrough {
        slot.work = Work::Flush;
        return Next::Again;
    }
    Next::Done(Ok(()))
}

/// What follows a step of a write-zeroes that failed with `errno`.
pub(super) fn after_failed_zero(
    image: &Image,
    slot: &mut Slot,
    method: ZeroMethod,
    errno: i32,
) -> Next {
    let unsupported = matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS);
    let next = match method {
        // Some filesystems say EINVAL when only this file or this range cannot: nothing to remember.
        _ if !unsupported && errno != libc::EINVAL => return Next::Done(Err(errno)),
        ZeroMethod::Write => return Next::Done(Err(errno)),
        ZeroMethod::Punch => {
            if unsupported {
                image.can.punch.store(false, Ordering::Relaxed);
            }
            if image.can.zero_range() {
                ZeroMethod::ZeroRange
            } else {
                ZeroMethod::Write
            }
        }
        ZeroMethod::ZeroRange => {
            if unsupported {
                image.can.zero_range.store(false, Ordering::Relaxed);
            }
            ZeroMethod::Write
        }
    };
    slot.work = Work::Zero(next);
    Next::Again
}
