//! Virtio device models, free of any socket.
// SKELETON: signatures other crates build against.
pub mod blk;
