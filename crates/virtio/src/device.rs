//! What a device is to whoever carries its queues (a vhost-user session, a mock driver).
use crate::queue::{Queue, QueueError};
use outboard_reactor::IoPort;
use std::sync::Arc;

/// A device, shared by the session and the workers.
pub trait Device: Send + Sync {
    /// Virtio device id (2: block).
    fn id(&self) -> u32;
    /// Feature bits of the device type, without the ring's and the transport's.
    fn features(&self) -> u64;
    fn max_queues(&self) -> u16;
    fn max_queue_size(&self) -> u16;
    /// The driver's choice (before queues are opened; again after a reset).
    fn ack_features(&self, features: u64);
    /// Size in bytes of the configuration space.
    fn config_size(&self) -> u32;
    /// Copies `data.len()` bytes from `offset`; a range past the end is an error.
    fn read_config(&self, offset: u32, data: &mut [u8]) -> Result<(), ConfigError>;
    fn write_config(&self, offset: u32, data: &[u8]) -> Result<(), ConfigError>;
    /// Back to the state before the first driver.
    fn reset(&self);
    /// Called whenever the configuration changed by itself (resize): the session tells the front end. `None` unsubscribes.
    fn on_config_change(&self, listener: Option<Arc<dyn Fn() + Send + Sync>>);
    /// Makes the handler of one queue, on the worker's thread.
    fn open_queue(&self, setup: QueueSetup) -> Result<Box<dyn QueueHandler>, DeviceError>;
}
pub struct QueueSetup { pub index: u16, /// negotiated features
    pub features: u64, /// for the handler's disk operations
    pub port: IoPort }
#[derive(Debug, thiserror::Error)] #[error("{0}")] pub struct ConfigError(pub String);
#[derive(Debug, thiserror::Error)] #[error("{0}")] pub struct DeviceError(pub String);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress { /// the avail ring is empty
    Empty, /// the budget is used up, or the device is at its limit: call again (after completions)
    More }

/// The meaning of one queue's requests; lives on a worker thread with its queue. The caller holds the ring's pass while it
/// calls `process` or `complete`, and calls `publish` and signals afterwards.
pub trait QueueHandler {
    /// Pops at most `budget` requests, answers what it can at once and starts the rest.
    fn process(&mut self, queue: &mut Queue, budget: u32) -> Result<Progress, QueueError>;
    /// Takes finished disk operations and pushes their requests as used.
    fn complete(&mut self, queue: &mut Queue) -> Result<(), QueueError>;
    /// Requests popped and not yet pushed as used.
    fn in_flight(&self) -> u32;
    /// The ring was abandoned: takes finished operations and touches neither ring nor guest memory. Returns what is still in flight;
    /// at 0 the handler may be dropped.
    fn reap(&mut self) -> u32;
}
