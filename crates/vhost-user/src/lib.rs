//! The vhost-user session: messages, negotiation, memory table, ring life-cycle, workers.
// SKELETON: signatures other crates build against.
pub mod server;
pub mod worker;
