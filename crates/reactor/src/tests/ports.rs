use super::*;
use io_uring::{opcode, types::Fd};
use std::io::PipeReader;

/// Queues a read of `buf.len()` bytes.
fn read(port: &IoPort, file: &impl AsRawFd, buf: &mut [u8], offset: u64, token: u32) {
    let read = opcode::Read::new(Fd(file.as_raw_fd()), buf.as_mut_ptr(), buf.len() as u32);
    // SAFETY: the tests keep `buf` and `file` until the completion or the reactor's end.
    unsafe { port.push(read.offset(offset).build(), token) }.unwrap();
}

fn file_of(n: usize) -> std::fs::File {
    let mut file = tempfile::tempfile().unwrap();
    let bytes: Vec<u8> = (0..n).map(|i| (i / 512) as u8).collect();
    file.write_all(&bytes).unwrap();
    file
}

fn pending_read(reactor: &Reactor) -> (IoPort, PipeReader, std::io::PipeWriter, Box<[u8; 8]>) {
    let port = reactor.port();
    let (read_end, write_end) = std::io::pipe().unwrap();
    let mut buf = Box::new([0; 8]);
    read(&port, &read_end, &mut *buf, 0, 5);
    (port, read_end, write_end, buf)
}

#[test]
fn reads_are_submitted_a_batch_per_enter() {
    for (n, batch) in [(64usize, 16u32), (16, 16), (17, 16), (40, 8)] {
        let mut reactor = Reactor::new(Config {
            entries: 256,
            batch,
        })
        .unwrap();
        look(&mut reactor);
        let port = reactor.port();
        let file = file_of(n * 512);
        let mut bufs = vec![[0u8; 512]; n];
        let before = reactor.counters();
        for (i, buf) in bufs.iter_mut().enumerate() {
            read(&port, &file, buf, i as u64 * 512, i as u32);
        }
        assert_eq!(
            reactor.counters().enters,
            before.enters,
            "a push entered the kernel"
        );
        let done = collect(&mut reactor, &port, n);
        let after = reactor.counters();
        let (enters, batches) = (
            after.enters - before.enters,
            n.div_ceil(batch as usize) as u64,
        );
        assert!(
            (batches..=batches + 1).contains(&enters),
            "{n} reads, batch {batch}: {enters} enters"
        );
        assert_eq!(after.sqes - before.sqes, n as u64);
        assert!(done.iter().all(|c| c.result == 512));
        let mut tokens: Vec<_> = done.iter().map(|c| c.token).collect();
        tokens.sort();
        assert_eq!(tokens, (0..n as u32).collect::<Vec<_>>());
        for (i, buf) in bufs.iter().enumerate() {
            assert!(buf.iter().all(|b| *b == i as u8));
        }
        assert_eq!(port.in_flight(), 0);
    }
}

#[test]
fn more_operations_than_the_ring_has_entries() {
    let mut reactor = Reactor::new(Config {
        entries: 4,
        batch: 2,
    })
    .unwrap();
    let port = reactor.port();
    let file = file_of(512);
    let mut bufs = vec![[0u8; 16]; 500];
    for (i, buf) in bufs.iter_mut().enumerate() {
        read(&port, &file, buf, 0, i as u32);
    }
    assert_eq!(port.in_flight(), 500);
    // The completion ring (16) overflows many times.
    let mut tokens: Vec<_> = collect(&mut reactor, &port, 500)
        .iter()
        .map(|c| c.token)
        .collect();
    tokens.sort();
    tokens.dedup();
    assert_eq!(tokens.len(), 500);
}

#[test]
fn completions_that_overflowed_are_found_without_sleeping() {
    let mut reactor = Reactor::new(Config {
        entries: 2,
        batch: 2,
    })
    .unwrap();
    look(&mut reactor);
    let port = reactor.port();
    // Reads that finish only when written to, more than the completion ring (8) holds.
    let pipes: Vec<_> = (0..64).map(|_| std::io::pipe().unwrap()).collect();
    let mut bufs = vec![[0u8; 1]; pipes.len()];
    for (i, (pipe, buf)) in pipes.iter().zip(&mut bufs).enumerate() {
        read(&port, &pipe.0, buf, 0, i as u32);
    }
    while reactor.counters().sqes < 2 + 64 {
        look(&mut reactor);
    }
    pipes.iter().for_each(|p| (&p.1).write_all(&[1]).unwrap());
    let start = Instant::now();
    let mut popped = 0;
    while popped < pipes.len() {
        assert!(start.elapsed() < DEADLINE, "{popped} came");
        look(&mut reactor);
        popped += std::iter::from_fn(|| port.pop()).count();
    }
}

#[test]
fn an_error_is_the_operations_own() {
    let mut reactor = reactor();
    let port = reactor.port();
    let (_read_end, write_end) = std::io::pipe().unwrap();
    let mut buf = [0; 8];
    read(&port, &write_end, &mut buf, 0, 3);
    let done = collect(&mut reactor, &port, 1);
    assert_eq!((done[0].token, done[0].result), (3, -libc::EBADF));
}

#[test]
fn ports_are_reported_until_popped_and_only_to_their_own() {
    let mut reactor = reactor();
    let (a, b) = (reactor.port(), reactor.port());
    assert_ne!(a.id(), b.id());
    a.complete_now(1, 10);
    a.complete_now(2, -5);
    let report = [Wake::Port { port: a.id() }];
    assert_eq!(next(&mut reactor), report);
    assert_eq!(b.pop(), None);
    assert_eq!(a.in_flight(), 2);
    assert_eq!(
        a.pop(),
        Some(PortCompletion {
            token: 1,
            result: 10
        })
    );
    assert_eq!(look(&mut reactor), report);
    assert_eq!(
        a.pop(),
        Some(PortCompletion {
            token: 2,
            result: -5
        })
    );
    assert_eq!(look(&mut reactor), []);
    assert_eq!(a.in_flight(), 0);
}

#[test]
fn a_sibling_is_reported_under_its_elders_id_with_a_queue_of_its_own() {
    let mut reactor = reactor();
    let port = reactor.port();
    let sibling = port.sibling();
    assert_eq!(sibling.id(), port.id());
    sibling.complete_now(1, 0);
    port.complete_now(2, 0);
    assert_eq!(next(&mut reactor), [Wake::Port { port: port.id() }]);
    assert_eq!(sibling.pop().map(|c| c.token), Some(1));
    assert_eq!(port.pop().map(|c| c.token), Some(2));
    drop(port);
    sibling.complete_now(3, 0);
    assert_eq!(next(&mut reactor), [Wake::Port { port: sibling.id() }]);
}

#[test]
fn a_discarded_port_lets_its_reactor_sleep() {
    let mut reactor = reactor();
    let port = reactor.port();
    let sibling = port.sibling();
    port.complete_now(1, 0);
    reactor.discard(port.id());
    sibling.complete_now(2, 0);
    assert_eq!(look(&mut reactor), []);
    let sleeps = reactor.counters().sleeps;
    reactor
        .wait(&mut Vec::new(), Some(Duration::from_millis(1)))
        .unwrap();
    assert_eq!(reactor.counters().sleeps, sleeps + 1);
    assert_eq!((port.pop(), sibling.pop()), (None, None));
}

#[test]
fn a_busy_port_does_not_hide_the_others() {
    let mut reactor = reactor();
    let ports: Vec<_> = (0..50).map(|_| reactor.port()).collect();
    ports.iter().for_each(|p| p.complete_now(0, 0));
    let mut seen = std::collections::HashSet::new();
    for _ in 0..3 {
        // Nobody pops: those not yet reported still get their turn.
        let wakes = look(&mut reactor);
        assert!(wakes.len() <= 20);
        seen.extend(wakes.iter().map(|w| match w {
            Wake::Port { port } => *port,
            other => panic!("{other:?}"),
        }));
    }
    assert_eq!(seen.len(), 50);
}

#[test]
fn timers_come_in_order_and_wake_a_sleeping_reactor() {
    let mut reactor = reactor();
    let (a, b) = (reactor.port(), reactor.port());
    a.timer(Duration::from_millis(12), 3);
    a.timer(Duration::from_millis(2), 1);
    b.timer(Duration::from_millis(5), 9);
    a.timer(Duration::from_millis(7), 2);
    assert_eq!((a.in_flight(), b.in_flight()), (3, 1));
    let start = Instant::now();
    let mut order = Vec::new();
    while order.len() < 4 {
        for wake in next(&mut reactor) {
            assert!(wake == Wake::Port { port: a.id() } || wake == Wake::Port { port: b.id() });
        }
        // Both may have expired when this thread was away for long: within a port the order holds.
        order.extend(std::iter::from_fn(|| a.pop()).map(|c| (c.token, c.result)));
        order.extend(std::iter::from_fn(|| b.pop()).map(|c| (c.token, c.result)));
    }
    assert!(start.elapsed() >= Duration::from_millis(12), "early");
    let of_a: Vec<_> = order.iter().filter(|c| c.0 != 9).collect();
    assert_eq!(of_a, [&(1, 0), &(2, 0), &(3, 0)]);
    assert_eq!(look(&mut reactor), []);
    // No entry was spent on them.
    assert_eq!(reactor.counters().sqes, 2);
}

#[test]
fn foreign_threads_complete_into_a_port() {
    let mut reactor = reactor();
    let port = reactor.port();
    let threads: Vec<_> = (0..4u32)
        .map(|t| {
            let remote = port.remote();
            std::thread::spawn(move || (0..2000).for_each(|i| remote.complete(t * 2000 + i, 7)))
        })
        .collect();
    let done = collect(&mut reactor, &port, 8000);
    threads.into_iter().for_each(|t| t.join().unwrap());
    let mut tokens: Vec<_> = done.iter().map(|c| c.token).collect();
    for t in 0..4 {
        let of_one: Vec<_> = tokens.iter().filter(|x| **x / 2000 == t).collect();
        assert!(
            of_one.is_sorted(),
            "one thread's completions keep their order"
        );
    }
    tokens.sort();
    assert_eq!(tokens, (0..8000).collect::<Vec<_>>());
}

#[test]
fn a_remote_outlives_its_port_and_its_reactor() {
    let mut reactor = reactor();
    let port = reactor.port();
    let remote = port.remote();
    drop(port);
    let heir = reactor.port();
    remote.complete(1, 1);
    assert_eq!(look(&mut reactor), [], "reported for a port that is gone");
    assert_eq!(heir.pop(), None, "given to the next tenant of the place");
    drop(reactor);
    remote.complete(2, 2);
}

#[test]
fn a_port_dropped_with_a_read_pending_keeps_its_place_until_the_completion() {
    let mut reactor = reactor();
    let (port, _read_end, mut write_end, _buf) = pending_read(&reactor);
    look(&mut reactor);
    drop(port);
    let heir = reactor.port();
    write_end.write_all(&[1; 8]).unwrap();
    let before = reactor.counters().cqes;
    let start = Instant::now();
    while reactor.counters().cqes == before {
        assert!(start.elapsed() < DEADLINE);
        assert_eq!(look(&mut reactor), []);
    }
    assert_eq!(heir.pop(), None);
    // Now the place is free: many ports later the numbers have not grown.
    assert_eq!((heir.id().index(), reactor.port().id().index()), (1, 0));
}

#[test]
fn the_end_of_the_reactor_cancels_and_awaits_what_is_pending() {
    let mut reactor = reactor();
    let (port, mut read_end, mut write_end, buf) = pending_read(&reactor);
    let (unsubmitted, _r2, _w2, _buf2) = {
        look(&mut reactor);
        pending_read(&reactor)
    };
    port.timer(Duration::from_secs(3600), 6);
    drop(reactor);
    // The kernel gave both up: the bytes written now go to the next reader, not into the buffer.
    write_end.write_all(&[9; 8]).unwrap();
    let mut got = [0; 8];
    read_end.read_exact(&mut got).unwrap();
    assert_eq!((got, *buf), ([9; 8], [0; 8]));
    let mut results: Vec<_> = std::iter::from_fn(|| port.pop()).collect();
    results.sort_by_key(|c| c.token);
    let cancelled = -libc::ECANCELED;
    assert_eq!(results.len(), 2);
    assert!(matches!(results[0], PortCompletion { token: 5, result } if result < 0));
    assert_eq!(
        results[1],
        PortCompletion {
            token: 6,
            result: cancelled
        }
    );
    assert!(unsubmitted.pop().is_some_and(|c| c.result < 0));
    assert_eq!((port.in_flight(), unsubmitted.in_flight()), (0, 0));
    // SAFETY: never reaches a kernel.
    let refused = unsafe { port.push(opcode::Nop::new().build(), 0) };
    assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::ESHUTDOWN));
    port.timer(Duration::ZERO, 8);
    assert_eq!(
        port.pop(),
        Some(PortCompletion {
            token: 8,
            result: cancelled
        })
    );
}
