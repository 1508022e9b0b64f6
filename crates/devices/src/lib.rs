//! Virtio device models, free of any socket.
//!
//! A device knows queues, guest memory and what requests mean. It never sees a vhost-user message or a descriptor that the
//! front end passed; whoever carries its queues (the session of `outboard-vhost-user`, a mock driver) meets it through
//! [`outboard_virtio::device`]. The device folders repeat the same roles: `mod.rs` the device and its options, `config.rs`
//! the configuration space, `request.rs` what one chain means, `queue.rs` the handler that runs on a worker.

pub mod blk;
