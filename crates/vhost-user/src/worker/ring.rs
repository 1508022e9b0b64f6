//! One ring on its worker: the pass over it, and its ends.

use super::{
    RingStart, StartError, Tenure,
    mailbox::RingId,
    shared::{HandBack, Shared, add},
};
use crate::DeviceName;
use outboard_notifier::{CallCell, Close, KickTicket, Release, SignalError};
use outboard_reactor::{IoPort, PortId, WatchId};
use outboard_virtio::{
    device::{Device, Progress, QueueHandler, QueueSetup},
    memory::{MemoryLease, MemoryMap},
    queue::{Queue, QueueError},
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::{Arc, atomic::Ordering},
};

/// Requests popped per pass at most.
const BUDGET: u32 = 16;

pub(super) struct Ring {
    pub id: RingId,
    pub port: PortId,
    pub shared: Arc<Shared>,
    name: DeviceName,
    call: Arc<CallCell>,
    err: Arc<CallCell>,
    on_broken: Arc<dyn Fn(u16, String) + Send + Sync>,
    /// `None`: a ghost, or a wreck. Declared before the handler and what that needs, so dropped before them.
    queue: Option<Queue>,
    /// `None`: it panicked while it was reaped, and was taken away.
    handler: Option<Box<dyn QueueHandler>>,
    /// Operations of the handler point into the first and may use the second.
    memory: MemoryLease,
    device: Arc<dyn Device>,
    /// Only held. Declared after the handler, so let go after it.
    _tenure: Tenure,
    /// No more pops.
    broken: bool,
    /// The first failed signal was logged.
    call_failure_logged: bool,
    pub watch: Option<WatchId>,
    /// No descriptor tells of new requests.
    pub polled: bool,
    /// Requests might be popped, as of the last pass.
    pub active: bool,
    pub scheduled: bool,
    /// The detach of the last kick descriptor.
    pub detaching: Option<KickTicket>,
    /// Whoever stops the ring waits for this to be dropped.
    pub hand_back: Option<HandBack>,
    /// The claim was given up: nobody will ask for this ring again.
    pub claimed: bool,
}

/// A handler that panicked while operations of it may be in flight, and what they need.
pub(super) struct Wreck {
    _handler: Box<dyn QueueHandler>,
    _memory: MemoryLease,
    _device: Arc<dyn Device>,
}

/// What a pass came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// More to do now.
    Again,
    /// Nothing until the next event. `popped`: there was something.
    Idle { popped: bool },
    /// The gate is closed for good.
    Closed,
}

/// What the handler did in a pass.
struct Work {
    progress: Progress,
    popped: u16,
    in_flight: u32,
    error: Option<QueueError>,
    /// The error was in completing: what is in flight may never end.
    stuck: bool,
}

impl Ring {
    /// Resolves the ring and makes the handler. The kick is left in `start`.
    pub fn open(id: RingId, start: &RingStart, port: IoPort) -> Result<Ring, StartError> {
        let memory: MemoryLease = Rc::new(start.memory.clone());
        let what = |why: &dyn std::fmt::Display| {
            StartError(format!("{} queue {}: {why}", start.name, start.index))
        };
        let queue = Queue::new(&start.config, memory.clone()).map_err(|e| what(&e))?;
        let port_id = port.id();
        let setup = QueueSetup {
            index: start.index,
            features: start.config.features,
            port,
        };
        let handler = catch_unwind(AssertUnwindSafe(|| start.device.open_queue(setup)))
            .map_err(|_| what(&"the device panicked while it opened the queue"))?
            .map_err(|e| what(&e))?;
        let (next_avail, next_used) = (queue.next_avail(), queue.next_used());
        Ok(Ring {
            id,
            port: port_id,
            shared: Arc::new(Shared::new(
                start.index,
                start.enabled,
                next_avail,
                next_used,
            )),
            name: start.name.clone(),
            call: start.call.clone(),
            err: start.err.clone(),
            on_broken: start.on_broken.clone(),
            queue: Some(queue),
            handler: Some(handler),
            memory,
            device: start.device.clone(),
            _tenure: start.tenure.clone(),
            broken: false,
            call_failure_logged: false,
            watch: None,
            polled: false,
            active: true,
            scheduled: false,
            detaching: None,
            hand_back: None,
            claimed: true,
        })
    }

    /// Completes, pops, publishes and signals, once.
    pub fn pass(&mut self) -> After {
        let (Some(queue), Some(handler)) = (&mut self.queue, &mut self.handler) else {
            return After::Closed;
        };
        let Some(pass) = self.shared.gate.enter() else {
            return After::Closed;
        };
        let may_pop = pass.may_pop() && !self.broken;
        let work = catch_unwind(AssertUnwindSafe(|| work(handler.as_mut(), queue, may_pop)));
        let Ok(work) = work else {
            // Abandons the gate: what is in flight is unknown.
            drop(pass);
            self.report("the device panicked; the ring is abandoned");
            return After::Closed;
        };
        // The file behind the ring or a request was truncated, and zeros of ours were read in place of the guest's bytes.
        // Nobody else would notice: an avail.idx of zero looks like an idle driver.
        let damaged = work.error.is_none() && queue.memory().is_damaged();
        let shared = &self.shared;
        if pass.may_publish() && queue.publish() {
            match self.call.signal() {
                Ok(()) => add(&shared.calls, 1),
                Err(SignalError::Detached) => {}
                Err(e) => {
                    add(&shared.call_failures, 1);
                    let _ = self.err.signal();
                    if !std::mem::replace(&mut self.call_failure_logged, true)
                        && self.name.may_log()
                    {
                        tracing::warn!(device = %self.name, queue = shared.index, error = ?e,
                            "the call descriptor cannot be written: the front end does not read it; reported once");
                    }
                }
            }
        }
        self.active = may_pop;
        let idle = !may_pop
            || work.error.is_some()
            || damaged
            || match work.progress {
                Progress::Empty => self.polled || !queue.arm_kicks(),
                // At its limit: a completion will bring it back. With nothing in flight there is none to come.
                Progress::More => work.popped == 0 && work.in_flight > 0,
            };
        add(&shared.passes, 1);
        add(&shared.requests, u64::from(work.popped));
        shared
            .next_avail
            .store(queue.next_avail(), Ordering::Relaxed);
        shared.next_used.store(queue.next_used(), Ordering::Relaxed);
        // Ends the pass, and with it, of a closed gate, perhaps the ring: nothing is touched afterwards.
        pass.leave(work.in_flight);
        if let Some(error) = work.error {
            self.break_down(&error, work.stuck);
        }
        if damaged && !std::mem::replace(&mut self.broken, true) {
            self.report("guest memory was truncated by its owner");
        }
        match idle {
            true => After::Idle {
                popped: work.popped > 0,
            },
            false => After::Again,
        }
    }

    /// No more pops. `stuck`: no more anything.
    fn break_down(&mut self, error: &QueueError, stuck: bool) {
        if stuck {
            self.shared.gate.close(Close::Abandon, Release::none());
        }
        if !std::mem::replace(&mut self.broken, true) {
            self.report(&error.to_string());
        }
    }

    /// Tells everybody who should know: the log, the front end, the session.
    fn report(&mut self, why: &str) {
        self.broken = true;
        if let Some(queue) = &self.queue
            && self.name.may_log()
        {
            tracing::error!(device = %self.name, queue = self.shared.index, size = queue.size(),
                next_avail = queue.next_avail(), next_used = queue.next_used(), in_flight = queue.in_flight(),
                "the ring is broken and stopped until the guest resets the device: {why}");
        }
        let _ = self.err.signal();
        let call = || (self.on_broken)(self.shared.index, why.to_owned());
        // A panic of the session's is not this worker's; the panic hook has reported it.
        let _ = catch_unwind(AssertUnwindSafe(call));
    }

    /// Follows SET_MEM_TABLE. A ring whose gate is closed has nothing to follow.
    pub fn set_memory(&mut self, memory: Arc<MemoryMap>) -> Result<(), StartError> {
        let Some(queue) = &mut self.queue else {
            return Ok(());
        };
        let Some(pass) = self.shared.gate.enter() else {
            return Ok(());
        };
        let lease: MemoryLease = Rc::new(memory);
        let answer = queue.set_memory(lease).map_err(|e| {
            let (name, index) = (&self.name, self.shared.index);
            StartError(format!("{name} queue {index}: {e}"))
        });
        pass.leave(self.shared.gate.in_flight());
        answer
    }

    /// After an abandon: leaves ring and guest memory alone, takes what the kernel gives back. True when nothing is in flight
    /// any more. Err: the handler panicked; it must live until the reactor has awaited its operations.
    pub fn reap(&mut self) -> Result<bool, Option<Wreck>> {
        self.queue = None;
        let Some(handler) = &mut self.handler else {
            return Ok(true);
        };
        catch_unwind(AssertUnwindSafe(|| handler.reap()))
            .map(|in_flight| in_flight == 0)
            .map_err(|_| {
                self.handler.take().map(|handler| Wreck {
                    _handler: handler,
                    _memory: self.memory.clone(),
                    _device: self.device.clone(),
                })
            })
    }

    /// The worker ends and takes the ring with it.
    pub fn lose(&mut self) {
        self.shared.gate.close(Close::Abandon, Release::none());
        if self.claimed && !self.broken {
            self.report("its worker thread ended");
        }
    }

    /// Hands the ring back if nothing can touch what it was: gate done, kick closed.
    pub fn try_hand_back(&mut self) {
        let detached = self.detaching.as_ref().is_none_or(KickTicket::is_done);
        if detached && self.watch.is_none() && self.shared.gate.is_done() {
            drop(self.hand_back.take());
        }
    }

    /// Drops the handler; a panic in that is nobody else's.
    pub fn dispose(mut self) {
        self.queue = None;
        let handler = self.handler.take();
        let _ = catch_unwind(AssertUnwindSafe(move || drop(handler)));
    }
}

fn work(handler: &mut dyn QueueHandler, queue: &mut Queue, may_pop: bool) -> Work {
    let mut done = Work {
        progress: Progress::Empty,
        popped: 0,
        in_flight: 0,
        error: None,
        stuck: false,
    };
    // First what frees resources that new requests may need.
    done.complete(handler, queue);
    if may_pop && done.error.is_none() {
        queue.mute_kicks();
        let before = queue.next_avail();
        match handler.process(queue, BUDGET) {
            Ok(progress) => done.progress = progress,
            Err(e) => done.error = Some(e),
        }
        done.popped = queue.next_avail().wrapping_sub(before);
        // What finished inline is published with this batch.
        done.complete(handler, queue);
    }
    done.in_flight = handler.in_flight();
    done
}

impl Work {
    fn complete(&mut self, handler: &mut dyn QueueHandler, queue: &mut Queue) {
        if let Err(e) = handler.complete(queue) {
            self.stuck = true;
            self.error.get_or_insert(e);
        }
    }
}
