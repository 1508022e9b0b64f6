//! Ports: how the users of a worker's ring queue operations and take their completions, each its own.
//!
//! # Life of a slot
//! A slot is made with its [`IoPort`] and lives until the port is dropped *and* the last completion of its operations
//! was reaped; only then is its place used again. So a completion never meets a stranger, and it is known at any time
//! how many operations the kernel still holds.

use crate::{
    Wake,
    core::Core,
    remote::RemotePort,
    tag::{Generations, SlotId},
};
use io_uring::squeue;
use slab::Slab;
use std::{
    cell::RefCell,
    collections::VecDeque,
    io,
    rc::Rc,
    time::{Duration, Instant},
};

/// Names a port in [`Wake::Port`]. Never used twice among ports that are alive or have operations in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortId(pub u32);

impl PortId {
    /// A small number, different for each port that is alive: an index into the user's table of ports.
    pub fn index(self) -> usize {
        usize::from(SlotId::unpack(self.0).index)
    }
}

/// One finished operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortCompletion {
    /// As given with the operation.
    pub token: u32,
    /// As in a CQE: bytes or `-errno`; 0 for a timer (`-ECANCELED` if the reactor ended before it).
    pub result: i32,
}

/// A user's access to its thread's ring: fill an entry, set a timer, take completions. Neither `Send` nor `Sync`.
///
/// # Contract
/// * Memory and files named by an operation stay valid and *open* until its completion was popped: an entry carries a
///   file number, and a number that is closed and given to another file before the kernel looks at it would send the
///   operation to the other file. A port dropped earlier moves that duty to the end of the reactor.
/// * Drop a port at `in_flight() == 0`. (The reactor keeps the slot of one dropped earlier until its last completion.)
/// * The port works until the reactor is dropped; then [`IoPort::push`] fails, and what the kernel cancelled or
///   finished can still be popped.
pub struct IoPort {
    core: Rc<RefCell<Core>>,
    slot: SlotId,
    report_as: PortId,
}

impl IoPort {
    pub(crate) fn new(core: Rc<RefCell<Core>>, report_as: Option<PortId>) -> IoPort {
        let (slot, report_as) = core.borrow_mut().ports.open(report_as);
        IoPort {
            core,
            slot,
            report_as,
        }
    }

    /// The id under which [`Wake::Port`] reports this port.
    pub fn id(&self) -> PortId {
        self.report_as
    }

    /// A second private completion queue on the same ring, reported under this port's id: for wrappers (storage's
    /// `delay`) that need timers beside the operations of the disk they wrap. Same rules as a port.
    pub fn sibling(&self) -> IoPort {
        IoPort::new(self.core.clone(), Some(self.report_as))
    }

    /// Queues one operation. No system call unless the submission ring is full; the next `wait` submits it. The
    /// entry's `user_data` is overwritten, and `CQE_SKIP_SUCCESS` must not be set.
    ///
    /// Fails only when the reactor is gone (`ESHUTDOWN`) or has no number left for this port (65,536 at a time).
    ///
    /// # Safety
    /// Memory and file numbers in the entry stay valid until its completion is popped, or, for a port dropped before,
    /// until the reactor is dropped.
    #[allow(unsafe_code)]
    pub unsafe fn push(&self, entry: squeue::Entry, token: u32) -> io::Result<()> {
        self.core
            .borrow_mut()
            .push_for_port(self.slot, entry, token)
    }

    /// A completion with `token` and result 0 after `after`.
    pub fn timer(&self, after: Duration, token: u32) {
        let core = &mut *self.core.borrow_mut();
        if core.is_closed() {
            let result = -libc::ECANCELED;
            core.ports
                .deliver(self.slot, PortCompletion { token, result });
        } else if let Some(slot) = core.ports.get(self.slot) {
            slot.waiting += 1;
            core.timers.set(Instant::now(), after, self.slot, token);
        }
    }

    /// Hands a completion over without the kernel (work done inline): popped in order with the others.
    pub fn complete_now(&self, token: u32, result: i32) {
        let completion = PortCompletion { token, result };
        self.core.borrow_mut().ports.deliver(self.slot, completion);
    }

    /// The next finished operation.
    pub fn pop(&self) -> Option<PortCompletion> {
        self.core
            .borrow_mut()
            .ports
            .get(self.slot)?
            .queue
            .pop_front()
    }

    /// Operations and timers begun here whose completion was not popped yet. (What foreign threads will complete is
    /// counted from its arrival on.)
    pub fn in_flight(&self) -> u32 {
        let core = &mut *self.core.borrow_mut();
        core.ports.get(self.slot).map_or(0, |slot| {
            let queued = u32::try_from(slot.queue.len()).unwrap_or(u32::MAX);
            slot.waiting.saturating_add(queued)
        })
    }

    /// For engines that finish on foreign threads: posts completions to this port from any thread.
    pub fn remote(&self) -> RemotePort {
        RemotePort::new(self.core.borrow().inbox(), self.slot)
    }
}

impl Drop for IoPort {
    fn drop(&mut self) {
        // Never contended: nobody drops a port while the reactor is borrowed. If that ever changed, the slot would
        // leak, which is safe.
        if let Ok(mut core) = self.core.try_borrow_mut() {
            core.ports.disown(self.slot);
        }
    }
}

/// One port's state.
pub(crate) struct Slot {
    id: SlotId,
    report_as: PortId,
    queue: VecDeque<PortCompletion>,
    /// Operations the kernel holds.
    pub in_kernel: u32,
    /// Operations and timers not yet delivered to `queue`.
    pub waiting: u32,
    /// The `IoPort` is alive.
    owned: bool,
    /// In `Ports::ready`.
    listed: bool,
    /// Its user will never pop again.
    discarding: bool,
}

/// All ports of a reactor.
#[derive(Default)]
pub(crate) struct Ports {
    slots: Slab<Slot>,
    ids: Generations,
    /// Ports that have (or had) completions to pop, each once.
    ready: VecDeque<SlotId>,
}

/// No slab key: of a port beyond the 65,536th, which can do nothing but refuse.
const NOWHERE: SlotId = SlotId {
    index: u16::MAX,
    generation: 0,
};

impl Ports {
    fn open(&mut self, report_as: Option<PortId>) -> (SlotId, PortId) {
        let place = self.slots.vacant_entry();
        let Some(id) = self.ids.next(place.key()) else {
            return (NOWHERE, PortId(NOWHERE.pack()));
        };
        let report_as = report_as.unwrap_or(PortId(id.pack()));
        place.insert(Slot {
            id,
            report_as,
            queue: VecDeque::new(),
            in_kernel: 0,
            waiting: 0,
            owned: true,
            listed: false,
            discarding: false,
        });
        (id, report_as)
    }

    pub fn get(&mut self, id: SlotId) -> Option<&mut Slot> {
        self.slots
            .get_mut(usize::from(id.index))
            .filter(|slot| slot.id == id)
    }

    /// Queues a completion, unless nobody is left to take it.
    pub fn deliver(&mut self, id: SlotId, completion: PortCompletion) {
        let Some(slot) = self.get(id).filter(|slot| slot.owned && !slot.discarding) else {
            return;
        };
        slot.queue.push_back(completion);
        if !std::mem::replace(&mut slot.listed, true) {
            self.ready.push_back(id);
        }
    }

    /// An operation's completion came; `last`: the kernel holds it no longer.
    pub fn completed(&mut self, id: SlotId, completion: PortCompletion, last: bool) {
        let Some(slot) = self.get(id) else { return };
        if last {
            slot.in_kernel = slot.in_kernel.saturating_sub(1);
            slot.waiting = slot.waiting.saturating_sub(1);
        }
        self.deliver(id, completion);
        self.free_if_unused(id);
    }

    /// A timer expired.
    pub fn expired(&mut self, id: SlotId, token: u32, result: i32) {
        let Some(slot) = self.get(id) else { return };
        slot.waiting = slot.waiting.saturating_sub(1);
        self.deliver(id, PortCompletion { token, result });
    }

    /// Everything reported under this id is dropped, now and later.
    pub fn discard(&mut self, report_as: PortId) {
        for (_, slot) in &mut self.slots {
            if slot.report_as == report_as {
                slot.discarding = true;
                slot.queue.clear();
            }
        }
    }

    fn disown(&mut self, id: SlotId) {
        let Some(slot) = self.get(id) else { return };
        slot.owned = false;
        slot.queue = VecDeque::new();
        self.free_if_unused(id);
    }

    fn free_if_unused(&mut self, id: SlotId) {
        if self
            .get(id)
            .is_some_and(|slot| !slot.owned && slot.in_kernel == 0)
        {
            self.slots.remove(usize::from(id.index));
        }
    }

    /// Some port has completions to pop.
    pub fn any_ready(&mut self) -> bool {
        while let Some(&id) = self.ready.front() {
            if self.get(id).is_some_and(|slot| !slot.queue.is_empty()) {
                return true;
            }
            self.unlist(id);
        }
        false
    }

    /// Reports up to `limit` ports that have completions to pop, each once, those longest unreported first.
    pub fn report(&mut self, wakes: &mut Vec<Wake>, first: usize, limit: usize) {
        for _ in 0..self.ready.len().min(limit) {
            let Some(&id) = self.ready.front() else {
                return;
            };
            let Some(slot) = self.get(id).filter(|slot| !slot.queue.is_empty()) else {
                self.unlist(id);
                continue;
            };
            let wake = Wake::Port {
                port: slot.report_as,
            };
            self.ready.rotate_left(1);
            if !wakes.iter().skip(first).any(|w| *w == wake) {
                wakes.push(wake);
            }
        }
    }

    /// Takes the first of the list off it.
    fn unlist(&mut self, id: SlotId) {
        self.ready.pop_front();
        if let Some(slot) = self.get(id) {
            slot.listed = false;
        }
    }
}
