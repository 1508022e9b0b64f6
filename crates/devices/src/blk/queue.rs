//! The handler of one request queue: chains in, disk operations out, statuses back.
//!
//! A request that needs the disk waits in a slab; its key is the token of all its operations. A request of several
//! segments is as many operations, one after the other, and ends with the last of them or the first that fails. So a ring
//! has no more operations in flight than requests: a guest that fills it with long lists makes neither the disk's
//! memory nor the kernel's grow with them.
//! Nothing is allocated per request: the slab grows to the largest number ever in flight and stays.
//!
//! `used.len` counts the bytes of data that were written, plus one for the status. After a failed read or a refused
//! request that is one, and the byte is the last of the writable bytes, not the first as 2.7.8.2 would have it: the
//! specification gives the status its place at the end and drivers read it there without looking at the length.

use super::{
    cache::Cache,
    request::{ID_BYTES, Parsed, Request, Rules, Segment, Segments, parse},
    status::Status,
};
use outboard_reactor::Buffers;
use outboard_storage::disk::{Completion, Disk, DiskQueue, Op};
use outboard_virtio::{
    device::{Progress, QueueHandler},
    queue::{Queue, QueueError},
};
use slab::Slab;
use std::{io, mem, sync::Arc};
use tracing::{debug, error, warn};

/// One queue of a [`super::Blk`], on its worker's thread.
pub(super) struct BlkQueue {
    disk: Arc<dyn Disk>,
    io: Box<dyn DiskQueue>,
    cache: Arc<Cache>,
    rules: Rules,
    id: [u8; ID_BYTES],
    pending: Slab<Pending>,
    /// Failed operations so far, to log them ever more rarely.
    failures: u64,
}

/// A request that waits for its disk operations.
struct Pending {
    head: u16,
    status: Buffers,
    /// Bytes of data in the guest's buffer if all goes well.
    data: u64,
    outcome: Status,
    /// Segments not yet begun, the next one last.
    segments: Segments,
    /// What is done to each.
    operation: fn(Segment) -> Op,
    /// A flush follows the last operation (discards and zeroes of a write-through cache).
    flush_after: bool,
}

impl QueueHandler for BlkQueue {
    fn process(&mut self, queue: &mut Queue, budget: u32) -> Result<Progress, QueueError> {
        let mut progress = Progress::More;
        for _ in 0..budget {
            let Some(chain) = queue.pop()? else {
                progress = Progress::Empty;
                break;
            };
            let parsed = parse(chain, &self.rules, self.disk.size())?;
            self.start(queue, parsed)?;
        }
        // Engines that finish at once are done by now: their requests go out with this pass.
        self.complete(queue)?;
        Ok(progress)
    }

    fn complete(&mut self, queue: &mut Queue) -> Result<(), QueueError> {
        while let Some(completion) = self.io.next_completion() {
            let Completion { token, result, buf } = completion;
            queue.recycle(buf);
            if let Some(done) = self.finish(token, result, true) {
                let written = if done.outcome == Status::Ok {
                    done.data
                } else {
                    0
                };
                answer(queue, done.head, &done.status, done.outcome, written)?;
            }
        }
        Ok(())
    }

    fn in_flight(&self) -> u32 {
        self.pending.len() as u32
    }

    fn reap(&mut self) -> u32 {
        while let Some(completion) = self.io.next_completion() {
            self.finish(completion.token, completion.result, false);
        }
        self.in_flight()
    }
}

impl BlkQueue {
    /// `io` belongs to `disk`; `rules` were made from the disk and what was negotiated.
    pub fn new(
        disk: Arc<dyn Disk>,
        io: Box<dyn DiskQueue>,
        cache: Arc<Cache>,
        rules: Rules,
        id: [u8; ID_BYTES],
    ) -> BlkQueue {
        BlkQueue {
            disk,
            io,
            cache,
            rules,
            id,
            pending: Slab::new(),
            failures: 0,
        }
    }

    /// Answers a request at once or hands it to the disk.
    fn start(&mut self, queue: &mut Queue, parsed: Parsed) -> Result<(), QueueError> {
        let Parsed {
            head,
            status,
            request,
        } = parsed;
        let pending = Pending {
            head,
            status,
            data: 0,
            outcome: Status::Ok,
            segments: Segments::new(),
            operation: discard,
            flush_after: false,
        };
        match request {
            Ok(Request::In { offset, data }) => {
                let token = self.hold(Pending {
                    data: data.len(),
                    ..pending
                });
                self.io.submit(token, Op::Read { offset, buf: data });
            }
            Ok(Request::Out { offset, data }) => {
                let durable = self.cache.is_write_through();
                let token = self.hold(pending);
                self.io.submit(
                    token,
                    Op::Write {
                        offset,
                        buf: data,
                        durable,
                    },
                );
            }
            Ok(Request::Flush) => {
                let token = self.hold(pending);
                self.io.submit(token, Op::Flush);
            }
            Ok(Request::Discard(segments)) => self.start_segments(pending, segments, discard),
            Ok(Request::WriteZeroes(mut segments)) => {
                let may_unmap = self.disk.limits().write_zeroes_may_unmap;
                segments.iter_mut().for_each(|s| s.unmap &= may_unmap);
                self.start_segments(pending, segments, write_zeroes);
            }
            Ok(Request::GetId { data }) => {
                let written = data.copy_from(0, &self.id) as u64;
                answer(queue, head, &pending.status, Status::Ok, written)?;
            }
            Ok(Request::Nothing) => answer(queue, head, &pending.status, Status::Ok, 0)?,
            Err(refusal) => {
                debug!(disk = self.disk.name(), head, %refusal, "request refused");
                answer(queue, head, &pending.status, refusal.status(), 0)?;
            }
        }
        Ok(())
    }

    fn start_segments(
        &mut self,
        pending: Pending,
        mut segments: Segments,
        operation: fn(Segment) -> Op,
    ) {
        segments.reverse();
        let flush_after = self.cache.is_write_through();
        let token = self.hold(Pending {
            segments,
            operation,
            flush_after,
            ..pending
        });
        self.go_on(token);
    }

    /// Submits the next operation of a request, if there is one left.
    fn go_on(&mut self, token: u32) -> bool {
        let Some(pending) = self.pending.get_mut(token as usize) else {
            return false;
        };
        let op = if let Some(segment) = pending.segments.pop() {
            (pending.operation)(segment)
        } else if mem::take(&mut pending.flush_after) {
            Op::Flush
        } else {
            return false;
        };
        self.io.submit(token, op);
        true
    }

    /// Keeps a request until [`BlkQueue::finish`] gives it back.
    fn hold(&mut self, pending: Pending) -> u32 {
        // No more requests than descriptors of the ring, which are at most 32768.
        self.pending.insert(pending) as u32
    }

    /// Takes the result of an operation; the request, if that was its last. `go_on`: what is still to be done for the
    /// request may be submitted.
    fn finish(&mut self, token: u32, result: io::Result<()>, go_on: bool) -> Option<Pending> {
        let key = token as usize;
        let Some(pending) = self.pending.get_mut(key) else {
            error!(
                disk = self.disk.name(),
                token, "the disk completed an operation that was never submitted"
            );
            return None;
        };
        if let Err(failure) = result {
            pending.outcome = status_of(&failure);
            self.failures += 1;
            if self.failures.is_power_of_two() {
                warn!(disk = self.disk.name(), failures = self.failures, %failure, "a disk operation failed");
            }
        } else if go_on && self.go_on(token) {
            return None;
        }
        self.pending.try_remove(key)
    }
}

fn discard(Segment { offset, len, .. }: Segment) -> Op {
    Op::Discard { offset, len }
}

fn write_zeroes(Segment { offset, len, unmap }: Segment) -> Op {
    Op::WriteZeroes { offset, len, unmap }
}

/// The disk's failure as the driver knows failures.
fn status_of(failure: &io::Error) -> Status {
    match failure.kind() {
        // A file system that cannot punch holes says so only when asked.
        io::ErrorKind::Unsupported => Status::Unsupp,
        _ => Status::IoErr,
    }
}

/// Writes the status byte and gives the chain back; `data` bytes were written before it.
fn answer(
    queue: &mut Queue,
    head: u16,
    status: &Buffers,
    outcome: Status,
    data: u64,
) -> Result<(), QueueError> {
    status.copy_from(0, &[outcome as u8]);
    // The field has 32 bits and may be an underestimate (2.7.8.2).
    let written = u32::try_from(data.saturating_add(1)).unwrap_or(u32::MAX);
    queue.push_used(head, written)
}

#[cfg(test)]
mod tests;
