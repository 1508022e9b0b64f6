//! Virtqueues, guest memory and the device contract (virtio 1.3).
// SKELETON: signatures other crates build against; the bodies are the author's.
pub mod device;
pub mod memory;
pub mod queue;
