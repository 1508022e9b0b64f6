use super::*;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

/// An eventfd: the peer's end, and ours as the peer would give it.
fn kick() -> (OwnedFd, PeerFd) {
    let ours = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let theirs = ours.try_clone().unwrap();
    (theirs, PeerFd::new(ours).unwrap())
}

fn signal(fd: &OwnedFd) {
    assert_eq!(rustix::io::write(fd, &1u64.to_ne_bytes()), Ok(8));
}

/// True once every other holder of the pipe has closed its write end.
fn hung_up(read_end: &impl AsFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(read_end, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).unwrap();
    fds[0].revents().contains(PollFlags::HUP)
}

/// Waits (and reaps) until the ticket is done.
fn finish(reactor: &mut Reactor, ticket: &KickTicket) {
    let start = Instant::now();
    while !ticket.is_done() {
        assert!(start.elapsed() < DEADLINE, "the detach does not end");
        let mut wakes = Vec::new();
        reactor
            .wait(&mut wakes, Some(Duration::from_millis(100)))
            .unwrap();
    }
}

#[test]
fn a_kick_before_the_watch_fires_at_once() {
    let mut reactor = reactor();
    let (theirs, ours) = kick();
    signal(&theirs);
    reactor.watch(ours, 7).unwrap();
    assert_eq!(next(&mut reactor), [Wake::Kick { key: 7 }]);
    // Not read, so still readable; and yet reported once.
    assert_eq!(look(&mut reactor), []);
    signal(&theirs);
    assert_eq!(next(&mut reactor), [Wake::Kick { key: 7 }]);
}

#[test]
fn the_kick_is_never_read() {
    let mut reactor = reactor();
    let (theirs, ours) = kick();
    reactor.watch(ours, 7).unwrap();
    for _ in 0..3 {
        signal(&theirs);
        next(&mut reactor);
    }
    let mut count = [0; 8];
    rustix::io::read(&theirs, &mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), 3);
}

#[test]
fn a_thousand_kicks_while_away_are_one_report_and_few_completions() {
    let mut reactor = reactor();
    let (theirs, ours) = kick();
    reactor.watch(ours, 7).unwrap();
    assert_eq!(look(&mut reactor), []);
    let before = reactor.counters().cqes;
    for _ in 0..1000 {
        signal(&theirs);
    }
    assert_eq!(next(&mut reactor), [Wake::Kick { key: 7 }]);
    assert_eq!(look(&mut reactor), []);
    assert!(reactor.counters().cqes - before <= 2);
}

#[test]
fn no_kick_is_lost_in_a_storm() {
    use std::sync::atomic::{AtomicU64, Ordering};
    const KICKS: u64 = 50_000;
    let mut reactor = reactor();
    let (theirs, ours) = kick();
    reactor.watch(ours, 1).unwrap();
    let sent = Arc::new(AtomicU64::new(0));
    let counter = sent.clone();
    let thread = std::thread::spawn(move || {
        for _ in 0..KICKS {
            counter.fetch_add(1, Ordering::SeqCst);
            signal(&theirs);
        }
        theirs
    });
    // Whoever is told of a kick sees everything before it; after the last kick, one more report must come.
    let mut seen = 0;
    while seen < KICKS {
        next(&mut reactor);
        seen = sent.load(Ordering::SeqCst);
    }
    drop(thread.join().unwrap());
}

#[test]
fn a_full_completion_ring_loses_no_kick_and_the_poll_lives_on() {
    // Eight completion entries for sixty-four kicks at once.
    let mut reactor = Reactor::new(Config {
        entries: 2,
        batch: 2,
    })
    .unwrap();
    let kicks: Vec<_> = (0..64)
        .map(|key| {
            let (theirs, ours) = kick();
            reactor.watch(ours, key).unwrap();
            theirs
        })
        .collect();
    for round in 0..20 {
        kicks.iter().for_each(signal);
        let mut seen = std::collections::BTreeSet::new();
        while seen.len() < kicks.len() {
            let wakes = next(&mut reactor);
            assert!(wakes.len() <= 20, "a pass must stay short");
            for wake in wakes {
                match wake {
                    Wake::Kick { key } => seen.insert(key),
                    other => panic!("round {round}: {other:?}"),
                };
            }
        }
    }
}

#[test]
fn unwatch_closes_the_descriptor_after_its_last_completion() {
    let mut reactor = reactor();
    let (read_end, write_end) = std::io::pipe().unwrap();
    // A pipe's write end is always writable and never readable: it never fires, it is only held.
    let id = reactor
        .watch(PeerFd::new(write_end.into()).unwrap(), 1)
        .unwrap();
    assert_eq!(look(&mut reactor), []);
    assert!(!hung_up(&read_end));
    let ticket = reactor.unwatch(id).unwrap();
    assert!(
        !ticket.is_done() && !hung_up(&read_end),
        "closed while the kernel holds it"
    );
    finish(&mut reactor, &ticket);
    assert!(hung_up(&read_end), "done, but still open");
    assert!(reactor.unwatch(id).is_none(), "ended twice");
}

#[test]
fn unwatch_before_the_poll_was_ever_submitted() {
    let mut reactor = reactor();
    let (read_end, write_end) = std::io::pipe().unwrap();
    let id = reactor
        .watch(PeerFd::new(write_end.into()).unwrap(), 1)
        .unwrap();
    let ticket = reactor.unwatch(id).unwrap();
    assert!(!hung_up(&read_end), "the queued entry names the number");
    finish(&mut reactor, &ticket);
    assert!(hung_up(&read_end));
}

#[test]
fn no_kick_is_reported_after_unwatch() {
    let mut reactor = reactor();
    let (theirs, ours) = kick();
    let id = reactor.watch(ours, 1).unwrap();
    look(&mut reactor);
    signal(&theirs);
    let ticket = reactor.unwatch(id).unwrap();
    let start = Instant::now();
    while !ticket.is_done() {
        assert!(start.elapsed() < DEADLINE);
        signal(&theirs);
        assert_eq!(look(&mut reactor), []);
    }
}

#[test]
fn a_reused_descriptor_number_is_a_new_watch() {
    let mut reactor = reactor();
    let mut reused = 0;
    let mut last_number = None;
    for key in 0..200 {
        let (theirs, ours) = kick();
        let number = ours.as_fd().as_raw_fd();
        reused += u32::from(last_number == Some(number));
        last_number = Some(number);
        let id = reactor.watch(ours, key).unwrap();
        assert_eq!(look(&mut reactor), [], "the old watch polls the new file");
        signal(&theirs);
        assert_eq!(next(&mut reactor), [Wake::Kick { key }]);
        let ticket = reactor.unwatch(id).unwrap();
        // Never free while the cancel is on its way: a file opened now must not get the number.
        let probe = fcntl_dupfd_cloexec(&theirs, number).unwrap();
        assert_ne!(probe.as_raw_fd(), number);
        fcntl_setfd(&probe, FdFlags::CLOEXEC).unwrap();
        finish(&mut reactor, &ticket);
    }
    assert!(reused > 0, "the test met no reuse");
}

#[test]
fn a_pipe_whose_writer_is_gone_does_not_keep_the_worker_awake() {
    let mut reactor = reactor();
    let (read_end, write_end) = std::io::pipe().unwrap();
    reactor
        .watch(PeerFd::new(read_end.into()).unwrap(), 1)
        .unwrap();
    look(&mut reactor);
    drop(write_end);
    next(&mut reactor);
    let before = reactor.counters().cqes;
    let mut wakes = Vec::new();
    for _ in 0..100 {
        reactor
            .wait(&mut wakes, Some(Duration::from_millis(1)))
            .unwrap();
    }
    assert!(reactor.counters().cqes - before <= 1, "the hang-up storms");
}

#[test]
fn dropping_the_reactor_closes_what_it_watched() {
    let mut reactor = reactor();
    let (read_end, write_end) = std::io::pipe().unwrap();
    reactor
        .watch(PeerFd::new(write_end.into()).unwrap(), 1)
        .unwrap();
    look(&mut reactor);
    drop(reactor);
    assert!(hung_up(&read_end));
}

#[test]
fn a_ticket_is_done_when_the_reactor_is_dropped() {
    let mut reactor = reactor();
    let (_theirs, ours) = kick();
    let id = reactor.watch(ours, 1).unwrap();
    let ticket = reactor.unwatch(id).unwrap();
    drop(reactor);
    assert!(ticket.is_done());
}
