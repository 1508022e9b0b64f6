//! What a device is to whoever carries its queues (a vhost-user session, a mock driver).
//!
//! A [`Device`] is shared by the session and all workers and knows features, configuration space and reset. Each of its running
//! queues has a [`QueueHandler`] of its own on the worker's thread, so nothing on the request path is shared or locked.
//!
//! # One pass over a queue
//! The worker enters the ring's pass (no other thread can stop the ring meanwhile), calls [`QueueHandler::complete`] when disk
//! operations finished and [`QueueHandler::process`] when requests may wait, then publishes the used elements in one go and signals
//! the driver if it wants that. A handler never publishes and never signals, and nothing below the handler calls back: finished
//! operations are values that it fetches.
//!
//! # Lifetime of a handler
//! `open_queue` → (`process` | `complete`)* → dropped at `in_flight() == 0`: the ring was drained.
//! Or → `reap`* → dropped at 0: the ring was abandoned (hang-up), and from the first `reap` on nothing writes to the ring or the guest.
use crate::queue::{Queue, QueueError};
use outboard_reactor::IoPort;
use std::sync::Arc;

/// A device, shared by the session and the workers.
pub trait Device: Send + Sync {
    /// Virtio device id (virtio 1.3, 5; 2: block).
    fn id(&self) -> u32;
    /// Feature bits of the device type, without the ring's and the transport's (virtio 1.3, 2.2).
    fn features(&self) -> u64;
    /// Queues it offers.
    fn max_queues(&self) -> u16;
    /// The most descriptors a queue may have; a power of two.
    fn max_queue_size(&self) -> u16;
    /// The driver's choice (before queues are opened; again after a reset).
    fn ack_features(&self, features: u64);
    /// Size in bytes of the configuration space.
    fn config_size(&self) -> u32;
    /// Copies `data.len()` bytes from `offset`; a range past the end is an error.
    fn read_config(&self, offset: u32, data: &mut [u8]) -> Result<(), ConfigError>;
    /// Writes `data` at `offset`; a range past the end or a field that the driver must not write is an error.
    fn write_config(&self, offset: u32, data: &[u8]) -> Result<(), ConfigError>;
    /// Back to the state before the first driver. No queue is open.
    fn reset(&self);
    /// Called whenever the configuration changed by itself (resize): the session tells the front end. `None` unsubscribes. The
    /// listener may be called on any thread and must not block.
    fn on_config_change(&self, listener: Option<Arc<dyn Fn() + Send + Sync>>);
    /// Makes the handler of one queue, on the worker's thread.
    ///
    /// # Errors
    /// The queue cannot be served (no such index, no file, no memory); the ring is not started.
    fn open_queue(&self, setup: QueueSetup) -> Result<Box<dyn QueueHandler>, DeviceError>;
}

/// What a handler is made from.
pub struct QueueSetup {
    /// Index of the queue, below [`Device::max_queues`].
    pub index: u16,
    /// All negotiated features.
    pub features: u64,
    /// For the handler's disk operations.
    pub port: IoPort,
}

/// An access to the configuration space that it does not allow; the text says which.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// A queue that cannot be served; the text says what failed, on what, and why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DeviceError(pub String);

/// Why [`QueueHandler::process`] came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The avail ring is empty.
    Empty,
    /// The budget is used up, or the device is at its limit: call again (after completions).
    More,
}

/// The meaning of one queue's requests; lives on a worker thread with its queue. The caller holds the ring's pass while it
/// calls `process` or `complete`, and calls `publish` and signals afterwards.
pub trait QueueHandler {
    /// Pops at most `budget` requests, answers what it can at once and starts the rest.
    ///
    /// # Errors
    /// The ring is broken, or a request cannot be answered at all: the worker stops the ring. A request that is merely wrong is
    /// answered with its status.
    fn process(&mut self, queue: &mut Queue, budget: u32) -> Result<Progress, QueueError>;
    /// Takes finished disk operations and pushes their requests as used.
    ///
    /// # Errors
    /// As [`QueueHandler::process`].
    fn complete(&mut self, queue: &mut Queue) -> Result<(), QueueError>;
    /// Requests popped and not yet pushed as used.
    fn in_flight(&self) -> u32;
    /// The ring was abandoned: takes finished operations and touches neither ring nor guest memory. Returns what is still in flight;
    /// at 0 the handler may be dropped.
    fn reap(&mut self) -> u32;
}
