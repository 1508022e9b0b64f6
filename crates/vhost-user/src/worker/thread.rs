//! A worker thread: its loop, and what it does about each event.

use super::{
    RingStart, StartError,
    mailbox::{Command, Mailbox, RingId},
    pool::Load,
    ring::{After, Ring, Wreck},
    shared::{HandBack, Shared, add},
};
use outboard_notifier::{Close, PeerFd, Release};
use outboard_reactor::{Config, PortId, Reactor, Wake};
use slab::Slab;
use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

/// How long polled rings are looked at without pause after the last request.
const SPIN: Duration = Duration::from_micros(50);
/// Then this often …
const SOON: Duration = Duration::from_micros(250);
/// … until nothing came for this long …
const QUIET: Duration = Duration::from_millis(10);
/// … and then this often.
const TICK: Duration = Duration::from_millis(1);

/// Fields are dropped in this order: the reactor first, which awaits all operations, so that what they point into (rings,
/// wrecks) may go; then the rings, which are handed back; last the mailbox, so that whoever finds it closed knows that
/// all descriptors are closed too.
pub(super) struct Worker {
    reactor: Reactor,
    rings: Slab<Ring>,
    /// Handlers that panicked while operations of theirs may be in flight.
    wrecks: Vec<Wreck>,
    by_id: HashMap<RingId, usize>,
    /// By `PortId::index`.
    by_port: Vec<Option<(PortId, usize)>>,
    /// Rings to be looked at, in turn.
    run: VecDeque<usize>,
    /// Rings without a watched descriptor.
    polled: Vec<usize>,
    /// When a polled ring last had something.
    polled_found: Instant,
    /// Rings whose gate was found closed.
    ending: Vec<usize>,
    end: bool,
    load: Arc<Load>,
    mailbox: CloseOnDrop,
}

struct CloseOnDrop(Arc<Mailbox>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        for (_, ring) in &mut self.rings {
            // At the pool's end everybody knows.
            ring.claimed &= !self.end;
            ring.lose();
        }
    }
}

impl Worker {
    pub fn new(config: Config, load: Arc<Load>) -> io::Result<Worker> {
        let reactor = Reactor::new(config)?;
        let mailbox = CloseOnDrop(Arc::new(Mailbox::new(reactor.waker())));
        Ok(Worker {
            reactor,
            rings: Slab::new(),
            wrecks: Vec::new(),
            by_id: HashMap::new(),
            by_port: Vec::new(),
            run: VecDeque::new(),
            polled: Vec::new(),
            polled_found: Instant::now(),
            ending: Vec::new(),
            end: false,
            load,
            mailbox,
        })
    }

    pub fn mailbox(&self) -> Arc<Mailbox> {
        self.mailbox.0.clone()
    }

    /// Until `Command::End`, or until the reactor fails.
    pub fn run(&mut self) {
        let mut wakes = Vec::with_capacity(32);
        while !self.end {
            let timeout = self.timeout();
            if timeout.is_none() {
                self.load.note(&self.reactor.counters());
            }
            if let Err(error) = self.reactor.wait(&mut wakes, timeout) {
                tracing::error!(%error, "a worker thread cannot wait any more and ends; its rings are abandoned");
                return;
            }
            for wake in wakes.drain(..) {
                self.on_wake(wake);
            }
            self.look_at_polled();
            self.round();
            self.finish_ending();
        }
        self.load.note(&self.reactor.counters());
    }

    /// Each ring that has something to do gets one pass; earlier, when a batch of operations is ready to be submitted.
    fn round(&mut self) {
        for _ in 0..self.run.len() {
            let Some(key) = self.run.pop_front() else {
                return;
            };
            self.pass(key);
            if self.reactor.batch_is_full() {
                return;
            }
        }
    }

    fn pass(&mut self, key: usize) {
        let Some(ring) = self.rings.get_mut(key) else {
            return;
        };
        ring.scheduled = false;
        match ring.pass() {
            After::Again => {
                if ring.polled {
                    self.polled_found = Instant::now();
                }
                self.schedule(key);
            }
            After::Idle { popped } => {
                if popped && ring.polled {
                    self.polled_found = Instant::now();
                }
            }
            After::Closed => {}
        }
        if self.is_closed(key) {
            self.wind_up(key);
        }
    }

    fn is_closed(&self, key: usize) -> bool {
        self.rings
            .get(key)
            .is_some_and(|r| r.shared.gate.is_closed().is_some())
    }

    fn schedule(&mut self, key: usize) {
        if let Some(ring) = self.rings.get_mut(key)
            && !std::mem::replace(&mut ring.scheduled, true)
        {
            self.run.push_back(key);
        }
    }

    fn on_wake(&mut self, wake: Wake) {
        match wake {
            Wake::Mailbox => {
                for command in self.mailbox.0.take() {
                    self.on_command(command);
                }
            }
            Wake::Kick { key } => {
                if let Some(&at) = self.by_id.get(&key) {
                    if let Some(ring) = self.rings.get(at) {
                        add(&ring.shared.kicks, 1);
                    }
                    self.schedule(at);
                }
            }
            Wake::WatchLost { key } => {
                if let Some(&at) = self.by_id.get(&key) {
                    tracing::warn!(
                        "the kernel refuses to watch a kick descriptor; its ring is polled"
                    );
                    self.detach(at);
                    self.attach(at, None);
                    self.schedule(at);
                }
            }
            Wake::Port { port } => {
                if let Some(&Some((id, at))) = self.by_port.get(port.index())
                    && id == port
                {
                    self.schedule(at);
                }
            }
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Start { id, ring, reply } => {
                let started = self.start(id, *ring);
                let orphan = started.as_ref().ok().cloned();
                // Nobody waits for it any more: nobody could stop it.
                if reply.send(started).is_err()
                    && let Some(shared) = orphan
                {
                    shared.gate.close(Close::Abandon, Release::none());
                    self.stop(id, HandBack::new(shared, Release::none()));
                }
            }
            Command::Look { id } => {
                if let Some(&at) = self.by_id.get(&id) {
                    self.schedule(at);
                }
            }
            Command::SwapKick { id, kick, reply } => {
                let Some(&at) = self.by_id.get(&id) else {
                    return;
                };
                self.detach(at);
                let ticket = self
                    .rings
                    .get_mut(at)
                    .and_then(|ring| ring.detaching.take());
                if !self.is_closed(at) {
                    self.attach(at, kick);
                }
                self.schedule(at);
                let _ = reply.send(ticket);
            }
            Command::SetMemory { id, memory, reply } => {
                let Some(&at) = self.by_id.get(&id) else {
                    return;
                };
                let Some(ring) = self.rings.get_mut(at) else {
                    return;
                };
                let _ = reply.send(ring.set_memory(memory));
                self.schedule(at);
            }
            Command::Stop { id, hand_back } => self.stop(id, hand_back),
            Command::End => self.end = true,
        }
    }

    fn start(&mut self, id: RingId, mut start: RingStart) -> Result<Arc<Shared>, StartError> {
        let kick = start.kick.take();
        let ring = Ring::open(id, &start, self.reactor.port())?;
        let (port, shared) = (ring.port, ring.shared.clone());
        let at = self.rings.insert(ring);
        self.by_id.insert(id, at);
        if self.by_port.len() <= port.index() {
            self.by_port.resize(port.index() + 1, None);
        }
        if let Some(place) = self.by_port.get_mut(port.index()) {
            *place = Some((port, at));
        }
        self.attach(at, kick);
        // Requests may have been there before anybody watched.
        self.schedule(at);
        Ok(shared)
    }

    /// Watches the descriptor; without one, or if it cannot be watched, the ring is polled.
    fn attach(&mut self, at: usize, kick: Option<PeerFd>) {
        let Some(ring) = self.rings.get_mut(at) else {
            return;
        };
        ring.watch = match kick.map(|fd| self.reactor.watch(fd, ring.id)) {
            Some(Ok(watch)) => Some(watch),
            Some(Err(error)) => {
                tracing::warn!(%error, "a kick descriptor cannot be watched; its ring is polled");
                None
            }
            None => None,
        };
        ring.polled = ring.watch.is_none();
        if ring.polled {
            self.polled.push(at);
            self.polled_found = Instant::now();
        }
    }

    /// Nobody tells of new requests any more.
    fn detach(&mut self, at: usize) {
        let Some(ring) = self.rings.get_mut(at) else {
            return;
        };
        if let Some(watch) = ring.watch.take() {
            ring.detaching = self.reactor.unwatch(watch);
        }
        if std::mem::replace(&mut ring.polled, false) {
            self.polled.retain(|other| *other != at);
        }
    }

    /// The gate was closed by whoever asks.
    fn stop(&mut self, id: RingId, hand_back: HandBack) {
        let Some(&at) = self.by_id.get(&id) else {
            return;
        };
        if let Some(ring) = self.rings.get_mut(at) {
            ring.claimed = false;
            ring.hand_back = Some(hand_back);
        }
        self.wind_up(at);
        // Completions of a drain that came before this message was read.
        self.schedule(at);
    }

    /// The gate is closed: no more kicks; the end is followed up from here on.
    fn wind_up(&mut self, at: usize) {
        self.detach(at);
        if !self.ending.contains(&at) {
            self.ending.push(at);
        }
    }

    /// Hands back what can be, and forgets what is over.
    fn finish_ending(&mut self) {
        if self.ending.is_empty() {
            return;
        }
        let ending = std::mem::take(&mut self.ending);
        for at in ending {
            let Some(ring) = self.rings.get_mut(at) else {
                continue;
            };
            let at_rest = match ring.shared.gate.is_closed() {
                Some(Close::Abandon) => ring.reap().unwrap_or_else(|wreck| {
                    self.wrecks.extend(wreck);
                    self.reactor.discard(ring.port);
                    true
                }),
                _ => ring.shared.gate.is_done(),
            };
            ring.try_hand_back();
            if at_rest && !ring.claimed && ring.hand_back.is_none() {
                self.forget(at);
            } else {
                self.ending.push(at);
            }
        }
    }

    fn forget(&mut self, at: usize) {
        self.run.retain(|other| *other != at);
        let Some(ring) = self.rings.try_remove(at) else {
            return;
        };
        self.by_id.remove(&ring.id);
        if let Some(place) = self.by_port.get_mut(ring.port.index()) {
            *place = None;
        }
        self.load.rings.fetch_sub(1, Ordering::Relaxed);
        ring.dispose();
    }

    /// Rings that might have requests that nobody will tell of.
    fn polls(&self) -> bool {
        self.polled
            .iter()
            .any(|at| self.rings.get(*at).is_some_and(|ring| ring.active))
    }

    fn look_at_polled(&mut self) {
        for n in 0..self.polled.len() {
            let Some(&at) = self.polled.get(n) else {
                return;
            };
            if self.rings.get(at).is_some_and(|ring| ring.active) {
                self.schedule(at);
            }
        }
    }

    /// How long may be slept now.
    fn timeout(&self) -> Option<Duration> {
        if !self.run.is_empty() {
            return Some(Duration::ZERO);
        }
        if !self.polls() {
            return None;
        }
        Some(match self.polled_found.elapsed() {
            quiet if quiet < SPIN => Duration::ZERO,
            quiet if quiet < QUIET => SOON,
            _ => TICK,
        })
    }
}
