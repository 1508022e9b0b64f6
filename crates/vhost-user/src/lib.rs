//! The vhost-user session: messages, negotiation, memory table, ring life-cycle, workers.
//!
//! A [`server::Server`] listens on a socket and gives each front end a session, one at a time. The session reads messages
//! with a loop of its own (`wire`), on the message types of the `vhost` crate, because the peer is not trusted: whatever
//! it sends, stops sending, or passes as descriptor, the session either obeys the protocol or ends, and everything it
//! held goes with it. Rings run on the threads of a [`worker::WorkerPool`], which owns them outright while they run.

mod channel;
mod name;
pub mod server;
mod session;
mod wire;
pub mod worker;

pub use name::DeviceName;
pub use wire::Limits;
