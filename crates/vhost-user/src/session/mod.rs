//! A session: one front end, from its first message to its leaving.
//!
//! One thread reads messages and acts on them; the rings run elsewhere, on workers. The thread sleeps in one place
//! ([`Session::sleep`]), on the connection, on its own event (a ring came to rest or broke, the configuration changed, the
//! server stops) and on the nearest deadline. It holds no lock, ever, and waits for nothing that depends on the disk.
//!
//! | File | Duty |
//! |---|---|
//! | `dispatch` | is a message legal, what does it do, how is it answered |
//! | `features`, `memory`, `rings`, `config` | the messages |
//! | `ring` | one ring's life |
//! | `quiesce` | answers that wait for rings to drain; the end |
//! | `state` | what was told: plain values |
//! | `end` | why it ends |

mod config;
mod dispatch;
pub mod end;
mod features;
mod memory;
mod quiesce;
mod ring;
mod rings;
pub mod state;

use crate::{
    DeviceName,
    channel::Channel,
    wire::{
        Limits, WireError,
        recv::{Received, Receiver},
        send,
    },
    worker::{Tenure, WorkerPool},
};
use end::End;
use outboard_notifier::Event;
use outboard_virtio::{device::Device, memory::MemoryMap};
use quiesce::Goal;
use ring::Ring;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    time::Timespec,
};
use state::{Negotiated, SessionCounters};
use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// What others tell a session; every call returns at once.
///
/// A flag is set first, then the event; the session clears the event first, then looks at the flags. So it sees every
/// flag, at the latest when it wakes once more.
pub struct Signals {
    event: Event,
    stop: AtomicBool,
    config_changed: AtomicBool,
    broken: Mutex<Vec<(u16, String)>>,
}

impl Signals {
    pub fn new() -> io::Result<Signals> {
        Ok(Signals {
            event: Event::new()?,
            stop: AtomicBool::new(false),
            config_changed: AtomicBool::new(false),
            broken: Mutex::new(Vec::new()),
        })
    }

    /// Something to look at.
    pub fn notify(&self) {
        self.event.notify();
    }

    /// Asks for the end: rings drain, then the connection is closed.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.notify();
    }

    pub fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Before looking at the flags.
    pub fn clear(&self) {
        self.event.clear();
    }

    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn config_changed(&self) {
        self.config_changed.store(true, Ordering::Release);
        self.notify();
    }

    fn broken(&self, index: u16, why: String) {
        self.broken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((index, why));
        self.notify();
    }

    fn take_broken(&self) -> Vec<(u16, String)> {
        std::mem::take(&mut *self.broken.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What a message came to.
#[derive(Debug)]
enum Outcome {
    /// done; acknowledged if the front end asked for it
    Done,
    /// done, and this is the body of its reply
    Reply(Vec<u8>),
    /// answered when rings have come to rest
    Later(Goal),
}

/// The answer that a message is owed.
#[derive(Debug, Clone, Copy)]
struct Owed {
    code: u32,
    need_reply: bool,
}

/// Which of the things slept on are there.
struct Ready {
    hung_up: bool,
    input: bool,
    channel: bool,
}

/// A front end being served.
pub struct Session {
    tenure: Tenure,
    name: DeviceName,
    device: Arc<dyn Device>,
    pool: Arc<WorkerPool>,
    socket: Arc<UnixStream>,
    signals: Arc<Signals>,
    on_broken: Arc<dyn Fn(u16, String) + Send + Sync>,
    limits: Limits,
    since: Instant,
    receiver: Receiver,
    negotiated: Negotiated,
    memory: Arc<MemoryMap>,
    rings: Vec<Ring>,
    channel: Option<Channel>,
    pending: Option<(Owed, Goal)>,
    leaving: bool,
    counters: SessionCounters,
}

impl Session {
    pub fn new(
        tenure: Tenure,
        name: DeviceName,
        device: Arc<dyn Device>,
        pool: Arc<WorkerPool>,
        socket: Arc<UnixStream>,
        signals: Arc<Signals>,
        limits: Limits,
    ) -> Session {
        let on_broken = {
            let signals = signals.clone();
            Arc::new(move |index, why| signals.broken(index, why))
        };
        Session {
            rings: (0..device.max_queues()).map(Ring::new).collect(),
            tenure,
            name,
            device,
            pool,
            socket,
            signals,
            on_broken,
            limits,
            since: Instant::now(),
            receiver: Receiver::default(),
            negotiated: Negotiated::default(),
            memory: Arc::new(MemoryMap::empty()),
            channel: None,
            pending: None,
            leaving: false,
            counters: SessionCounters::default(),
        }
    }

    /// Serves the front end until it leaves, breaks the protocol, or the server stops. When this returns, nothing of the
    /// session touches guest memory or a descriptor of the front end any more.
    pub fn run(mut self) -> (End, SessionCounters) {
        let listener = {
            let signals = self.signals.clone();
            Arc::new(move || signals.config_changed())
        };
        self.device.on_config_change(Some(listener));
        let end = loop {
            if let Err(end) = self.turn() {
                break end;
            }
        };
        self.device.on_config_change(None);
        self.tear_down();
        (end, self.counters)
    }

    /// Looks at what others said, sleeps, and acts on at most one message.
    fn turn(&mut self) -> Result<(), End> {
        self.attend()?;
        let ready = self.sleep()?;
        if ready.hung_up {
            return Err(End::HungUp {
                midway: self.receiver.have() > 0,
            });
        }
        if ready.channel {
            self.flush_channel();
        }
        if ready.input {
            match self.receiver.receive(&*self.socket)? {
                Received::Message(message) => self.handle(message)?,
                Received::Nothing => {}
                Received::HungUp { midway } => return Err(End::HungUp { midway }),
            }
        }
        Ok(())
    }

    /// What others said since the last look.
    fn attend(&mut self) -> Result<(), End> {
        self.signals.event.clear();
        for (index, why) in self.signals.take_broken() {
            // The worker has said it aloud: it knows where in the ring it happened, and may outlive this session.
            tracing::debug!(device = %self.name, ring = index, "told of a broken ring: {why}");
        }
        if self.memory.is_damaged() {
            return Err(End::Damaged);
        }
        if self.signals.config_changed.swap(false, Ordering::AcqRel) {
            self.tell_config_change();
        }
        if self.signals.is_stopping() && !self.leaving {
            self.leaving = true;
            self.drain_all();
        }
        self.settle();
        if let Some((owed, goal)) = self.pending
            && let Some(outcome) = self.reached(goal)
        {
            self.pending = None;
            self.answer(owed, outcome)?;
        }
        if self.leaving && self.pending.is_none() && !self.rings.iter().any(Ring::is_stopping) {
            return Err(End::Stopped);
        }
        Ok(())
    }

    /// Until something happens. While an answer is owed or the session is leaving, messages stay unread.
    fn sleep(&self) -> Result<Ready, End> {
        let deadline = self.deadline();
        let timeout = deadline.map(|at| timespec(at.saturating_duration_since(Instant::now())));
        let deaf = self.leaving || self.pending.is_some();
        let hangup = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        let mut fds = [
            PollFd::new(&self.signals.event, PollFlags::IN),
            PollFd::new(
                &*self.socket,
                if deaf { hangup } else { hangup | PollFlags::IN },
            ),
            PollFd::new(&*self.socket, PollFlags::empty()),
        ];
        let channel = self.channel.as_ref().filter(|c| c.is_waiting());
        if let (Some(channel), Some(slot)) = (channel, fds.get_mut(2)) {
            *slot = PollFd::new(channel.socket(), PollFlags::OUT);
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => {
                return Err(End::Internal {
                    what: "poll",
                    source: e.into(),
                });
            }
        }
        if deadline.is_some_and(|at| at <= Instant::now()) {
            return Err(self.overdue());
        }
        let [_, socket, other] = &fds;
        Ok(Ready {
            hung_up: socket.revents().intersects(hangup),
            input: socket.revents().contains(PollFlags::IN),
            channel: channel.is_some() && !other.revents().is_empty(),
        })
    }

    /// When the front end must have spoken.
    fn deadline(&self) -> Option<Instant> {
        if self.leaving || self.pending.is_some() {
            return None;
        }
        if self.counters.messages == 0 && self.receiver.have() == 0 {
            return Some(self.since + self.limits.first_message);
        }
        self.receiver.deadline(self.limits.message)
    }

    fn overdue(&self) -> End {
        match self.receiver.have() {
            0 => End::Silent(self.limits.first_message),
            have => WireError::Half {
                have,
                after: self.limits.message,
            }
            .into(),
        }
    }

    /// Sends a reply whole. A front end that does not read is waited for until the deadline, or until the server stops.
    fn send(&self, reply: &[u8]) -> Result<(), End> {
        let deadline = Instant::now() + self.limits.reply;
        let mut rest = reply;
        loop {
            let sent = send::some(&*self.socket, rest)?;
            rest = rest.get(sent..).unwrap_or_default();
            if rest.is_empty() {
                return Ok(());
            }
            if sent > 0 {
                continue;
            }
            // The event is looked at again by `attend`: clearing it here loses nothing, and keeps this from spinning.
            self.signals.event.clear();
            if self.signals.is_stopping() {
                return Err(End::Stopped);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(WireError::Unread(self.limits.reply).into());
            }
            let mut fds = [
                PollFd::new(&*self.socket, PollFlags::OUT),
                PollFd::new(&self.signals.event, PollFlags::IN),
            ];
            match poll(&mut fds, Some(&timespec(left))) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => {
                    return Err(End::Internal {
                        what: "poll",
                        source: e.into(),
                    });
                }
            }
        }
    }

    /// Logs what the front end did wrong, as far as the device's budget allows.
    fn complain(&mut self, what: &str) {
        self.counters.refused += 1;
        if self.name.may_log() {
            tracing::warn!(device = %self.name, "{what}");
        }
    }
}

fn timespec(d: Duration) -> Timespec {
    // Rounded up: a poll that returns just before the deadline would only be called again.
    let d = d.saturating_add(Duration::from_micros(100));
    Timespec {
        tv_sec: i64::try_from(d.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(d.subsec_nanos()),
    }
}
