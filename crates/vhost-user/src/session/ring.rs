//! One ring of a session: what was told about it, its descriptors, and, while it runs, the claim to it.
//!
//! ```text
//!            kick given, all known             GET_VRING_BASE, RESET_*, stop
//!   Stopped ───────────────────────► Running ───────────────────────────────► Stopping
//!      ▲                                │ hang-up: abandon                        │ handed back
//!      └────────────────────────────────┴──────────────────────────────────◄─────┘
//! ```
//!
//! Who owns what is the state: a running ring is the worker's, and only its [`RunningRing`] is here; a stopping one is a
//! ticket; a stopped one is plain [`RingSettings`] and the descriptors for the next start.

use super::state::{RingAddresses, RingSettings, SessionCounters};
use crate::DeviceName;
use crate::worker::{RingStart, RunningRing, StopTicket, Tenure, WorkerPool};
use outboard_notifier::{CallCell, Close, PeerFd, Release};
use outboard_virtio::{device::Device, memory::MemoryMap, queue::QueueConfig};
use std::sync::Arc;

/// How a stopped ring will learn of new requests.
pub enum Kick {
    /// SET_VRING_KICK has not come: the ring must not start
    Unset,
    /// by looking (the invalid-FD flag)
    Polling,
    /// by a descriptor
    Fd(PeerFd),
}

/// Where the ring is.
enum Life {
    Stopped,
    /// with the addresses it runs on
    Running(RunningRing, QueueConfig),
    Stopping(StopTicket),
}

/// What starting a ring needs of the session.
pub struct Surroundings<'a> {
    pub tenure: &'a Tenure,
    pub name: &'a DeviceName,
    pub pool: &'a WorkerPool,
    pub device: &'a Arc<dyn Device>,
    pub memory: &'a Arc<MemoryMap>,
    pub features: u64,
    /// without VHOST_USER_F_PROTOCOL_FEATURES every ring is enabled
    pub always_enabled: bool,
    pub on_broken: &'a Arc<dyn Fn(u16, String) + Send + Sync>,
}

/// A ring.
pub struct Ring {
    index: u16,
    settings: RingSettings,
    kick: Kick,
    call: Arc<CallCell>,
    err: Arc<CallCell>,
    life: Life,
}

impl Ring {
    pub fn new(index: u16) -> Ring {
        Ring {
            index,
            settings: RingSettings::default(),
            kick: Kick::Unset,
            call: Arc::new(CallCell::new()),
            err: Arc::new(CallCell::new()),
            life: Life::Stopped,
        }
    }

    pub fn index(&self) -> u16 {
        self.index
    }

    pub fn settings(&self) -> &RingSettings {
        &self.settings
    }

    pub fn is_running(&self) -> bool {
        matches!(self.life, Life::Running(..))
    }

    pub fn is_stopping(&self) -> bool {
        matches!(self.life, Life::Stopping(_))
    }

    /// SET_VRING_NUM. A ring's size is fixed while it runs.
    pub fn set_size(&mut self, size: u16) -> Result<(), String> {
        if self.is_running() && size != self.settings.size {
            return Err("the size cannot change while the ring runs".into());
        }
        self.settings.size = size;
        Ok(())
    }

    /// SET_VRING_ADDR. A running ring may be told again what it knows (to turn logging on or off).
    pub fn set_addresses(&mut self, addresses: RingAddresses) -> Result<(), String> {
        if self.is_running() && Some(addresses) != self.settings.addresses {
            return Err("the addresses cannot change while the ring runs".into());
        }
        self.settings.addresses = Some(addresses);
        Ok(())
    }

    /// SET_VRING_BASE.
    pub fn set_base(&mut self, base: u16) -> Result<(), String> {
        if self.is_running() {
            return Err("the base cannot change while the ring runs".into());
        }
        self.settings.base = base;
        Ok(())
    }

    /// SET_VRING_ENABLE. Off: no request is taken any more when this returns. On: the ring looks at avail once, so a kick
    /// that came before is not lost.
    pub fn set_enabled(&mut self, on: bool) {
        self.settings.enabled = on;
        if let Life::Running(running, _) = &self.life {
            running.set_enabled(on);
        }
    }

    /// SET_VRING_KICK: for the next start, or at once. When this returns the old descriptor is closed.
    pub fn set_kick(&mut self, kick: Option<PeerFd>) {
        if let Life::Running(running, _) = &self.life {
            running.swap_kick(kick);
        } else {
            self.kick = kick.map_or(Kick::Polling, Kick::Fd);
        }
    }

    /// SET_VRING_CALL. When this returns nobody can write the old descriptor; I/O in flight is not waited for. A new one
    /// on a running ring is signalled once: an interrupt that raced with the change may have been lost on its way through
    /// the kernel.
    pub fn set_call(&mut self, call: Option<PeerFd>) -> Result<(), String> {
        let owed = call.is_some() && self.is_running();
        swap(&self.call, call)?;
        if owed {
            // Full is as good as signalled; any other error is the front end's loss alone.
            let _ = self.call.signal();
        }
        Ok(())
    }

    /// SET_VRING_ERR.
    pub fn set_err(&mut self, err: Option<PeerFd>) -> Result<(), String> {
        swap(&self.err, err)
    }

    /// False if an address it was given lies in no region of `memory`.
    pub fn fits(&self, memory: &MemoryMap) -> bool {
        let placed = self.settings.config(|a| memory.user_to_guest(a), 0);
        !matches!(placed, Some(Err(_)))
    }

    /// Starts the ring if everything is known that it needs, and does nothing otherwise. True if it was started. A call
    /// descriptor that is there is signalled once.
    pub fn try_start(&mut self, around: &Surroundings<'_>) -> Result<bool, String> {
        if !matches!(self.life, Life::Stopped) || matches!(self.kick, Kick::Unset) {
            return Ok(false);
        }
        if around.memory.regions().next().is_none() {
            return Ok(false);
        }
        let config = match self
            .settings
            .config(|a| around.memory.user_to_guest(a), around.features)
        {
            None => return Ok(false),
            Some(Err(address)) => {
                return Err(format!(
                    "ring address {address:#x} lies in no memory region"
                ));
            }
            Some(Ok(config)) => config,
        };
        let kick = match std::mem::replace(&mut self.kick, Kick::Unset) {
            Kick::Fd(fd) => Some(fd),
            Kick::Polling | Kick::Unset => None,
        };
        let start = RingStart {
            tenure: around.tenure.clone(),
            name: around.name.clone(),
            index: self.index,
            config,
            memory: around.memory.clone(),
            kick,
            call: self.call.clone(),
            err: self.err.clone(),
            enabled: around.always_enabled || self.settings.enabled,
            device: around.device.clone(),
            on_broken: around.on_broken.clone(),
        };
        let running = around.pool.start(start).map_err(|e| e.to_string())?;
        self.life = Life::Running(running, config);
        // What was used before may never have been signalled (a back end that died after publishing it), and a driver that
        // waits for that interrupt asks for no other. Errors are the front end's loss, as in `set_call`.
        let _ = self.call.signal();
        Ok(true)
    }

    /// Takes a running ring into a new memory map; a ring that does not run has nothing to do.
    pub fn follow_memory(&mut self, map: &Arc<MemoryMap>, features: u64) -> Result<(), String> {
        let Life::Running(running, config) = &self.life else {
            return Ok(());
        };
        let place = |c: &QueueConfig| (c.desc, c.avail, c.used);
        match self.settings.config(|a| map.user_to_guest(a), features) {
            Some(Ok(new)) if place(&new) == place(config) => {}
            _ => return Err("its addresses lie elsewhere now, or nowhere".into()),
        }
        running.set_memory(map.clone()).map_err(|e| e.to_string())
    }

    /// Begins to stop a running ring; `done` runs, on any thread, when [`Ring::settle`] will find it handed back.
    pub fn stop(&mut self, mode: Close, done: Release) {
        match std::mem::replace(&mut self.life, Life::Stopped) {
            Life::Running(running, _) => self.life = Life::Stopping(running.stop(mode, done)),
            other => self.life = other,
        }
    }

    /// A stop that was to drain publishes nothing from here on.
    pub fn abandon(&self) {
        if let Life::Stopping(ticket) = &self.life {
            ticket.abandon();
        }
    }

    /// Looks whether a stopping ring has been handed back; if so it is stopped now. What it counted is added to
    /// `counters`.
    ///
    /// `drained`: the guest is still there, and is owed a last interrupt for what was published while the ring stopped.
    pub fn settle(&mut self, drained: bool, counters: &mut SessionCounters) {
        let Life::Stopping(ticket) = &mut self.life else {
            return;
        };
        let Some(stopped) = ticket.take() else { return };
        self.life = Life::Stopped;
        self.settings.base = stopped.next_avail;
        counters.requests += stopped.counters.requests;
        counters.kicks += stopped.counters.kicks;
        counters.calls += stopped.counters.calls;
        if drained && stopped.drained && stopped.counters.requests > 0 {
            let _ = self.call.signal();
        }
    }

    /// Lets go of every descriptor that a stopped ring holds. When this returns they are closed.
    pub fn detach(&mut self) -> Result<(), String> {
        self.kick = Kick::Unset;
        swap(&self.call, None)?;
        swap(&self.err, None)
    }

    /// Forgets what was told (RESET_DEVICE).
    pub fn forget(&mut self) {
        self.settings = RingSettings::default();
    }
}

/// Swaps and waits until the old descriptor is closed: microseconds, never for I/O.
fn swap(cell: &CallCell, new: Option<PeerFd>) -> Result<(), String> {
    let ticket = cell.swap(new, Release::none());
    // Each swap waits for the one before, so a cell never has more than two: said all the same, since a ring without its
    // call would be silent.
    if ticket.refused() {
        return Err("too many descriptors of this ring are still in use".into());
    }
    match ticket.wait() {
        Ok(_) => Ok(()),
        Err(error) => Err(format!(
            "the old descriptor cannot be waited for: {error:?}"
        )),
    }
}
