//! Counted event descriptors that detach without a race.
// SKELETON: signatures other crates build against; the bodies are the notifier's author's.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Our own eventfd (CLOEXEC, NONBLOCK): how one thread wakes another.
pub struct Event(OwnedFd);
impl Event {
    pub fn new() -> io::Result<Event> { todo!() }
    /// Makes the descriptor readable. Never blocks; a full counter is already readable.
    pub fn notify(&self) { todo!() }
    /// Takes the count back to zero; true if it was not.
    pub fn clear(&self) -> bool { todo!() }
}
impl AsFd for Event { fn as_fd(&self) -> BorrowedFd<'_> { self.0.as_fd() } }

/// A descriptor given by the peer for kick, call or err: an eventfd or a pipe, nothing else; CLOEXEC.
pub struct PeerFd(OwnedFd);
impl PeerFd {
    /// Refuses every other kind (sockets, files, directories).
    pub fn new(fd: OwnedFd) -> Result<PeerFd, WrongKind> { let _ = fd; todo!() }
}
impl AsFd for PeerFd { fn as_fd(&self) -> BorrowedFd<'_> { self.0.as_fd() } }

/// Neither an eventfd nor a pipe.
#[derive(Debug, Clone)]
pub struct WrongKind { pub found: String }

/// Runs exactly once, when the descriptor is closed, under no lock.
pub struct Release(#[allow(dead_code)] Option<Box<dyn FnOnce() + Send>>);
impl Release {
    pub fn none() -> Release { Release(None) }
    pub fn run(f: impl FnOnce() + Send + 'static) -> Release { Release(Some(Box::new(f))) }
}

/// The call (or err) descriptor of a ring, shared by whoever signals and whoever swaps.
pub struct CallCell {}
#[derive(Debug)]
pub enum SignalError { /// no descriptor is attached
    Detached, /// the counter is full, or the descriptor would block
    Full, Failed(io::Error) }
impl CallCell {
    pub fn new() -> CallCell { todo!() }
    /// Two read-modify-writes and one write(2); no lock, no allocation.
    pub fn signal(&self) -> Result<(), SignalError> { todo!() }
    /// Detaches the old descriptor, attaches the new one. `on_release` belongs to the OLD registration's... see NOTIFIER.md.
    pub fn swap(&self, new: Option<PeerFd>, on_release: Release) -> DetachTicket { let _ = (new, on_release); todo!() }
    pub fn pin(&self) -> Option<CallPin<'_>> { todo!() }
    pub fn is_attached(&self) -> bool { todo!() }
    /// How many writes reached a descriptor since creation.
    pub fn signals(&self) -> u64 { todo!() }
}
pub struct CallPin<'a> { #[allow(dead_code)] cell: &'a CallCell }
/// Proof that a detach has been asked for; `wait` returns once the old descriptor is closed.
#[must_use]
pub struct DetachTicket {}
#[derive(Debug)] pub struct Detached;
#[derive(Debug)] pub struct WouldDeadlock;
impl DetachTicket {
    pub fn wait(self) -> Result<Detached, WouldDeadlock> { todo!() }
    pub fn is_done(&self) -> bool { todo!() }
}

/// The state of one watched kick descriptor; used by the reactor, on the reactor's thread only.
pub struct KickSource {}
/// Sent to whoever asked for the detach: done when no queued kernel operation names the descriptor and it is closed.
#[must_use]
pub struct KickTicket {}
impl KickTicket {
    pub fn wait(self) { todo!() }
    pub fn is_done(&self) -> bool { todo!() }
}

/// One start of one ring: made at start, closed once, never reopened (a new start makes a new gate, so a
/// stale user can only ever meet its own closed gate).
/// The worker is the only one who enters; anyone may close.
pub struct RingGate {}
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close { /// no more pops; completions still publish; done when nothing is in flight
    Drain, /// no store to ring or guest memory from the acknowledgement on; done when no pass is inside
    Abandon }
impl RingGate {
    /// `enabled`: whether pops are allowed from the start.
    pub fn new(enabled: bool) -> RingGate { let _ = enabled; todo!() }
    /// Worker side: begin a pass over the ring. None once abandoned, or drained.
    pub fn enter(&self) -> Option<Pass<'_>> { todo!() }
    /// Allows or forbids pops. Returns (via ticket) when no pass that may still pop under the old word is inside.
    pub fn set_enabled(&self, on: bool) -> GateTicket<'_> { let _ = on; todo!() }
    /// `on_done` runs exactly once when the close has taken full effect (drained, or no pass inside). A second close with
    /// Abandon upgrades a drain: both `on_done` run.
    pub fn close(&self, mode: Close, on_done: Release) { let _ = (mode, on_done); todo!() }
    pub fn is_closed(&self) -> Option<Close> { todo!() }
    pub fn is_done(&self) -> bool { todo!() }
}
/// Waits for passes that were inside when it was made (microseconds, never I/O).
#[must_use]
pub struct GateTicket<'a> { #[allow(dead_code)] gate: &'a RingGate }
impl GateTicket<'_> { pub fn wait(self) -> Result<(), WouldDeadlock> { todo!() } }
/// The right to touch the ring and guest memory, for one batch.
pub struct Pass<'a> { #[allow(dead_code)] gate: &'a RingGate }
impl Pass<'_> {
    /// Running: new requests may be taken. Looked at once at entry; may be asked again between batches.
    pub fn may_pop(&self) -> bool { todo!() }
    /// Ends the pass and states how many requests the ring has in flight now; the last one out of a closed gate finishes it.
    pub fn leave(self, in_flight: u32) { let _ = in_flight; todo!() }
}
