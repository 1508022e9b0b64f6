//! Virtqueues, guest memory and the device contract (virtio 1.3).
//!
//! - [`memory`]: what of the guest's memory the front end shared, mapped and checked once, immutable from then on.
//! - [`queue`]: one virtqueue, owned outright by one worker; guest bytes in, checked [`queue::Chain`]s out.
//! - [`device`]: what a device model offers to whoever carries its queues. A device knows queues and memory, never sockets.
//! - `mock` (feature `mock`): the driver's side of a ring, for the tests of every crate that serves queues.
//!
//! Everything read from guest memory is hostile: it is copied once, checked as a copy, and may change the next moment.
pub mod device;
pub mod memory;
#[cfg(any(test, feature = "mock"))]
pub mod mock;
pub mod queue;
