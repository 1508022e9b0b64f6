//! The ring and everything that hangs on it: queueing, submitting, sleeping, reaping.
//!
//! # One wait
//! 1. Expired timers become completions, and finished entries already in the completion ring are taken: no system call.
//! 2. At most one `io_uring_enter`: it submits up to a batch of entries; it sleeps only if step 1 found nothing and no
//!    entries are left over; and it carries `GETEVENTS` whenever the kernel has flagged deferred work (`TASKRUN`) or
//!    completions parked outside a full ring (`CQ_OVERFLOW`), both of which appear only to a thread that asks. A wait
//!    that may not sleep and finds neither entries nor flags makes no system call: that is what a spinning worker runs.
//! 3. What came is taken and reported.
//!
//! # Accounting
//! `in_kernel` counts entries queued (submitted or not) whose final completion (the one without `F_MORE`) was not
//! reaped. At zero the kernel holds no pointer and no file number of ours: `close` waits for exactly that.
#![allow(unsafe_code)]

use crate::{
    Config, Counters, Wake,
    port::{PortCompletion, Ports},
    remote::Inbox,
    setup::{self, Ring},
    tag::{OwnEvent, SlotId, Tag},
    timer::Timers,
    watch::{Poll, WatchId, Watches},
};
use io_uring::{
    EnterFlags, cqueue, opcode, squeue,
    types::{CancelBuilder, Fd, SubmitArgs, Timespec},
};
use outboard_notifier::{Event, KickTicket, PeerFd};
use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
    sync::Arc,
    time::{Duration, Instant},
};

/// Completions taken, and wakes reported, per wait: a pass stays short, so that what it produced is published soon.
const PASS: usize = 20;

pub(crate) struct Core {
    ring: Option<Ring>,
    batch: u32,
    no_iowait: bool,
    /// Entries that found the submission ring full and the kernel unwilling (memory shortage); in order.
    backlog: VecDeque<squeue::Entry>,
    in_kernel: u64,
    closing: bool,
    reaped: Vec<cqueue::Entry>,
    pass: u64,
    pub ports: Ports,
    pub timers: Timers,
    watches: Watches,
    waker: Arc<Event>,
    inbox: Arc<Inbox>,
    posts: Vec<(SlotId, PortCompletion)>,
    pub counters: Counters,
}

impl Core {
    pub fn new(config: &Config) -> io::Result<Core> {
        let ring = setup::ring(config.entries)?;
        let mut core = Core {
            batch: config.batch.clamp(1, ring.params().sq_entries()),
            no_iowait: ring.params().is_feature_no_iowait(),
            ring: Some(ring),
            backlog: VecDeque::new(),
            in_kernel: 0,
            closing: false,
            reaped: Vec::with_capacity(PASS),
            pass: 0,
            ports: Ports::default(),
            timers: Timers::default(),
            watches: Watches::default(),
            waker: Arc::new(Event::new()?),
            inbox: Arc::new(Inbox::new(Event::new()?)),
            posts: Vec::new(),
            counters: Counters::default(),
        };
        core.arm_own(OwnEvent::Mailbox);
        core.arm_own(OwnEvent::Remote);
        Ok(core)
    }

    pub fn waker(&self) -> Arc<Event> {
        self.waker.clone()
    }

    pub fn inbox(&self) -> Arc<Inbox> {
        self.inbox.clone()
    }

    pub fn watch(&mut self, fd: PeerFd, key: u64) -> io::Result<WatchId> {
        let (slot, poll) = self.watches.open(fd, key)?;
        self.arm_watch(slot, poll);
        Ok(WatchId(slot.pack()))
    }

    pub fn unwatch(&mut self, id: WatchId) -> Option<KickTicket> {
        let slot = SlotId::unpack(id.0);
        let (ticket, cancel) = self.watches.begin_close(slot)?;
        if let Some(token) = cancel {
            self.cancel_watch(slot, token);
        }
        Some(ticket)
    }

    pub fn is_closed(&self) -> bool {
        self.closing
    }

    pub fn push_for_port(
        &mut self,
        id: SlotId,
        entry: squeue::Entry,
        token: u32,
    ) -> io::Result<()> {
        if self.closing {
            return Err(io::Error::from_raw_os_error(libc::ESHUTDOWN));
        }
        let Some(slot) = self.ports.get(id) else {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        };
        slot.in_kernel += 1;
        slot.waiting += 1;
        self.push(entry, Tag::Port { slot: id, token });
        Ok(())
    }

    pub fn wait(&mut self, wakes: &mut Vec<Wake>, timeout: Option<Duration>) -> io::Result<()> {
        self.pass += 1;
        let first = wakes.len();
        self.flush_backlog();
        self.expire_timers();
        let taken = self.reap(wakes, PASS);
        // Also what is reported to nobody (a watch that ended) is something that happened: its ticket is done now.
        let found = taken > 0 || self.ports.any_ready();
        self.enter(if found { Some(Duration::ZERO) } else { timeout })?;
        self.expire_timers();
        self.reap(wakes, PASS.saturating_sub(taken));
        let room = PASS.saturating_sub(wakes.len() - first).max(1);
        self.ports.report(wakes, first, room);
        self.counters.wakes += (wakes.len() - first) as u64;
        Ok(())
    }

    /// As many entries are queued as one enter submits.
    pub fn batch_is_full(&mut self) -> bool {
        let batch = self.batch as usize;
        self.ring
            .as_mut()
            .is_some_and(|ring| ring.submission().len() >= batch)
    }

    /// Cancels everything and returns when the kernel holds nothing of ours: memory and files of all operations may be
    /// let go afterwards. Blocks for as long as an operation that cannot be cancelled takes (disk I/O already issued).
    pub fn close(&mut self) {
        /// Then cancel again: an operation that is between two states escapes the request.
        const ROUND: Duration = Duration::from_millis(20);
        let mut wakes = Vec::new();
        self.closing = true;
        self.watches.close_all();
        while let Some((slot, token)) = self.timers.pop() {
            self.ports.expired(slot, token, -libc::ECANCELED);
        }
        while self.in_kernel > 0 {
            let all = CancelBuilder::any().all();
            self.push(opcode::AsyncCancel2::new(all).build(), Tag::CancelAll);
            let round = Instant::now();
            while self.in_kernel > 0 {
                let Some(left) = ROUND.checked_sub(round.elapsed()) else {
                    break;
                };
                self.pass += 1;
                self.flush_backlog();
                if let Err(e) = self.enter(Some(left)) {
                    // The kernel may still write into buffers that are about to be freed: nothing can be trusted.
                    eprintln!("io_uring_enter failed with operations outstanding: {e}");
                    std::process::abort();
                }
                self.reap(&mut wakes, usize::MAX);
                wakes.clear();
            }
        }
        self.ring = None;
    }

    /// Queues an entry; `in_kernel` counts it from here on.
    fn push(&mut self, entry: squeue::Entry, tag: Tag) {
        self.in_kernel += 1;
        let entry = entry.user_data(tag.encode());
        if !self.backlog.is_empty() {
            self.backlog.push_back(entry);
            return;
        }
        if self.push_to_ring(&entry) {
            return;
        }
        // Full: make room. Whatever goes wrong here is met again, and reported, by the next wait.
        let _ = self.enter(Some(Duration::ZERO));
        if !self.push_to_ring(&entry) {
            self.backlog.push_back(entry);
        }
    }

    fn push_to_ring(&mut self, entry: &squeue::Entry) -> bool {
        let Some(ring) = &mut self.ring else {
            return false;
        };
        // SAFETY: what the entry names stays valid until its final completion: for operations of ports their user
        // promised it (`IoPort::push`); descriptors of watches and own events are kept open by `watches`, `waker` and
        // `inbox`; cancel requests name nothing.
        unsafe { ring.submission().push(entry) }.is_ok()
    }

    fn flush_backlog(&mut self) {
        while let Some(entry) = self.backlog.pop_front() {
            if !self.push_to_ring(&entry) {
                self.backlog.push_front(entry);
                return;
            }
        }
    }

    /// At most one system call: see "One wait", step 2.
    fn enter(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let Some(ring) = &mut self.ring else {
            return Err(io::Error::from_raw_os_error(libc::ESHUTDOWN));
        };
        let (queued, flagged) = {
            let sq = ring.submission();
            (sq.len() as u32, sq.taskrun() || sq.cq_overflow())
        };
        let submit = queued.min(self.batch);
        let timeout = match timeout {
            Some(Duration::ZERO) => timeout,
            _ if self.timers.is_empty() => timeout,
            _ => {
                let timer = self.timers.next_in(Instant::now());
                timeout.into_iter().chain(timer).min()
            }
        };
        let sleep = timeout != Some(Duration::ZERO) && submit == queued && self.backlog.is_empty();
        if !sleep && submit == 0 && !flagged {
            return Ok(());
        }

        let mut flags = EnterFlags::GETEVENTS;
        let timespec = timeout.filter(|_| sleep).map(Timespec::from);
        let arg = timespec.as_ref().map(|t| SubmitArgs::new().timespec(t));
        if arg.is_some() {
            flags |= EnterFlags::EXT_ARG;
        }
        if self.no_iowait {
            // A sleeping worker waits for guests, not for a disk: do not show an idle machine as one stuck in I/O.
            flags |= EnterFlags::NO_IOWAIT;
        }
        self.counters.enters += 1;
        self.counters.sleeps += u64::from(sleep);
        // SAFETY: `submit` entries are in the ring; `arg` is of the type that EXT_ARG asks for, and it and the timespec
        // that it points to live through the call.
        let entered = unsafe {
            ring.submitter()
                .enter(submit, u32::from(sleep), flags.bits(), arg.as_ref())
        };
        match entered {
            Ok(submitted) => self.counters.sqes += submitted as u64,
            Err(e) => match e.raw_os_error() {
                // Timed out; a signal; memory short or completions first: the caller looks at what there is, and the
                // entries stay queued.
                Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY) => {}
                _ => return Err(e),
            },
        }
        Ok(())
    }

    /// Takes up to `limit` finished entries; returns how many there were.
    fn reap(&mut self, wakes: &mut Vec<Wake>, limit: usize) -> usize {
        let Some(ring) = &mut self.ring else { return 0 };
        let mut reaped = std::mem::take(&mut self.reaped);
        reaped.extend(ring.completion().take(limit));
        let taken = reaped.len();
        self.counters.cqes += taken as u64;
        for cqe in reaped.drain(..) {
            self.dispatch(&cqe, wakes);
        }
        self.reaped = reaped;
        taken
    }

    fn dispatch(&mut self, cqe: &cqueue::Entry, wakes: &mut Vec<Wake>) {
        let last = !cqueue::more(cqe.flags());
        if last {
            self.in_kernel = self.in_kernel.saturating_sub(1);
        }
        let result = cqe.result();
        match Tag::decode(cqe.user_data()) {
            Some(Tag::Port { slot, token }) => {
                let completion = PortCompletion { token, result };
                self.ports.completed(slot, completion, last);
            }
            Some(Tag::Watch { slot, token }) => {
                let completion = (result, !last);
                let again = self
                    .watches
                    .fired(slot, token, completion, self.pass, wakes);
                self.arm_watch(slot, again);
            }
            Some(Tag::Own(which)) => {
                self.own_fired(which, wakes);
                if last && !self.closing {
                    self.arm_own(which);
                }
            }
            // The poll was busy firing: ask again.
            Some(Tag::Cancel { slot, token }) => {
                if result == -libc::EALREADY && self.watches.is_closing(slot) {
                    self.cancel_watch(slot, token);
                }
            }
            Some(Tag::CancelAll) | None => {}
        }
    }

    /// Our own events are not read either: see `watch`, "Why no kick is lost".
    fn own_fired(&mut self, which: OwnEvent, wakes: &mut Vec<Wake>) {
        match which {
            OwnEvent::Mailbox => wakes.push(Wake::Mailbox),
            OwnEvent::Remote => {
                self.inbox.take(&mut self.posts);
                for (slot, completion) in self.posts.drain(..) {
                    self.ports.deliver(slot, completion);
                }
            }
        }
    }

    fn expire_timers(&mut self) {
        if self.timers.is_empty() {
            return;
        }
        let now = Instant::now();
        while let Some((slot, token)) = self.timers.expired(now) {
            self.ports.expired(slot, token, 0);
        }
    }

    /// Queues a multishot poll for input. The descriptor stays open until the poll's final completion: see `watch`.
    fn arm(&mut self, fd: RawFd, tag: Tag) {
        let poll = opcode::PollAdd::new(Fd(fd), libc::POLLIN as u32).multi(true);
        self.push(poll.build(), tag);
    }

    fn arm_watch(&mut self, slot: SlotId, poll: Option<Poll>) {
        if let Some(Poll { fd, token }) = poll {
            self.arm(fd, Tag::Watch { slot, token });
        }
    }

    fn arm_own(&mut self, which: OwnEvent) {
        let fd = match which {
            OwnEvent::Mailbox => self.waker.as_fd().as_raw_fd(),
            OwnEvent::Remote => self.inbox.event.as_fd().as_raw_fd(),
        };
        self.arm(fd, Tag::Own(which));
    }

    fn cancel_watch(&mut self, slot: SlotId, token: u32) {
        let poll = Tag::Watch { slot, token }.encode();
        let cancel = opcode::AsyncCancel::new(poll).build();
        self.push(cancel, Tag::Cancel { slot, token });
    }
}
