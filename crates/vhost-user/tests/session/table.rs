//! Every message in every state.

use crate::{
    guest::{FEATURES, Guest, region_of},
    harness::{Bench, eventually, sessions},
    raw::*,
};
use std::os::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    unix::net::UnixStream,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// connected
    Fresh,
    /// protocol features acknowledged, features not yet
    Protocol,
    /// no protocol feature acknowledged, but the features, with the transport's bit
    Features,
    /// features acknowledged without the transport's bit
    Legacy,
    /// everything acknowledged, memory given
    Negotiated,
    /// ring 0 runs
    Running,
    /// it was stopped by GET_VRING_BASE
    Stopped,
    /// after RESET_DEVICE
    Reset,
}

const STATES: [State; 8] = [
    State::Fresh,
    State::Protocol,
    State::Features,
    State::Legacy,
    State::Negotiated,
    State::Running,
    State::Stopped,
    State::Reset,
];

#[derive(Debug, PartialEq, Eq)]
enum Effect {
    /// a reply of its own
    Answer,
    /// acknowledged: it worked
    Yes,
    /// acknowledged: it did not
    No,
    /// nothing is sent, the session goes on
    Nothing,
    /// the session ends
    End,
}

/// What the specification wants. Everything is sent with need_reply.
fn expected(code: u32, state: State) -> Effect {
    let ack = !matches!(state, State::Fresh | State::Features);
    let done = || if ack { Effect::Yes } else { Effect::Nothing };
    let refused = || if ack { Effect::No } else { Effect::End };
    let protocol = ack;
    match code {
        GET_FEATURES | GET_PROTOCOL_FEATURES | GET_QUEUE_NUM => Effect::Answer,
        GET_VRING_BASE => Effect::Answer,
        SET_FEATURES | SET_OWNER | RESET_OWNER => done(),
        // It turns on the acknowledgement that it asks for.
        SET_PROTOCOL_FEATURES => Effect::Yes,
        SET_VRING_NUM | SET_VRING_ADDR | SET_VRING_CALL | SET_VRING_ERR | SET_VRING_KICK => done(),
        SET_VRING_BASE if state == State::Running => refused(),
        SET_VRING_BASE => done(),
        SET_MEM_TABLE => done(),
        SET_VRING_ENABLE => match state {
            State::Fresh => Effect::End,
            State::Protocol | State::Legacy => Effect::No,
            _ => done(),
        },
        SET_BACKEND_REQ_FD | SET_CONFIG | RESET_DEVICE => {
            if protocol {
                Effect::Yes
            } else {
                Effect::End
            }
        }
        GET_CONFIG | GET_MAX_MEM_SLOTS => {
            if protocol {
                Effect::Answer
            } else {
                Effect::End
            }
        }
        ADD_MEM_REG => {
            if protocol {
                Effect::Yes
            } else {
                Effect::End
            }
        }
        REM_MEM_REG => match state {
            State::Fresh | State::Features => Effect::End,
            // nothing to remove
            State::Protocol | State::Legacy => Effect::No,
            // a running ring lies in it
            State::Running => Effect::End,
            _ => Effect::Yes,
        },
        // Those with a reply of their own have no way to say no. (IOTLB_MSG, CREATE_CRYPTO_SESSION, POSTCOPY_ADVISE, POSTCOPY_END,
        // GET_INFLIGHT_FD, GET_STATUS, GET_SHARED_OBJECT, SET_DEVICE_STATE_FD, CHECK_DEVICE_STATE, GET_SHMEM_CONFIG)
        22 | 26 | 28 | 30 | 31 | 40..=44 => Effect::End,
        // SET_LOG_BASE, SET_LOG_FD, SEND_RARP, NET_SET_MTU, SET_VRING_ENDIAN, CLOSE_CRYPTO_SESSION, POSTCOPY_LISTEN, SET_INFLIGHT_FD,
        // GPU_SET_SOCKET, VRING_KICK, SET_STATUS, and what nobody knows
        _ => refused(),
    }
}

struct Kit {
    guest: Guest,
    event: OwnedFd,
    socket: UnixStream,
    file: std::fs::File,
}

fn enter(state: State, kit: &Kit, front: &Raw) {
    let guest = &kit.guest;
    let features = |bits: u64| assert!(front.send(SET_FEATURES, 0, &bits.to_ne_bytes(), &[]));
    let protocol = || assert!(front.send(SET_PROTOCOL_FEATURES, 0, &PROTOCOL.to_ne_bytes(), &[]));
    match state {
        State::Fresh => {}
        State::Protocol => protocol(),
        State::Features => features(FEATURES),
        State::Legacy => {
            protocol();
            features(FEATURES & !F_PROTOCOL);
        }
        State::Negotiated => {
            front.negotiate(FEATURES);
            guest.give_memory(front);
        }
        State::Running => guest.boot(front),
        State::Stopped => {
            guest.boot(front);
            guest.stop(front);
        }
        State::Reset => {
            guest.boot(front);
            front.ok(RESET_DEVICE, &[], &[]);
        }
    }
}

/// A message that is right in itself.
fn proper<'a>(code: u32, kit: &'a Kit, state_now: State) -> (Vec<u8>, Vec<BorrowedFd<'a>>) {
    let (region, _) = region_of(&kit.guest.memory);
    let event = vec![kit.event.as_fd()];
    match code {
        SET_FEATURES => (
            if state_now == State::Legacy {
                FEATURES & !F_PROTOCOL
            } else {
                FEATURES
            }
            .to_ne_bytes()
            .into(),
            vec![],
        ),
        SET_PROTOCOL_FEATURES => (PROTOCOL.to_ne_bytes().into(), vec![]),
        SET_MEM_TABLE => (table(&[region]), vec![kit.file.as_fd()]),
        SET_VRING_NUM => (state(0, 64), vec![]),
        SET_VRING_BASE | GET_VRING_BASE => (state(0, 0), vec![]),
        SET_VRING_ENABLE => (state(0, 1), vec![]),
        SET_VRING_ADDR => (kit.guest.addresses(), vec![]),
        SET_VRING_KICK | SET_VRING_CALL | SET_VRING_ERR => (0_u64.to_ne_bytes().into(), event),
        SET_BACKEND_REQ_FD => (vec![], vec![kit.socket.as_fd()]),
        GET_CONFIG => (config(0, &[0; 8]), vec![]),
        SET_CONFIG => (config(32, &[1]), vec![]),
        // another region, so that it may always be added
        ADD_MEM_REG => (single([1 << 40, 4096, 1 << 40, 0]), vec![kit.file.as_fd()]),
        REM_MEM_REG => (single(region), vec![]),
        // LOG_BASE with its descriptor, as a front end that believes in logging sends it
        6 => (
            [4096_u64, 0].iter().flat_map(|w| w.to_ne_bytes()).collect(),
            vec![kit.file.as_fd()],
        ),
        7 | 33 => (vec![], event),
        32 => (vec![0; 24], vec![kit.file.as_fd()]),
        19 | 20 | 39 => (vec![0; 8], vec![]),
        23 | 35 => (state(0, 0), vec![]),
        _ => (vec![], vec![]),
    }
}

fn seen(front: &Raw, code: u32) -> Effect {
    // Answered by every session that is still there.
    front.send(GET_FEATURES, 0, &[], &[]);
    let mut head = [0; 1];
    match rustix::net::recv(&front.0, &mut head, rustix::net::RecvFlags::PEEK) {
        Ok((0, _)) | Err(rustix::io::Errno::CONNRESET) => return Effect::End,
        Ok(_) => {}
        Err(e) => panic!("{e}"),
    }
    let first = front.reply();
    if first.code == GET_FEATURES && code != GET_FEATURES {
        return Effect::Nothing;
    }
    assert_eq!(first.code, code);
    assert_eq!(front.reply().code, GET_FEATURES, "more than one reply");
    let own = matches!(
        code,
        GET_FEATURES
            | GET_PROTOCOL_FEATURES
            | GET_QUEUE_NUM
            | GET_VRING_BASE
            | GET_CONFIG
            | GET_MAX_MEM_SLOTS
    );
    match first {
        _ if own => Effect::Answer,
        reply if reply.u64() == 0 => Effect::Yes,
        _ => Effect::No,
    }
}

#[test]
fn every_message_in_every_state() {
    let bench = Bench::new();
    let mut wrong = Vec::new();
    for state in STATES {
        for code in (0..=50).chain([255, 1 << 16, u32::MAX]) {
            let guest = Guest::new(0);
            let (_, file) = region_of(&guest.memory);
            let (socket, _other) = UnixStream::pair().unwrap();
            let kit = Kit {
                guest,
                event: eventfd(),
                socket,
                file: file.into(),
            };
            let front = bench.connect();
            enter(state, &kit, &front);
            let (body, fds) = proper(code, &kit, state);
            front.send(code, NEED_REPLY, &body, &fds);
            let (seen, expected) = (seen(&front, code), expected(code, state));
            if seen != expected {
                wrong.push(format!("{code} in {state:?}: {seen:?}, not {expected:?}"));
            }
            drop(front);
            eventually("the session ends", || sessions() == 1);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    bench.quiet();
}
