//! Waiting for rings to come to rest, while the loop goes on watching the connection.
//!
//! GET_VRING_BASE and the resets are answered, and a stopping server leaves, when rings have drained; that is up to the
//! disk. Meanwhile no further message is read (the front end is owed an answer first), but a hang-up is seen at once and
//! turns the drain into an abandonment.
//!
//! The order for each ring: its gate is closed and its kick detached (`stop`), the requests in flight finish and are
//! published, the ring is handed back, the guest gets a last interrupt, the descriptors are let go, and only then does the
//! answer go out: nothing of that run of the ring can touch guest memory or a descriptor any more.

use super::{
    Outcome, Session,
    end::{End, Fault},
    ring::Ring,
};
use outboard_notifier::{Close, Release};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use vhost::vhost_user::message::VhostUserVirtioFeatures;

/// What happens once the rings concerned are at rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// GET_VRING_BASE of this ring is answered
    Base(usize),
    /// RESET_OWNER: all rings are disabled
    ResetOwner,
    /// RESET_DEVICE: all rings are disabled, the device is as new; memory, protocol features and the back-end channel
    /// stay, because front ends do not send them again
    ResetDevice,
}

impl Session {
    /// Begins to drain a ring, if it runs.
    pub(super) fn drain(&mut self, at: usize) {
        let signals = self.signals.clone();
        if let Some(ring) = self.rings.get_mut(at) {
            ring.stop(Close::Drain, Release::run(move || signals.notify()));
        }
    }

    pub(super) fn drain_all(&mut self) {
        for at in 0..self.rings.len() {
            self.drain(at);
        }
    }

    pub(super) fn reset(&mut self, goal: Goal) -> Outcome {
        self.drain_all();
        Outcome::Later(goal)
    }

    /// Takes back the rings that have come to rest. (Their descriptors are let go by whatever they were stopped for.)
    pub(super) fn settle(&mut self) {
        for ring in &mut self.rings {
            ring.settle(true, &mut self.counters);
        }
    }

    /// What the message that waits for `goal` came to, if the rings are at rest.
    pub(super) fn reached(&mut self, goal: Goal) -> Option<Result<Outcome, Fault>> {
        let still = match goal {
            Goal::Base(at) => self.rings.get(at).is_some_and(Ring::is_stopping),
            Goal::ResetOwner | Goal::ResetDevice => self.rings.iter().any(Ring::is_stopping),
        };
        if still {
            return None;
        }
        Some(self.finish(goal).map_err(Fault::Fatal))
    }

    fn finish(&mut self, goal: Goal) -> Result<Outcome, End> {
        match goal {
            Goal::Base(at) => {
                // One that did not run lets its descriptors go as well: whoever stops a ring gives them anew.
                if let Some(ring) = self.rings.get_mut(at) {
                    ring.detach().map_err(internal)?;
                }
                Ok(self.vring_base(at))
            }
            Goal::ResetOwner => {
                for ring in &mut self.rings {
                    ring.detach().map_err(internal)?;
                    ring.set_enabled(false);
                }
                Ok(Outcome::Done)
            }
            Goal::ResetDevice => {
                for ring in &mut self.rings {
                    ring.detach().map_err(internal)?;
                    ring.forget();
                }
                self.device.reset();
                // The one bit that is the transport's, not the device's.
                self.negotiated.features &= VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
                Ok(Outcome::Done)
            }
        }
    }

    /// The end: whatever still runs is abandoned, and when this returns no pass touches guest memory, every descriptor is
    /// closed and the map is let go (requests in flight keep what they need until the kernel is done with them).
    pub(super) fn tear_down(&mut self) {
        for ring in &mut self.rings {
            ring.abandon();
            let signals = self.signals.clone();
            ring.stop(Close::Abandon, Release::run(move || signals.notify()));
        }
        let mut waited = 0_u64;
        loop {
            self.signals.event.clear();
            for ring in &mut self.rings {
                ring.settle(false, &mut self.counters);
            }
            if !self.rings.iter().any(Ring::is_stopping) {
                break;
            }
            let mut fds = [PollFd::new(&self.signals.event, PollFlags::IN)];
            if poll(
                &mut fds,
                Some(&Timespec {
                    tv_sec: 5,
                    tv_nsec: 0,
                }),
            ) == Ok(0)
            {
                waited += 5;
                tracing::warn!(device = %self.name, "a worker has not let go of an abandoned ring for {waited} s");
            }
        }
        for ring in &mut self.rings {
            if let Err(why) = ring.detach() {
                tracing::error!(device = %self.name, ring = ring.index(), "{why}");
            }
        }
        self.rings.clear();
        self.channel = None;
    }
}

fn internal(why: String) -> End {
    End::Internal {
        what: "detaching a ring's descriptors",
        source: std::io::Error::other(why),
    }
}
