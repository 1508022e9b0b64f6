//! Workers: threads that own running rings outright. Start consumes, stop returns.
use outboard_notifier::{CallCell, Close, PeerFd, Release, RingGate};
use outboard_virtio::{device::Device, memory::MemoryMap, queue::QueueConfig};
use std::{io, sync::Arc};

/// Threads shared by all devices of the process; one reactor each.
pub struct WorkerPool {}
impl WorkerPool {
    pub fn new(threads: usize) -> io::Result<Arc<WorkerPool>> { let _ = threads; todo!() }
    /// Gives the ring to the least loaded worker. Fails when the ring's addresses do not resolve or the device refuses.
    pub fn start(&self, ring: RingStart) -> Result<RunningRing, StartError> { let _ = ring; todo!() }
}
#[derive(Debug, thiserror::Error)] #[error("{0}")] pub struct StartError(pub String);

/// Everything a worker needs to run a ring; consumed by `start`.
pub struct RingStart {
    /// device name, for logs
    pub name: Arc<str>,
    pub index: u16,
    pub config: QueueConfig,
    pub memory: Arc<MemoryMap>,
    /// None: the front end wants polling (NOFD)
    pub kick: Option<PeerFd>,
    pub call: Arc<CallCell>,
    pub err: Arc<CallCell>,
    /// pops allowed from the start
    pub enabled: bool,
    pub device: Arc<dyn Device>,
    /// Runs (on the worker) when the ring broke or the worker lost it: the session logs, and may close.
    pub on_broken: Arc<dyn Fn(u16, String) + Send + Sync>,
}
/// The session's end of a running ring. Dropping it abandons the ring.
pub struct RunningRing {}
impl RunningRing {
    pub fn gate(&self) -> &Arc<RingGate> { todo!() }
    /// When this returns, no request is popped any more (off), or the ring was asked to look at avail once (on).
    pub fn set_enabled(&self, on: bool) { let _ = on; todo!() }
    /// Replaces the watched descriptor; looks at avail once. Returns when the old one is closed and no SQE names it.
    pub fn swap_kick(&self, kick: Option<PeerFd>) { let _ = kick; todo!() }
    /// Returns when the ring resolved its addresses in the new map; requests in flight keep the old one alive.
    pub fn set_memory(&self, memory: Arc<MemoryMap>) -> Result<(), StartError> { let _ = memory; todo!() }
    /// Detaches the kick, closes the gate, waits for nothing: `on_done` runs (any thread) when the ring is handed back, and
    /// `StopTicket::take` then gives it. Drain waits for I/O in flight and publishes it; Abandon does not.
    pub fn stop(self, mode: Close, on_done: Release) -> StopTicket { let _ = (mode, on_done); todo!() }
}
/// The claim to a ring being stopped.
pub struct StopTicket {}
impl StopTicket {
    /// A drain that is no longer wanted (hang-up): nothing is published from here on.
    pub fn abandon(&self) { todo!() }
    /// The proof of quiescence, once `on_done` ran. None: not yet.
    pub fn take(&mut self) -> Option<StoppedRing> { todo!() }
}
/// What a stopped ring leaves: nobody touches it any more.
#[derive(Debug, Clone, Copy)]
pub struct StoppedRing { pub index: u16, pub next_avail: u16, pub next_used: u16, pub counters: RingCounters }
/// Since the ring's start.
#[derive(Debug, Default, Clone, Copy)]
pub struct RingCounters { pub kicks: u64, pub calls: u64, pub requests: u64, pub passes: u64 }
