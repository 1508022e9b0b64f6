#![doc = include_str!("../README.md")]

pub mod call;
pub mod gate;
mod here;
pub mod kick;
mod latch;
mod release;
mod sync;

mod event;
#[cfg(not(loom))]
pub mod peer_fd;

pub use call::{CallCell, CallPin, DetachTicket, Detached, SignalError, WouldDeadlock};
pub use event::Event;
pub use gate::{Close, GateTicket, Pass, RingGate};
pub use kick::{Detaching, KickEvent, KickSource, KickTicket};
#[cfg(not(loom))]
pub use peer_fd::{PeerFd, PeerKind, WrongKind};
pub use release::Release;
#[cfg(loom)]
pub use sync::model::{PeerFd, Witness};
