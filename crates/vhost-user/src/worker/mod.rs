//! Workers: threads that own running rings outright. Start consumes, stop returns.
//!
//! # Who owns what
//! A [`WorkerPool`] is a set of threads with one reactor each, shared by all devices of the process. [`WorkerPool::start`]
//! gives everything a ring needs ([`RingStart`]) to the least loaded of them; what remains outside is a claim, the
//! [`RunningRing`]. Nobody else can touch the queue, the handler or the kick, because nobody else has them: no lock is
//! taken on the request path. [`RunningRing::stop`] turns the claim into a [`StopTicket`], which at the end gives a
//! [`StoppedRing`]: the proof of quiescence that GET_VRING_BASE answers with.
//!
//! # One pass
//! ```text
//! reactor.wait ─► ring scheduled ─► gate.enter ─► complete ─► mute, process (at most 16) ─► complete ─► publish ─► call ─► gate.leave
//!      ▲               └──────────── more to do: again, after the others had their turn ◄─────────────────────────────┘ │
//!      └──── submits what the pass queued, and sleeps if nobody has anything to do ◄── kicks armed, avail looked at once ┘
//! ```
//! The batch is bounded so that results are published while the driver still works on the next requests, and so that no
//! ring waits for another ring's whole queue. What finishes inline is published in the pass that popped it.
//!
//! # Kicks
//! A kick is a hint; what counts is avail.idx. It is looked at once after each event that could have hidden a kick: start,
//! enable, kick swap, memory swap (guarantee 6 of the notifier). So kicks before the ring is enabled are not lost.
//!
//! A ring without a kick descriptor (the front end asked for polling), or whose descriptor the kernel refuses to watch, is
//! *polled*: for 50 µs after its last request without pause, then every 250 µs for a while, then once a millisecond. An idle
//! polled ring thus costs its worker a thousand short wake-ups per second, and a request up to a millisecond: front
//! ends that care give a descriptor.
//!
//! # Calls
//! After `publish` says that the driver wants it, the call cell is signalled inside the pass: when a gate is done, so are
//! its signals. A cell with nothing attached is in order. A full or failing descriptor is the peer's fault: the ring's err
//! cell is signalled, the failure counted, and ring and worker go on. *Attaching* a call descriptor to a started ring, and starting a
//! ring with one attached, owes one signal (guarantee 5): that is the duty of whoever does it, since only they know when it is done.
//!
//! # How a ring ends
//! * **Drained** ([`Close::Drain`]): no more pops; what is in flight completes, is published and signalled.
//! * **Abandoned** ([`Close::Abandon`], a hang-up): from the moment the gate is done, neither the ring nor guest memory nor the
//!   call is touched by this thread. The handler lives on as a *ghost*, with the device and the memory map, until the kernel
//!   has given back its operations; the ring is handed back without waiting for that. It keeps the [`Tenure`] too: whoever
//!   gives the device to somebody else waits for that to be let go.
//! * **Broken** (the handler returned an error): logged once with the ring's state, err signalled, `on_broken` called, and
//!   no more pops. What is in flight still completes, so that a stop can drain.
//! * **Lost** (the handler panicked): abandoned on the spot, reported like a broken ring. Worker and other rings go on.
//!
//! In every case the ring is handed back when its gate is done *and* its kick descriptor closed, with no queued kernel operation
//! naming it. A worker that ends, even by a panic of its own, abandons and hands back all its rings.
//!
//! None of these calls may be made on a worker thread (from `on_broken` or a [`Release`]): those that wait would wait
//! for themselves.

mod handle;
mod mailbox;
mod pool;
mod ring;
mod shared;
mod thread;

pub use handle::{RunningRing, StopTicket};
pub use pool::WorkerPool;

use crate::DeviceName;
use outboard_notifier::{CallCell, PeerFd};
#[cfg(doc)]
use outboard_notifier::{Close, Release};
use outboard_virtio::{device::Device, memory::MemoryMap, queue::QueueConfig};
use std::sync::Arc;

/// A ring that could not be started, or could not follow its memory; the text says why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(pub String);

/// Held by everything that may still change what the device stores. While any of it lives the device is given to nobody else:
/// a write that a dead front end left in the kernel must not land on one that was answered to the next.
pub type Tenure = Arc<dyn Send + Sync>;

/// Everything a worker needs to run a ring; consumed by [`WorkerPool::start`].
pub struct RingStart {
    /// Let go when the last operation of the ring has ended, which after an abandon is later than the hand-back.
    pub tenure: Tenure,
    /// Device name, for logs.
    pub name: DeviceName,
    /// Index of the queue in the device.
    pub index: u16,
    /// Where the ring is, and the negotiated features.
    pub config: QueueConfig,
    /// What its addresses mean.
    pub memory: Arc<MemoryMap>,
    /// `None`: the front end wants polling.
    pub kick: Option<PeerFd>,
    /// Signalled when requests were used.
    pub call: Arc<CallCell>,
    /// Signalled when the ring breaks.
    pub err: Arc<CallCell>,
    /// Requests may be taken from the start.
    pub enabled: bool,
    /// Makes the handler of the queue.
    pub device: Arc<dyn Device>,
    /// Runs on the worker, outside any pass, once: when the ring broke or was lost. With the queue's index and the reason. Must
    /// not block.
    pub on_broken: Arc<dyn Fn(u16, String) + Send + Sync>,
}

/// What a stopped ring leaves: nobody touches it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoppedRing {
    /// Index of the queue in the device.
    pub index: u16,
    /// Where to go on in the avail ring (GET_VRING_BASE).
    pub next_avail: u16,
    /// used.idx as the driver sees it.
    pub next_used: u16,
    /// Every request popped was used and published. False: abandoned.
    pub drained: bool,
    /// Since the ring's start.
    pub counters: RingCounters,
}

/// What a ring did since its start.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct RingCounters {
    /// Wake-ups by the kick descriptor (several kicks may be one wake-up).
    pub kicks: u64,
    /// Writes to the call descriptor.
    pub calls: u64,
    /// Requests popped.
    pub requests: u64,
    /// Looks at the ring.
    pub passes: u64,
    /// Calls that failed: the descriptor was full or refused the write.
    pub call_failures: u64,
}

#[cfg(test)]
mod tests;
