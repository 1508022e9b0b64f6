//! One worker's operations on an image: submit, resume, retry, complete.
//!
//! An operation lives in a slot. Its key is the token of whatever is under way for it: an io_uring operation, a pause, a job of the
//! helper thread, or a result that is already known. At any time exactly one of these is; when the port reports it, the
//! operation either takes its next step or completes. So a short transfer, an interrupted one and a method that the filesystem
//! does not know are all the same loop.
#![allow(unsafe_code)]

use super::{
    Image,
    bounce::BouncePool,
    slot::{Slots, Work},
    space, transfer,
};
use crate::disk::{Completion, DiskQueue, Op};
use io_uring::{
    opcode,
    squeue::Entry,
    types::{Fd, FsyncFlags},
};
use outboard_reactor::{Buffers, IoPort, PortCompletion};
use std::{io, mem, os::fd::AsRawFd, sync::Arc, time::Duration};

/// How long to wait when the kernel is short of something, and how often before it becomes an error: some seconds in all.
const PAUSE: Duration = Duration::from_millis(1);
const MAX_ATTEMPTS: u32 = 5000;

/// What follows a step.
pub(super) enum Next {
    /// The next step of the operation.
    Again,
    /// The same step, a moment later.
    Pause,
    /// The operation is done, or failed with an errno.
    Done(Result<(), i32>),
}

/// See the module.
pub(super) struct FileQueue {
    image: Arc<Image>,
    port: IoPort,
    slots: Slots,
    bounces: BouncePool,
}

impl FileQueue {
    pub(super) fn new(image: Arc<Image>, port: IoPort) -> FileQueue {
        let align = image.direct.map_or(1, |align| align.memory.max(align.io));
        FileQueue {
            image,
            port,
            slots: Slots::default(),
            bounces: BouncePool::new(align),
        }
    }

    /// Starts the next step of an operation. All I/O of the engine begins here.
    fn start(&mut self, key: u32) {
        let Some(slot) = self.slots.get_mut(key) else {
            return;
        };
        let image = &*self.image;
        let entry = match slot.work {
            Work::Read => transfer::read_entry(image, slot, &mut self.bounces),
            Work::Write { durable } => {
                transfer::write_entry(image, slot, durable, &mut self.bounces)
            }
            Work::Flush if let Err(errno) = image.loss.check() => {
                self.settle(key, -errno);
                return;
            }
            Work::Flush => opcode::Fsync::new(Fd(image.file.as_raw_fd()))
                .flags(FsyncFlags::DATASYNC)
                .build(),
            Work::Zero(method) => space::zero_entry(image, slot, method),
            Work::Discard if space::discards_by_helper(image) => {
                if let Err(errno) =
                    space::discard_by_helper(&self.image, slot, self.port.remote(), key)
                {
                    self.settle(key, -errno);
                }
                return;
            }
            Work::Discard => space::discard_entry(image, slot),
            Work::Settled => return,
        };
        if let Err(errno) = self.push(entry, key) {
            self.settle(key, -errno);
        }
    }

    fn push(&mut self, entry: Entry, key: u32) -> Result<(), i32> {
        // SAFETY: the entry names the image's descriptor, which `self.image` keeps open; and memory of the slot `key`: its buffers,
        // whose owner keeps them mapped, its segment list and its bounce buffer, all at addresses that stay (slots are boxed) and
        // untouched until the completion was popped; or the static zeroes. A queue that is dropped earlier leaks all of them.
        unsafe { self.port.push(entry, key) }.map_err(|e| e.raw_os_error().unwrap_or(libc::EIO))
    }

    /// Lets the port report a result that is known.
    fn settle(&mut self, key: u32, result: i32) {
        if let Some(slot) = self.slots.get_mut(key) {
            slot.work = Work::Settled;
        }
        self.port.complete_now(key, result);
    }

    /// Takes an operation one step further; returns it when it is done.
    fn step(
        &mut self,
        PortCompletion { token: key, result }: PortCompletion,
    ) -> Option<Completion> {
        let image = &*self.image;
        let slot = self.slots.get_mut(key)?;
        if mem::take(&mut slot.pausing) {
            self.start(key);
            return None;
        }
        let next = match (u64::try_from(result), slot.work) {
            (Ok(_), Work::Settled | Work::Discard) => Next::Done(Ok(())),
            // The error may have gone to another queue's flush, which covered the same pages.
            (Ok(_), Work::Flush) => Next::Done(image.loss.check()),
            (Ok(count), Work::Read) => transfer::after_read(image, slot, count),
            (Ok(count), Work::Write { .. }) => transfer::after_write(image, slot, count),
            (Ok(count), Work::Zero(method)) => space::after_zero(image, slot, method, count),
            (Err(_), work) => match (result.saturating_neg(), work) {
                (errno, Work::Settled) => Next::Done(Err(errno)),
                (libc::EINTR, _) => Next::Again,
                (libc::EAGAIN, _) => Next::Pause,
                (errno, Work::Flush) => {
                    if image.direct.is_none() {
                        image.loss.record(errno);
                    }
                    Next::Done(Err(errno))
                }
                (errno, Work::Zero(method)) => space::after_failed_zero(image, slot, method, errno),
                (errno, _) => Next::Done(Err(errno)),
            },
        };
        match next {
            Next::Again => {
                slot.attempts = 0;
                self.start(key);
                None
            }
            Next::Pause if slot.attempts < MAX_ATTEMPTS => {
                slot.attempts += 1;
                slot.pausing = true;
                self.port.timer(PAUSE, key);
                None
            }
            Next::Pause => Some(self.finish(key, Err(libc::EAGAIN))?),
            Next::Done(result) => Some(self.finish(key, result)?),
        }
    }

    /// Frees the slot.
    fn finish(&mut self, key: u32, result: Result<(), i32>) -> Option<Completion> {
        let slot = self.slots.get_mut(key)?;
        let buf = mem::replace(&mut slot.buf, Buffers::empty());
        let token = slot.token;
        if let Some(bounce) = slot.bounce.take() {
            self.bounces.give_back(bounce);
        }
        self.slots.free(key);
        Some(Completion {
            token,
            result: result.map_err(io::Error::from_raw_os_error),
            buf,
        })
    }
}

impl DiskQueue for FileQueue {
    fn submit(&mut self, token: u32, op: Op) {
        let image = &*self.image;
        let check = op.check(image.size, image.limits.logical_block, image.read_only);
        let (offset, len) = op.range();
        let work = match &op {
            Op::Read { .. } => Work::Read,
            Op::Write { durable, .. } => Work::Write {
                durable: (*durable || image.writethrough) && !image.volatile,
            },
            Op::Flush => Work::Flush,
            Op::Discard { .. } => Work::Discard,
            Op::WriteZeroes { unmap, .. } => Work::Zero(space::first_method(image, *unmap)),
        };
        // What needs no I/O: an empty range, and a flush that has nothing to make durable.
        let nothing_to_do = match work {
            Work::Flush => image.volatile || image.read_only,
            _ => len == 0,
        };
        let buf = op.into_buffers();
        let bounced = transfer::needs_bounce(image, &buf);
        let key = self.slots.insert(token, work, offset, len, buf);
        if let Some(slot) = self.slots.get_mut(key) {
            slot.bounced = bounced;
        }
        match check {
            Err(errno) => self.settle(key, -errno),
            Ok(()) if nothing_to_do => self.settle(key, 0),
            Ok(()) => self.start(key),
        }
    }

    fn next_completion(&mut self) -> Option<Completion> {
        while let Some(finished) = self.port.pop() {
            if let Some(completion) = self.step(finished) {
                return Some(completion);
            }
        }
        None
    }

    fn in_flight(&self) -> u32 {
        self.slots.in_use()
    }
}

impl Drop for FileQueue {
    fn drop(&mut self) {
        if self.slots.in_use() > 0 {
            tracing::error!(
                disk = self.image.name,
                in_flight = self.slots.in_use(),
                "disk queue dropped before its operations completed; leaking their memory"
            );
            // The kernel may still use the memory and the descriptor.
            mem::forget(mem::take(&mut self.slots));
            mem::forget(Arc::clone(&self.image));
        }
    }
}

#[cfg(test)]
mod tests;
