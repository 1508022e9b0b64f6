//! Front ends come and go.

use crate::{
    harness::{self, Bench},
    raw::*,
};
use outboard_vhost_user::Limits;

#[test]
fn one_front_end_after_the_other() {
    let bench = Bench::new();
    for _ in 0..20 {
        let front = bench.connect();
        front.negotiate(F_VERSION_1 | F_PROTOCOL);
        // Some begin anew on the same connection.
        front.negotiate(F_VERSION_1 | F_PROTOCOL);
    }
    bench.quiet();
}

#[test]
fn a_second_front_end_is_turned_away_at_once() {
    let bench = Bench::new();
    let first = bench.connect();
    first.alive();
    for _ in 0..20 {
        assert_eq!(bench.connect().closed(), []);
        first.alive();
    }
    drop(first);
    let next = bench.connect();
    next.alive();
    drop(next);
    bench.quiet();
}

/// Whoever comes after the first has closed its end is never taken for a second one.
#[test]
fn the_next_front_end_may_come_before_the_last_is_cleared_away() {
    let bench = Bench::new();
    for _ in 0..200 {
        let front = bench.connect();
        front.alive();
        drop(front);
    }
    bench.quiet();
}

#[test]
fn stop_closes_the_session_and_the_listener() {
    let bench = Bench::new();
    let front = bench.connect();
    front.alive();
    assert!(!bench.server.wait(Some(std::time::Duration::ZERO)));
    bench.server.stop();
    assert_eq!(front.closed(), []);
    assert!(bench.server.wait(Some(PATIENCE)));
    assert!(bench.server.wait(None), "the end stays");
    harness::eventually("no thread is left", || harness::sessions() == 0);
}

#[test]
fn stop_without_a_front_end() {
    let bench = Bench::new();
    bench.server.stop();
    assert!(bench.server.wait(Some(PATIENCE)));
}

/// A front end that does not read its reply cannot keep the server from stopping.
#[test]
fn stop_while_a_reply_is_unread() {
    let bench = Bench::new();
    let front = bench.connect();
    front.0.set_nonblocking(true).unwrap();
    let bytes = message(GET_FEATURES, VERSION, &[]).repeat(100);
    let mut sent = 0;
    // Until nothing is taken for a while: the session is stuck in its reply.
    let mut stuck = 0;
    while stuck < 50 {
        if std::io::Write::write(&mut (&front.0), &bytes).is_ok() {
            stuck = 0;
        } else {
            stuck += 1;
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        sent += 1;
        assert!(sent < 1_000_000);
    }
    bench.server.stop();
    assert!(bench.server.wait(Some(PATIENCE)));
}

#[test]
fn a_connected_front_end_takes_the_server_with_it() {
    let _turn = harness::take_turn();
    let before = harness::descriptors();
    let (server, front, echo, pool) = harness::connected(Limits::default());
    front.negotiate(F_VERSION_1 | F_PROTOCOL);
    assert!(!server.wait(Some(std::time::Duration::ZERO)));
    drop(front);
    assert!(server.wait(Some(PATIENCE)));
    drop((server, echo, pool));
    harness::eventually("descriptors are back", || harness::descriptors() == before);
}

#[test]
fn a_connected_server_can_be_stopped() {
    let _turn = harness::take_turn();
    let (server, front, _echo, _pool) = harness::connected(Limits::default());
    front.alive();
    server.stop();
    assert_eq!(front.closed(), []);
    assert!(server.wait(Some(PATIENCE)));
}

/// No more descriptors for this process than are open, until dropped.
struct Full {
    limit: rustix::process::Rlimit,
    _fillers: Vec<std::os::fd::OwnedFd>,
}

impl Full {
    fn new() -> Full {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let limit = getrlimit(Resource::Nofile);
        let highest = std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u64>().ok())
            .max();
        // Every number up to the highest is given away, so that none is left below it.
        let mut fillers = Vec::new();
        loop {
            let fd = eventfd();
            let number = u64::try_from(std::os::fd::AsRawFd::as_raw_fd(&fd)).unwrap();
            if Some(number) > highest {
                break;
            }
            fillers.push(fd);
        }
        let current = highest.map(|n| n + 1);
        setrlimit(Resource::Nofile, Rlimit { current, ..limit }).unwrap();
        Full {
            limit,
            _fillers: fillers,
        }
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        rustix::process::setrlimit(rustix::process::Resource::Nofile, self.limit).unwrap();
    }
}

/// Descriptors that the kernel could not hand over must not leave a message that looks as if it had none.
#[test]
fn descriptors_lost_for_want_of_numbers_end_the_session() {
    use std::os::fd::AsFd;
    let bench = Bench::new();
    let call = eventfd();
    bench.mark();
    let front = bench.connect();
    front.negotiate(F_VERSION_1 | F_PROTOCOL);
    {
        let _full = Full::new();
        assert!(front.send(
            SET_VRING_CALL,
            NEED_REPLY,
            &0_u64.to_ne_bytes(),
            &[call.as_fd()]
        ));
        assert_eq!(front.closed(), []);
    }
    drop(front);
    bench.quiet();
}

/// A server that cannot accept for want of descriptors goes on when there are some.
#[test]
fn a_front_end_that_comes_when_descriptors_have_run_out_is_served_later() {
    use rustix::net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
    };
    let bench = Bench::new();
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let front = {
        let _full = Full::new();
        connect(&socket, &SocketAddrUnix::new(bench.path()).unwrap()).unwrap();
        let front = Raw(socket.into());
        assert!(front.send(GET_FEATURES, 0, &[], &[]));
        front
    };
    front.0.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(front.reply().code, GET_FEATURES);
    drop(front);
    bench.quiet();
}
