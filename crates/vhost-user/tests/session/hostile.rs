//! A front end that wants to be kept: it passes ends of connections, so that we would hold the other end of our own.

use crate::{
    harness::{self, Bench, sessions},
    raw::*,
};
use outboard_vhost_user::Limits;
use std::os::{
    fd::AsFd,
    unix::net::{UnixDatagram, UnixStream},
};

/// Rounds enough that a thread or descriptor kept per round could not be overlooked.
const ROUNDS: usize = 54;

#[test]
fn its_own_end_as_kick_call_or_err() {
    let bench = Bench::new();
    for round in 0..ROUNDS {
        let front = bench.connect();
        front.alive();
        let code = [SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR][round % 3];
        assert!(front.send(code, 0, &0_u64.to_ne_bytes(), &[front.0.as_fd()]));
        bench.gone(front);
    }
    bench.quiet();
}

#[test]
fn its_own_end_as_channel() {
    let bench = Bench::new();
    for _ in 0..ROUNDS {
        let front = bench.connect();
        // Accepted: a connection that still waits in the listener's queue is no session yet.
        front.alive();
        assert!(front.send(SET_PROTOCOL_FEATURES, 0, &PROTOCOL.to_ne_bytes(), &[]));
        assert!(front.send(SET_BACKEND_REQ_FD, 0, &[], &[front.0.as_fd()]));
        bench.gone(front);
    }
    bench.quiet();
}

/// The same with a connection that has no name to tell it by.
#[test]
fn its_own_end_of_a_socket_pair_as_channel() {
    let _turn = harness::take_turn();
    let before = harness::descriptors();
    for _ in 0..10 {
        let (server, front, echo, pool) = harness::connected(Limits::default());
        assert!(front.send(SET_PROTOCOL_FEATURES, 0, &PROTOCOL.to_ne_bytes(), &[]));
        assert!(front.send(SET_BACKEND_REQ_FD, 0, &[], &[front.0.as_fd()]));
        drop(front);
        assert!(
            server.wait(Some(PATIENCE)),
            "the session holds its own other end"
        );
        drop((server, echo, pool));
    }
    harness::eventually("descriptors are back", || harness::descriptors() == before);
}

/// The end is not given but lies unread in what is given.
#[test]
fn its_own_end_in_the_queue_of_a_channel() {
    let bench = Bench::new();
    for _ in 0..ROUNDS {
        let front = bench.connect();
        // Accepted: a connection that still waits in the listener's queue is no session yet.
        front.alive();
        assert!(front.send(SET_PROTOCOL_FEATURES, 0, &PROTOCOL.to_ne_bytes(), &[]));
        let (mine, given) = UnixStream::pair().unwrap();
        let mine = Raw(mine);
        assert!(mine.bytes(&[0], &[front.0.as_fd()]));
        assert!(front.send(SET_BACKEND_REQ_FD, 0, &[], &[given.as_fd()]));
        drop((mine, given));
        bench.gone(front);
    }
    bench.quiet();
}

/// ... or is sent there afterwards.
#[test]
fn its_own_end_into_the_queue_of_a_channel_in_use() {
    let bench = Bench::new();
    for _ in 0..ROUNDS {
        let front = bench.connect();
        // Accepted: a connection that still waits in the listener's queue is no session yet.
        front.alive();
        assert!(front.send(SET_PROTOCOL_FEATURES, 0, &PROTOCOL.to_ne_bytes(), &[]));
        let (mine, given) = UnixStream::pair().unwrap();
        front.ok(SET_BACKEND_REQ_FD, &[], &[given.as_fd()]);
        drop(given);
        let mine = Raw(mine);
        assert!(
            !mine.bytes(&[0], &[front.0.as_fd()]),
            "the channel takes something"
        );
        bench.gone(front);
    }
    bench.quiet();
}

/// Two front ends each give the other's end: neither session would see its hang-up.
#[test]
fn ends_given_crosswise() {
    let bench = Bench::new();
    let (_, device) = harness::echo();
    let pool = outboard_vhost_user::worker::WorkerPool::new(1).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("second");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let endpoint = outboard_vhost_user::server::Endpoint::Listen(listener);
    let server =
        outboard_vhost_user::server::Server::start("second", device, pool, endpoint).unwrap();
    for _ in 0..ROUNDS {
        let (one, two) = (bench.connect(), Raw::connect(&path));
        one.alive();
        two.alive();
        for (front, other) in [(&one, &two), (&two, &one)] {
            front.send(SET_PROTOCOL_FEATURES, 0, &PROTOCOL.to_ne_bytes(), &[]);
            front.send(SET_BACKEND_REQ_FD, 0, &[], &[other.0.as_fd()]);
        }
        drop((one, two));
        harness::eventually("both sessions end", || sessions() == 2);
    }
    server.stop();
    assert!(server.wait(Some(PATIENCE)));
}

#[test]
fn descriptors_of_the_wrong_kind_end_the_session() {
    let bench = Bench::new();
    let (stream, _a) = UnixStream::pair().unwrap();
    let (datagram, _b) = UnixDatagram::pair().unwrap();
    let directory = std::fs::File::open("/").unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    let file = memfd(4096);
    let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
    let fds = [
        stream.as_fd(),
        datagram.as_fd(),
        directory.as_fd(),
        null.as_fd(),
        file.as_fd(),
        epoll.as_fd(),
    ];
    bench.mark();
    for code in [SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR] {
        for (i, fd) in fds.iter().enumerate() {
            let front = bench.connect();
            front.negotiate(F_VERSION_1 | F_PROTOCOL);
            // With an acknowledgement asked for: this is no refusal, it is the end.
            assert!(front.send(code, NEED_REPLY, &0_u64.to_ne_bytes(), &[*fd]));
            assert_eq!(front.closed(), [], "request {code}, descriptor {i}");
        }
    }
    bench.quiet();
}
