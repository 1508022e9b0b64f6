//! The back-end channel: what is taken, and what is said on it.

use crate::{
    harness::{Bench, eventually},
    raw::*,
};
use std::{
    io::Read,
    net::TcpListener,
    os::{
        fd::AsFd,
        unix::net::{UnixDatagram, UnixListener, UnixStream},
    },
};

/// QEMU sets the channel before SET_OWNER and SET_FEATURES.
fn front_with_channel(bench: &Bench) -> (Raw, UnixStream) {
    let (mine, given) = UnixStream::pair().unwrap();
    let front = bench.connect();
    assert!(front.send(SET_PROTOCOL_FEATURES, 0, &PROTOCOL.to_ne_bytes(), &[]));
    front.ok(SET_BACKEND_REQ_FD, &[], &[given.as_fd()]);
    mine.set_read_timeout(Some(PATIENCE)).unwrap();
    (front, mine)
}

#[test]
fn a_changed_configuration_is_told_without_asking_for_a_reply() {
    let bench = Bench::new();
    let (front, mut mine) = front_with_channel(&bench);
    for round in 0..3 {
        bench.echo.change();
        let mut got = [0; 12];
        mine.read_exact(&mut got).expect("a message");
        // CONFIG_CHANGE_MSG, version 1, no need_reply, no body
        assert_eq!(got.as_slice(), header(2, VERSION, 0), "round {round}");
    }
    drop(front);
    let rest = mine.read(&mut [0; 12]).unwrap();
    assert_eq!(rest, 0, "nothing else was said, and our end is closed");
    drop(mine);
    bench.quiet();
}

/// Changes that the front end has not read of are not piled up, and never hold the session.
#[test]
fn a_channel_that_nobody_reads_holds_nothing_up() {
    let bench = Bench::new();
    let (front, mut mine) = front_with_channel(&bench);
    for _ in 0..100_000 {
        bench.echo.change();
    }
    front.alive();
    // The last change is told in any case: at most one message is owed, and it comes when there is room.
    mine.set_nonblocking(true).unwrap();
    while mine.read(&mut [0; 65536]).is_ok_and(|n| n > 0) {}
    bench.echo.change();
    mine.set_nonblocking(false).unwrap();
    let mut got = [0; 12];
    mine.read_exact(&mut got).expect("a message");
    drop((front, mine));
    bench.quiet();
}

#[test]
fn a_channel_whose_other_end_is_gone_is_forgotten() {
    let bench = Bench::new();
    let (front, mine) = front_with_channel(&bench);
    drop(mine);
    bench.echo.change();
    front.alive();
    let (again, given) = UnixStream::pair().unwrap();
    front.ok(SET_BACKEND_REQ_FD, &[], &[given.as_fd()]);
    bench.echo.change();
    (&again)
        .read_exact(&mut [0; 12])
        .expect("the new channel works");
    drop((front, again, given));
    bench.quiet();
}

#[test]
fn without_a_channel_changes_go_unsaid() {
    let bench = Bench::new();
    let front = bench.connect();
    front.alive();
    eventually("the session listens", || bench.echo.is_listened_to());
    bench.echo.change();
    front.alive();
    drop(front);
    bench.quiet();
}

#[test]
fn what_is_no_connected_unix_stream_ends_the_session() {
    let bench = Bench::new();
    let dir = tempfile::tempdir().unwrap();
    let (datagram, _other) = UnixDatagram::pair().unwrap();
    let listening = UnixListener::bind(dir.path().join("l")).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let file = memfd(10);
    let event = eventfd();
    let fds = [
        datagram.as_fd(),
        listening.as_fd(),
        tcp.as_fd(),
        file.as_fd(),
        event.as_fd(),
    ];
    bench.mark();
    for (i, fd) in fds.into_iter().enumerate() {
        let front = bench.connect();
        assert!(front.send(SET_PROTOCOL_FEATURES, 0, &PROTOCOL.to_ne_bytes(), &[]));
        assert!(front.send(SET_BACKEND_REQ_FD, NEED_REPLY, &[], &[fd]));
        assert_eq!(front.closed(), [], "case {i}");
    }
    bench.quiet();
}
