//! The cell, the kick source and the descriptors on the real kernel. Witnesses: a pipe whose reader sees POLLHUP when the last
//! reference to the writer is gone, the counter of an eventfd, and the process's list of descriptors.
#![cfg(not(loom))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use outboard_notifier::{
    CallCell, Event, KickEvent, KickSource, PeerFd, PeerKind, Release, SignalError, WouldDeadlock,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

/// Nothing here takes long; who has waited so long waits in vain.
const DEADLINE: Duration = Duration::from_secs(20);

fn dup(fd: &impl AsFd) -> PeerFd {
    PeerFd::new(fd.as_fd().try_clone_to_owned().expect("dup")).expect("eventfd or pipe")
}

fn pipe() -> (OwnedFd, PeerFd) {
    let (reader, writer) = rustix::pipe::pipe().expect("pipe");
    (reader, PeerFd::new(writer).expect("a pipe is taken"))
}

fn poll_now(fd: BorrowedFd<'_>, wanted: PollFlags) -> PollFlags {
    let mut fds = [PollFd::new(&fd, wanted)];
    poll(
        &mut fds,
        Some(&Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    )
    .expect("poll");
    fds[0].revents()
}

fn last_writer_gone(reader: &OwnedFd) -> bool {
    poll_now(reader.as_fd(), PollFlags::IN).contains(PollFlags::HUP)
}

fn count(fd: &impl AsFd) -> u64 {
    let mut bytes = [0; 8];
    match rustix::io::read(fd, &mut bytes) {
        Ok(_) => u64::from_ne_bytes(bytes),
        Err(rustix::io::Errno::AGAIN) => 0,
        Err(error) => panic!("read: {error}"),
    }
}

/// A counter that takes no more: its next write would block.
fn fill(fd: &impl AsFd) {
    rustix::io::write(fd, &(u64::MAX - 1).to_ne_bytes()).expect("an empty counter takes it");
}

fn flag() -> (Release, Arc<AtomicUsize>) {
    let ran = Arc::new(AtomicUsize::new(0));
    let count = ran.clone();
    (Release::run(move || _ = count.fetch_add(1, SeqCst)), ran)
}

/// The reader of the pipe sees the last reference go exactly when the detach is done, not before and not later.
#[test]
fn detach_drops_the_last_reference() {
    let (reader, writer) = pipe();
    let cell = CallCell::new();
    let (release, ran) = flag();
    assert!(cell.swap(Some(writer), release).is_done());
    cell.signal().expect("attached");
    assert!(!last_writer_gone(&reader));
    assert_eq!(count(&reader), 1);
    assert_eq!(
        cell.swap(None, Release::none())
            .wait()
            .map(|_| ran.load(SeqCst)),
        Ok(1)
    );
    assert!(last_writer_gone(&reader));
    assert!(matches!(cell.signal(), Err(SignalError::Detached)));
    assert_eq!(cell.signals(), 1);
}

/// A pin (a queued write that the kernel has not made yet) keeps exactly its own registration, through any number of swaps.
#[test]
fn pin_keeps_the_file_until_it_is_dropped() {
    let (old, writer) = pipe();
    let (new, next) = pipe();
    let cell = CallCell::new();
    drop(cell.swap(Some(writer), Release::none()));
    let pin = cell.pin().expect("attached");
    let ticket = cell.swap(Some(next), Release::none());
    assert!(!ticket.is_done() && !last_writer_gone(&old));
    pin.signal().expect("open as long as it is pinned");
    assert_eq!(count(&old), 1);
    cell.signal().expect("the new one is attached");
    assert_eq!(count(&new), 1);
    assert!(
        ticket
            .wait_timeout(Duration::ZERO)
            .is_some_and(|told| told == Err(WouldDeadlock))
    );
    drop(pin);
    assert!(ticket.wait().is_ok() && last_writer_gone(&old));
    drop(cell);
    assert!(last_writer_gone(&new));
}

/// The thread that is last out closes: a wait on another thread ends when the pin goes.
#[test]
fn wait_on_another_thread_ends_with_the_pin() {
    let (reader, writer) = pipe();
    let cell = Arc::new(CallCell::new());
    drop(cell.swap(Some(writer), Release::none()));
    let (pinned, go) = (Arc::new(AtomicBool::new(false)), mpsc::channel::<()>());
    let holder = {
        let (cell, pinned, go) = (cell.clone(), pinned.clone(), go.1);
        let (ready, is_ready) = mpsc::channel();
        let thread = thread::spawn(move || {
            let pin = cell.pin().expect("attached");
            pinned.store(true, SeqCst);
            ready.send(()).expect("main listens");
            go.recv().expect("main sends");
            pinned.store(false, SeqCst);
            drop(pin);
        });
        is_ready.recv_timeout(DEADLINE).expect("pinned");
        thread
    };
    let ticket = cell.swap(None, Release::none());
    assert!(!ticket.is_done());
    go.0.send(()).expect("the holder listens");
    let done = ticket.wait_timeout(DEADLINE).expect("the pin was dropped");
    assert!(done.is_ok() && !pinned.load(SeqCst) && last_writer_gone(&reader));
    holder.join().expect("the holder ends");
}

/// Descriptor numbers of this process that refer to this pipe.
fn references(link: &str) -> usize {
    let all = std::fs::read_dir("/proc/self/fd").expect("/proc");
    all.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|to| to.as_os_str() == link)
        .count()
}

/// Two threads signal while two others swap as fast as they can. Every write that said Ok is found on one of the descriptors,
/// each descriptor is closed once its ticket is done, and each release ran once.
#[test]
fn storm_accounts_for_every_signal() {
    const SWAPS: usize = 2_000;
    let cell = Arc::new(CallCell::new());
    let stop = Arc::new(AtomicBool::new(false));
    let released = Arc::new(AtomicUsize::new(0));
    let signallers: Vec<_> = (0..2)
        .map(|_| {
            let (cell, stop) = (cell.clone(), stop.clone());
            thread::spawn(move || {
                let (mut owed, mut tries) = (0u64, 0u64);
                while !stop.load(SeqCst) {
                    tries += 1;
                    match cell.signal() {
                        Ok(()) => owed += 1,
                        Err(SignalError::Detached) => thread::yield_now(),
                        Err(error) => panic!("{error}"),
                    }
                }
                assert!(tries > 0);
                owed
            })
        })
        .collect();
    let seen = Arc::new(AtomicU64::new(0));
    let swappers: Vec<_> = (0..2)
        .map(|_| {
            let (cell, seen, released) = (cell.clone(), seen.clone(), released.clone());
            thread::spawn(move || {
                // What this thread attached; whichever swap detaches it, the release tells when it is closed.
                let (gone, closed) = mpsc::channel();
                for round in 0..SWAPS {
                    let event = Event::new().expect("eventfd");
                    let peer = dup(&event);
                    let (gone, released) = (gone.clone(), released.clone());
                    let ticket = cell.swap(
                        Some(peer),
                        Release::run(move || {
                            released.fetch_add(1, SeqCst);
                            gone.send(event).expect("the swapper listens");
                        }),
                    );
                    assert!(!ticket.refused(), "two signallers cannot hold seven");
                    assert!(
                        ticket.wait_timeout(DEADLINE).is_some(),
                        "a detach waits for signals only"
                    );
                    if round % 16 == 0 {
                        assert!(cell.swap(None, Release::none()).wait().is_ok());
                    }
                    while let Ok(event) = closed.try_recv() {
                        seen.fetch_add(count(&event), SeqCst);
                    }
                }
                closed
            })
        })
        .collect();
    let closed: Vec<_> = swappers
        .into_iter()
        .map(|thread| thread.join().expect("swapper"))
        .collect();
    stop.store(true, SeqCst);
    let owed: u64 = signallers
        .into_iter()
        .map(|thread| thread.join().expect("signaller"))
        .sum();
    assert!(cell.swap(None, Release::none()).wait().is_ok());
    for event in closed.iter().flat_map(|closed| closed.try_iter()) {
        seen.fetch_add(count(&event), SeqCst);
    }
    assert_eq!(owed, seen.load(SeqCst));
    assert!(owed > 0, "the storm blew past the signallers");
    assert_eq!(released.load(SeqCst), 2 * SWAPS);
}

/// The descriptors of a storm all go: the process ends with as many references to one pipe as it began with.
#[test]
fn no_reference_is_left_behind() {
    let (reader, writer) = rustix::pipe::pipe().expect("pipe");
    let link = std::fs::read_link(format!("/proc/self/fd/{}", writer.as_raw_fd())).expect("/proc");
    let link = link.to_str().expect("text").to_owned();
    assert_eq!(references(&link), 2);
    let cell = CallCell::new();
    for round in 0..100 {
        drop(cell.swap(Some(dup(&writer)), Release::none()));
        let pin = (round % 3 == 0).then(|| cell.pin());
        drop(cell.swap((round % 2 == 0).then(|| dup(&writer)), Release::none()));
        drop(pin);
        let mut source = KickSource::new(dup(&reader), Release::none());
        if round % 2 == 0 {
            source.arm(|_, _| Ok::<(), ()>(())).expect("armed");
        }
        drop(source.begin_detach());
    }
    drop(cell);
    assert_eq!(references(&link), 2);
}

/// R19, the usual eventfd: a full counter is `Full`, and the flag of the shared file stays as it was.
#[test]
fn r19_full_nonblocking_eventfd() {
    let theirs = Event::new().expect("eventfd");
    let cell = CallCell::new();
    drop(cell.swap(Some(dup(&theirs)), Release::none()));
    fill(&theirs);
    assert!(matches!(cell.signal(), Err(SignalError::Full)));
    assert_eq!(cell.signals(), 0);
    assert_eq!(count(&theirs), u64::MAX - 1);
    cell.signal().expect("the peer has read it");
}

/// R19, a blocking eventfd: a full counter is `Full` at once, and O_NONBLOCK is not set behind the peer's back.
#[test]
fn r19_full_blocking_eventfd() {
    let theirs = eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd");
    let cell = CallCell::new();
    drop(cell.swap(Some(dup(&theirs)), Release::none()));
    cell.signal().expect("empty");
    assert_eq!(count(&theirs), 1);
    fill(&theirs);
    assert!(matches!(cell.signal(), Err(SignalError::Full)));
    assert!(
        !fcntl_getfl(&theirs)
            .expect("F_GETFL")
            .contains(OFlags::NONBLOCK)
    );
}

/// R19, the residue: the peer clears O_NONBLOCK after the attach and fills the counter, so one write blocks. The detach cannot
/// end, and says so in time; a Unix signal to the blocked thread breaks the write, and everything ends.
#[test]
fn r19_blocked_write_is_broken_by_a_signal() {
    break_writes_with_sigusr2();
    let theirs = Event::new().expect("eventfd");
    let cell = Arc::new(CallCell::new());
    drop(cell.swap(Some(dup(&theirs)), Release::none()));
    let flags = fcntl_getfl(&theirs).expect("F_GETFL");
    fcntl_setfl(&theirs, flags - OFlags::NONBLOCK).expect("F_SETFL");
    fill(&theirs);
    let (sender, thread_id) = mpsc::channel();
    let worker = {
        let cell = cell.clone();
        thread::spawn(move || {
            sender.send(rustix::thread::gettid()).expect("main listens");
            cell.signal()
        })
    };
    let tid = thread_id.recv_timeout(DEADLINE).expect("the worker runs");
    // Until it is inside the write: blocked in the kernel, with the registration pinned.
    wait_until(|| syscall_of(tid) == Some(libc::SYS_write));
    let ticket = cell.swap(None, Release::none());
    assert!(
        ticket.wait_timeout(Duration::ZERO).is_none(),
        "the write is in progress"
    );
    // The watchdog. Repeated, since the thread may have been between two instructions.
    while !worker.is_finished() {
        tgkill(tid, libc::SIGUSR2);
        thread::yield_now();
    }
    assert!(matches!(
        worker.join().expect("worker"),
        Err(SignalError::Interrupted)
    ));
    assert!(
        ticket
            .wait_timeout(DEADLINE)
            .is_some_and(|told| told.is_ok())
    );
}

fn wait_until(condition: impl Fn() -> bool) {
    let end = std::time::Instant::now() + DEADLINE;
    while !condition() {
        assert!(std::time::Instant::now() < end, "the condition never came");
        thread::yield_now();
    }
}

/// The number of the system call that a thread of this process sleeps in.
fn syscall_of(tid: rustix::thread::Pid) -> Option<libc::c_long> {
    let text = std::fs::read_to_string(format!("/proc/self/task/{}/syscall", tid.as_raw_nonzero()))
        .ok()?;
    text.split_whitespace().next()?.parse().ok()
}

#[allow(unsafe_code)]
fn break_writes_with_sigusr2() {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: the handler does nothing, which is async-signal-safe; no SA_RESTART, so that it interrupts.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        assert_eq!(
            libc::sigaction(libc::SIGUSR2, &action, std::ptr::null_mut()),
            0
        );
    }
}

#[allow(unsafe_code)]
fn tgkill(tid: rustix::thread::Pid, signal: libc::c_int) {
    // SAFETY: plain numbers; the thread has not been joined, so its id is not reused.
    unsafe {
        libc::syscall(
            libc::SYS_tgkill,
            libc::getpid(),
            tid.as_raw_nonzero().get(),
            signal,
        )
    };
}

/// Sockets, files, directories, other anonymous inodes: refused, named, and closed.
#[test]
fn wrong_kinds_are_refused() {
    let (one, _other) = std::os::unix::net::UnixStream::pair().expect("socketpair");
    let file = std::fs::File::open("/proc/self/exe").expect("a file");
    let directory = std::fs::File::open("/").expect("a directory");
    let null = std::fs::File::open("/dev/null").expect("a device");
    let epoll =
        rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).expect("epoll");
    for (fd, name) in [
        (OwnedFd::from(one), "socket:["),
        (file.into(), "/"),
        (directory.into(), "/"),
        (null.into(), "/dev/null"),
        (epoll, "anon_inode:[eventpoll]"),
    ] {
        let refused = PeerFd::new(fd).expect_err(name);
        assert!(refused.found.starts_with(name), "{refused}");
    }
    assert_eq!(
        PeerFd::new(eventfd(0, EventfdFlags::empty()).expect("eventfd")).map(|fd| fd.kind()),
        Ok(PeerKind::Eventfd)
    );
    assert_eq!(pipe().1.kind(), PeerKind::Pipe);
}

/// Whatever it was before, the descriptor does not survive an exec.
#[test]
fn taken_descriptors_are_close_on_exec() {
    let fd = eventfd(0, EventfdFlags::empty()).expect("eventfd");
    fcntl_setfd(&fd, FdFlags::empty()).expect("F_SETFD");
    let peer = PeerFd::new(fd).expect("eventfd");
    assert!(
        fcntl_getfd(peer.as_fd())
            .expect("F_GETFD")
            .contains(FdFlags::CLOEXEC)
    );
}

/// R4: the callback of a descriptor attaches another one, signals it, detaches it and waits, all in the same cell.
#[test]
fn r4_callback_uses_its_own_cell() {
    let cell = Arc::new(CallCell::new());
    let (reader, first) = pipe();
    let second = Event::new().expect("eventfd");
    let (own, spare) = (cell.clone(), dup(&second));
    let told = Arc::new(Mutex::new(None));
    let tell = told.clone();
    let release = Release::run(move || {
        let closed = last_writer_gone(&reader);
        drop(own.swap(Some(spare), Release::none()));
        let signalled = own.signal().is_ok();
        *tell.lock().unwrap() = Some((
            closed,
            signalled,
            own.swap(None, Release::none()).wait().is_ok(),
        ));
    });
    drop(cell.swap(Some(first), release));
    assert!(cell.swap(None, Release::none()).wait().is_ok());
    assert_eq!(*told.lock().unwrap(), Some((true, true, true)));
    assert_eq!(count(&second), 1);
}

/// A callback that panics ends nobody else, and what comes after it still runs.
#[test]
fn panic_in_a_callback_stops_there() {
    let cell = CallCell::new();
    let (_reader, writer) = pipe();
    drop(cell.swap(
        Some(writer),
        Release::run(|| panic!("expected: a callback's own trouble")),
    ));
    let (release, ran) = flag();
    let ticket = cell.swap(None, release);
    assert!(ticket.is_done());
    assert_eq!(ran.load(SeqCst), 1);
}

/// The bound: with all other slots pinned a new descriptor is refused, closed, its release run; the old one goes as asked.
#[test]
fn ninth_unclosed_descriptor_is_refused() {
    let cell = CallCell::new();
    let mut pins = Vec::new();
    let mut readers = Vec::new();
    for _ in 0..8 {
        let (reader, writer) = pipe();
        let ticket = cell.swap(Some(writer), Release::none());
        assert!(!ticket.refused());
        pins.push(cell.pin().expect("attached"));
        readers.push(reader);
    }
    let (reader, writer) = pipe();
    let (release, ran) = flag();
    let ticket = cell.swap(Some(writer), release);
    assert!(ticket.refused() && !ticket.is_done());
    assert!(last_writer_gone(&reader));
    assert_eq!(ran.load(SeqCst), 1);
    assert!(!cell.is_attached());
    pins.clear();
    assert!(ticket.wait().is_ok());
    assert!(readers.iter().all(last_writer_gone));
    let (_reader, writer) = pipe();
    assert!(!cell.swap(Some(writer), Release::none()).refused());
}

/// An event is readable from the first notify to the clear, however often it was notified, also when its counter is full.
#[test]
fn event_is_level_triggered() {
    let event = Event::new().expect("eventfd");
    assert!(!event.clear());
    event.notify();
    event.notify();
    assert!(poll_now(event.as_fd(), PollFlags::IN).contains(PollFlags::IN));
    assert!(event.clear());
    assert!(!event.clear());
    fill(&event);
    event.notify();
    assert!(event.clear() && !event.clear());
}

/// Nothing armed: a detach closes at once.
#[test]
fn idle_kick_closes_at_once() {
    let (reader, writer) = pipe();
    let (release, ran) = flag();
    let mut source = KickSource::new(writer, release);
    assert_eq!(source.arm(|_, _| Err("queue full")), Err("queue full"));
    let detaching = source.begin_detach();
    assert!(detaching.cancel.is_none() && detaching.ticket.is_done() && source.is_closed());
    assert!(last_writer_gone(&reader));
    assert_eq!(ran.load(SeqCst), 1);
}

/// R6: something armed: only the last completion closes; the owner's own wait is refused, another thread's ends.
#[test]
fn r6_armed_kick_closes_with_its_last_completion() {
    let (reader, writer) = pipe();
    let mut source = KickSource::new(writer, Release::none());
    let mut poll = 0;
    assert_eq!(
        source.arm(|_, token| {
            poll = token;
            Ok::<(), ()>(())
        }),
        Ok(true)
    );
    assert_eq!(
        source.arm(|_, _| Err("not asked")),
        Ok(false),
        "one at a time"
    );
    assert_eq!(source.completion(poll, 1, true), KickEvent::Fire);
    let detaching = source.begin_detach();
    assert_eq!(detaching.cancel, Some(poll));
    assert_eq!(source.begin_detach().cancel, None, "one cancel is enough");
    assert_eq!(source.completion(poll, 1, true), KickEvent::Stale);
    assert!(!last_writer_gone(&reader) && !detaching.ticket.is_done());
    let again = source.begin_detach().ticket;
    assert_eq!(again.wait(), Err(WouldDeadlock));
    let waiter = thread::spawn(move || detaching.ticket.wait());
    assert_eq!(
        source.completion(poll, -libc::ECANCELED, false),
        KickEvent::Closed
    );
    assert!(last_writer_gone(&reader));
    assert!(waiter.join().expect("waiter").is_ok());
}

/// A poll that the kernel ends by itself is armed again with a new token; the old token means nothing any more.
#[test]
fn r8_rearmed_kick_has_a_new_token() {
    let (_reader, writer) = pipe();
    let mut source = KickSource::new(writer, Release::none());
    let mut tokens = BTreeSet::new();
    let mut last = 0;
    for result in [1, -libc::ENOMEM, 1] {
        source
            .arm(|_, token| {
                last = token;
                Ok::<(), ()>(())
            })
            .expect("queued");
        assert!(tokens.insert(last));
        let stale = tokens.iter().copied().find(|&token| token != last);
        if let Some(stale) = stale {
            assert_eq!(source.completion(stale, 1, true), KickEvent::Stale);
        }
        let expected = if result < 0 {
            KickEvent::Failed(libc::ENOMEM)
        } else {
            KickEvent::FireRearm
        };
        assert_eq!(source.completion(last, result, false), expected);
        assert!(!source.is_armed());
    }
}
