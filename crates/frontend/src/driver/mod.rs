//! The virtio-blk driver of one queue: requests in, completions out, kicks and calls counted.
//!
//! The rule of batches: [`submit`](Driver::submit) only fills the ring, [`kick`](Driver::kick) publishes everything
//! submitted since and writes the kick eventfd at most once. Every wait is bounded, and says at its end whether the
//! device was slow or the interrupt was lost: if the used index moved past the armed event and the call eventfd stayed
//! silent, that is [`Error::LostCall`].

mod single;
mod types;
mod wait;

use std::collections::VecDeque;

use std::sync::Arc;

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::error::{Error, Result};
use crate::memory::Memory;
use crate::request::{Reply, Request};
use crate::ring::{RingState, Segment, SplitRing};
pub use crate::slots::Slot;
use crate::slots::Slots;

pub use single::WAIT;
pub use types::{Completion, Counters, Done, Io, QueueOptions, RingSetup};
pub use wait::drain;

const NO_SLOT: u16 = u16::MAX;

/// The driver of one queue. It is used by one thread at a time, and needs no connection while the ring runs.
#[derive(Debug)]
pub struct Driver {
    index: usize,
    options: QueueOptions,
    ring: SplitRing,
    slots: Slots,
    memory: Arc<Memory>,
    /// For each head in flight its slot.
    owners: Vec<u16>,
    kick: EventFd,
    call: EventFd,
    err: EventFd,
    base: u16,
    counters: Counters,
    /// Completions of others that a synchronous call met while it waited for its own.
    stash: VecDeque<Done>,
}

/// A new eventfd that does not block.
pub fn eventfd() -> Result<EventFd> {
    EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(Error::io("eventfd"))
}

impl Driver {
    /// Lays out ring and buffers. `event_idx` and `indirect` say what was negotiated.
    pub fn new(
        memory: &Arc<Memory>,
        index: usize,
        mut options: QueueOptions,
        event_idx: bool,
        indirect: bool,
    ) -> Result<Self> {
        options.indirect &= indirect;
        let ring = SplitRing::new(memory, options.ring_region, options.size, event_idx)?;
        let slots = Slots::new(
            memory,
            options.buffer_region,
            options.slots,
            options.max_data,
            options.max_segments,
        )?;
        Ok(Self {
            index,
            options,
            ring,
            slots,
            memory: Arc::clone(memory),
            owners: vec![NO_SLOT; usize::from(options.size)],
            kick: eventfd()?,
            call: eventfd()?,
            err: eventfd()?,
            base: 0,
            counters: Counters::default(),
            stash: VecDeque::new(),
        })
    }

    /// Number of the queue.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// Size and shape.
    #[must_use]
    pub fn options(&self) -> &QueueOptions {
        &self.options
    }

    /// The guest memory it works in.
    #[must_use]
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The ring, for hostile tests and for looking at indices.
    pub fn ring(&mut self) -> &mut SplitRing {
        &mut self.ring
    }

    /// The indices as they are now.
    #[must_use]
    pub fn state(&self) -> RingState {
        self.ring.state()
    }

    /// What it did so far. Signals that wait unread on the call eventfd are not counted yet.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        usize::from(self.ring.in_flight())
    }

    /// Slots that are free.
    #[must_use]
    pub fn free_slots(&self) -> usize {
        self.slots.free()
    }

    /// Changes how completions are waited for.
    pub fn set_completion(&mut self, completion: Completion) {
        self.options.completion = completion;
    }

    /// The kick eventfd.
    #[must_use]
    pub fn kick_fd(&self) -> &EventFd {
        &self.kick
    }

    /// The call eventfd.
    #[must_use]
    pub fn call_fd(&self) -> &EventFd {
        &self.call
    }

    /// The error eventfd.
    #[must_use]
    pub fn err_fd(&self) -> &EventFd {
        &self.err
    }

    /// Uses another call eventfd from now on and returns the old one. The back end must know of it (see
    /// [`Connection::swap_call`](crate::Connection::swap_call)).
    pub fn replace_call(&mut self, call: EventFd) -> EventFd {
        std::mem::replace(&mut self.call, call)
    }

    /// Uses another kick eventfd from now on and returns the old one.
    pub fn replace_kick(&mut self, kick: EventFd) -> EventFd {
        std::mem::replace(&mut self.kick, kick)
    }

    /// The avail index from which a back end starts this ring.
    #[must_use]
    pub fn base(&self) -> u16 {
        self.base
    }

    /// Remembers what GET_VRING_BASE answered.
    pub fn set_base(&mut self, base: u16) {
        self.base = base;
    }

    /// What the back end must be told; holds duplicates of the eventfds.
    pub fn setup(&self) -> Result<RingSetup> {
        let duplicate = |fd: &EventFd| fd.try_clone().map_err(Error::io("dup of an eventfd"));
        Ok(RingSetup {
            index: self.index,
            size: self.ring.size(),
            addresses: self.ring.addresses(),
            base: self.base,
            kick: duplicate(&self.kick)?,
            call: duplicate(&self.call)?,
            err: duplicate(&self.err)?,
        })
    }

    /// Forgets everything in flight and zeroes the ring, after a device reset.
    pub fn reset(&mut self) {
        self.ring.reset();
        self.slots.reset();
        self.owners.fill(NO_SLOT);
        self.stash.clear();
        self.base = 0;
    }

    /// Offers everything in flight once more, to a back end that knows nothing of it: after a reconnect, before the
    /// ring is started.
    pub fn requeue_in_flight(&mut self) {
        self.base = self.ring.requeue_in_flight();
    }

    /// Places a request on the ring; the device sees it at the next [`kick`](Self::kick).
    pub fn submit(&mut self, request: &Request<'_>) -> Result<Slot> {
        self.slots.check(request)?;
        let slot = self.take_slot()?;
        let segments = self.slots.prepare(slot, request);
        let indirect = request.indirect.unwrap_or(self.options.indirect);
        self.place(slot, &segments, indirect)
    }

    /// The same for reads, writes and flushes, allocating nothing. The data of a write are those of
    /// [`write_data`](Self::write_data), so the slot comes from [`take_slot`](Self::take_slot).
    #[inline]
    pub fn submit_io(&mut self, slot: Slot, io: Io, sector: u64, length: u32) -> Result<()> {
        let (kind, writable) = match io {
            Io::Read => (VIRTIO_BLK_T_IN, true),
            Io::Write => (VIRTIO_BLK_T_OUT, false),
            Io::Flush => (VIRTIO_BLK_T_FLUSH, false),
        };
        let segments = self.slots.classic(slot, kind, sector, (length, writable));
        if io == Io::Flush {
            let [header, _, status] = segments;
            return self
                .place(slot, &[header, status], self.options.indirect)
                .map(drop);
        }
        self.place(slot, &segments, self.options.indirect).map(drop)
    }

    /// Takes a free slot for [`submit_io`](Self::submit_io).
    #[inline]
    pub fn take_slot(&mut self) -> Result<Slot> {
        match self.slots.take() {
            Some(slot) => Ok(slot),
            None => Err(Error::RingFull {
                wanted: 1,
                state: self.ring.state(),
            }),
        }
    }

    #[inline]
    fn place(&mut self, slot: Slot, segments: &[Segment], indirect: bool) -> Result<Slot> {
        let head = if indirect {
            if segments.len() > self.slots.table_segments() {
                self.slots.release(slot);
                let (count, max) = (segments.len(), self.slots.table_segments());
                return Err(Error::BadRequest(format!(
                    "{count} segments in an indirect table of {max}"
                )));
            }
            let (table, at) = self.slots.table(slot);
            self.ring.add_indirect(table, at, segments)
        } else {
            self.ring.add(segments)
        };
        match head {
            Ok(head) => {
                if let Some(owner) = self.owners.get_mut(usize::from(head)) {
                    *owner = slot.0;
                }
                Ok(slot)
            }
            Err(error) => {
                self.slots.release(slot);
                Err(error)
            }
        }
    }

    /// Places any chain on the ring and returns its head: no header, no status, no checks.
    pub fn submit_chain(&mut self, segments: &[Segment]) -> Result<u16> {
        let head = self.ring.add(segments)?;
        if let Some(owner) = self.owners.get_mut(usize::from(head)) {
            *owner = NO_SLOT;
        }
        Ok(head)
    }

    /// Publishes what was submitted and kicks if the device asks for it. Returns whether it kicked.
    #[inline]
    pub fn kick(&mut self) -> Result<bool> {
        let wanted = self.ring.publish();
        if wanted {
            self.force_kick()?;
        }
        Ok(wanted)
    }

    /// Kicks whether the device asks for it or not.
    pub fn force_kick(&mut self) -> Result<()> {
        self.kick
            .write(1)
            .map_err(Error::io("write to the kick eventfd"))?;
        self.counters.kicks += 1;
        Ok(())
    }

    /// Copies out of a slot's data buffer.
    pub fn read_data(&self, slot: Slot, bytes: &mut [u8]) {
        self.slots.read_data(slot, 0, bytes);
    }

    /// Copies into a slot's data buffer.
    pub fn write_data(&self, slot: Slot, bytes: &[u8]) {
        self.slots.write_data(slot, 0, bytes);
    }

    /// Guest address of a slot's data buffer.
    #[must_use]
    pub fn data_address(&self, slot: Slot) -> GuestAddress {
        self.slots.data_address(slot)
    }

    /// Gives the slot of a completed request back.
    #[inline]
    pub fn release(&mut self, slot: Slot) {
        self.slots.release(slot);
    }

    /// Turns a completion into a reply, and releases its slot.
    pub fn reply(&mut self, done: Done) -> Reply {
        let Some(slot) = done.slot else {
            return Reply {
                kind: 0,
                sector: 0,
                status: done.status,
                used: done.used,
                data: vec![],
            };
        };
        let entry = self.slots.entry(slot);
        let data = self.slots.input(slot);
        self.release(slot);
        Reply {
            kind: entry.kind,
            sector: entry.sector,
            status: done.status,
            used: done.used,
            data,
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
