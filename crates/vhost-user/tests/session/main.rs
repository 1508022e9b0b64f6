//! The session seen from the front end's side of the socket.
//!
//! One process, because the descriptors of the process are watched: tests take turns, and each shows that it left nothing
//! open. The driver of the messages ([`raw`]) has numbers and framing of its own.

// Panicking is how tests and their helpers fail.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod channel;
mod framing;
mod guest;
mod harness;
mod hostile;
mod life;
mod negotiation;
mod raw;
mod rings;
mod rust_vmm;
mod storm;
mod table;
