//! The claims to a ring that a worker has.

use super::{
    RingCounters, StartError, StoppedRing,
    mailbox::{Command, Mailbox, RingId},
    shared::{HandBack, Shared},
};
use outboard_notifier::{Close, PeerFd, Release, RingGate};
use outboard_virtio::memory::MemoryMap;
use std::sync::{Arc, mpsc::sync_channel};

/// The session's end of a running ring. Dropping it abandons the ring.
pub struct RunningRing {
    id: RingId,
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    /// `stop` was called: the drop has nothing to do.
    stopped: bool,
}

impl RunningRing {
    pub(super) fn new(id: RingId, shared: Arc<Shared>, mailbox: Arc<Mailbox>) -> RunningRing {
        RunningRing {
            id,
            shared,
            mailbox,
            stopped: false,
        }
    }

    /// The gate of this start.
    pub fn gate(&self) -> &RingGate {
        &self.shared.gate
    }

    /// What it did so far.
    pub fn counters(&self) -> RingCounters {
        self.shared.counters()
    }

    /// When this returns, no request is popped any more (off), or the ring will look at avail once (on).
    pub fn set_enabled(&self, on: bool) {
        // Would it deadlock, then this is the thread inside, which asks again before its next pop.
        let _ = self.shared.gate.set_enabled(on).wait();
        if on {
            self.mailbox.post(Command::Look { id: self.id });
        }
    }

    /// Replaces the watched descriptor (`None`: the ring is polled) and has avail looked at once. Returns when the old one
    /// is closed and no queued kernel operation names it.
    pub fn swap_kick(&self, kick: Option<PeerFd>) {
        let (reply, ticket) = sync_channel(1);
        let id = self.id;
        self.mailbox.post(Command::SwapKick { id, kick, reply });
        // No answer: the worker is gone, and everything it watched is closed.
        if let Ok(Some(ticket)) = ticket.recv() {
            let _ = ticket.wait();
        }
    }

    /// Returns when the ring resolved its addresses in the new map; requests in flight keep the old one alive. An error
    /// leaves the ring in the old map: stop it.
    pub fn set_memory(&self, memory: Arc<MemoryMap>) -> Result<(), StartError> {
        let (reply, answer) = sync_channel(1);
        let id = self.id;
        self.mailbox.post(Command::SetMemory { id, memory, reply });
        // No answer: the ring is gone, and will not look into any memory.
        answer.recv().unwrap_or(Ok(()))
    }

    /// Closes the gate and detaches the kick; waits for nothing. `on_done` runs (on any thread) when the ring is handed
    /// back, and [`StopTicket::take`] then gives it. Drain waits for I/O in flight and publishes it; Abandon does not.
    ///
    /// The gate is closed here, not by the message: a start that is still in the mailbox finds it closed.
    pub fn stop(mut self, mode: Close, on_done: Release) -> StopTicket {
        self.stopped = true;
        self.shared.gate.close(mode, Release::none());
        let hand_back = HandBack::new(self.shared.clone(), on_done);
        let id = self.id;
        self.mailbox.post(Command::Stop { id, hand_back });
        StopTicket {
            id,
            shared: self.shared.clone(),
            mailbox: self.mailbox.clone(),
        }
    }
}

impl Drop for RunningRing {
    fn drop(&mut self) {
        if !self.stopped {
            self.shared.gate.close(Close::Abandon, Release::none());
            let hand_back = HandBack::new(self.shared.clone(), Release::none());
            let id = self.id;
            self.mailbox.post(Command::Stop { id, hand_back });
        }
    }
}

/// The claim to a ring being stopped. Dropping it gives up the claim, not the stop.
pub struct StopTicket {
    id: RingId,
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
}

impl StopTicket {
    /// A drain that is no longer wanted (hang-up): nothing is published from here on, but for what a pass that is inside
    /// at this moment publishes before it leaves; the ring is handed back after that.
    pub fn abandon(&self) {
        self.shared.gate.close(Close::Abandon, Release::none());
        self.mailbox.post(Command::Look { id: self.id });
    }

    /// The proof of quiescence, from the time `on_done` runs. `None`: not yet.
    pub fn take(&mut self) -> Option<StoppedRing> {
        self.shared.stopped()
    }
}
