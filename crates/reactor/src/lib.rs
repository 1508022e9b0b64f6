//! Where a worker thread sleeps: one io_uring for kicks, timers, wake-ups and disk completions.
// SKELETON: signatures other crates build against; the bodies are the reactor's author's.
pub mod buffers;
pub use buffers::Buffers;

use outboard_notifier::{Event, KickTicket, PeerFd};
use std::{io, sync::Arc, time::Duration};

pub struct Config { /// SQ entries (power of two)
    pub entries: u32, /// SQEs submitted per io_uring_enter at most
    pub batch: u32 }
impl Default for Config { fn default() -> Self { Config { entries: 256, batch: 16 } } }

/// Thread-bound (SINGLE_ISSUER | DEFER_TASKRUN): made, used and dropped on one thread.
pub struct Reactor {}
/// What a wait returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake { /// the waker was notified (mailbox)
    Mailbox, /// the watched descriptor with this key was signalled
    Kick { key: u64 }, /// completions or expired timers wait in this port
    Port { port: PortId } }
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)] pub struct WatchId(u64);
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)] pub struct PortId(pub u32);

impl Reactor {
    /// Fails with a text that says what to do when the kernel refuses io_uring.
    pub fn new(config: Config) -> io::Result<Reactor> { let _ = config; todo!() }
    /// Wakes `wait` from any thread.
    pub fn waker(&self) -> Arc<Event> { todo!() }
    /// Multishot poll for input; the descriptor is never read and belongs to the reactor from here on.
    pub fn watch(&mut self, fd: PeerFd, key: u64) -> io::Result<WatchId> { let _ = (fd, key); todo!() }
    /// After this returns no `Wake::Kick` of the watch is reported; the ticket is done when the last queued kernel
    /// operation on the descriptor was reaped and the descriptor closed (needs further `wait`/`submit` calls here).
    pub fn unwatch(&mut self, id: WatchId) -> KickTicket { let _ = id; todo!() }
    /// A private completion queue for one user (a disk queue).
    pub fn port(&self) -> IoPort { todo!() }
    /// Submits at most a batch and sleeps until something happened or `timeout` passed (`Some(ZERO)`: only look).
    /// Appends at most 20 or so wakes.
    pub fn wait(&mut self, wakes: &mut Vec<Wake>, timeout: Option<Duration>) -> io::Result<()> { let _ = (wakes, timeout); todo!() }
    pub fn counters(&self) -> Counters { todo!() }
}
#[derive(Debug, Default, Clone, Copy)]
pub struct Counters { pub enters: u64, pub sleeps: u64, pub sqes: u64, pub cqes: u64 }

/// A user's access to its thread's ring: fill an SQE, set a timer, take completions. Neither Send nor Sync.
/// The owner's state (buffers, files) must outlive its operations: drop only at `in_flight() == 0`; the reactor keeps
/// the slot of a port dropped earlier until its last completion.
pub struct IoPort { _not_send: std::marker::PhantomData<*const ()> }
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortCompletion { pub token: u32, /// as in a CQE: bytes or -errno; 0 for a timer
    pub result: i32 }
impl IoPort {
    pub fn id(&self) -> PortId { todo!() }
    /// A second private completion queue on the same ring, reported under this port's id (`Wake::Port { port: self.id() }`): for
    /// wrappers (storage's `delay`) that need timers beside the operations of the disk they wrap. Same rules as a port.
    pub fn sibling(&self) -> IoPort { todo!() }
    /// Queues one operation; no syscall unless the SQ is full. `user_data` of the entry is overwritten.
    ///
    /// # Safety
    /// Memory and descriptors named by the entry stay valid until its completion is popped, or, for a port that is
    /// dropped before, until the reactor is dropped.
    #[allow(unsafe_code)]
    pub unsafe fn push(&self, entry: io_uring::squeue::Entry, token: u32) -> io::Result<()> { let _ = (entry, token); todo!() }
    /// A completion with `token` and result 0 after `after`.
    pub fn timer(&self, after: Duration, token: u32) { let _ = (after, token); todo!() }
    /// Hands a completion over without the kernel (work done inline): popped in order with the others, and the port is reported ready.
    pub fn complete_now(&self, token: u32, result: i32) { let _ = (token, result); todo!() }
    /// The next finished operation.
    pub fn pop(&self) -> Option<PortCompletion> { todo!() }
    pub fn in_flight(&self) -> u32 { todo!() }
    /// For engines that finish on foreign threads: post a completion from any thread.
    pub fn remote(&self) -> RemotePort { todo!() }
}
#[derive(Clone)] pub struct RemotePort {}
impl RemotePort { pub fn complete(&self, token: u32, result: i32) { let _ = (token, result); todo!() } }
