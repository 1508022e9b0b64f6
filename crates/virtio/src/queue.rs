//! A virtqueue, owned by one worker: addresses resolved once, walks bounded, publication in batches.
use crate::memory::MemoryLease;
use outboard_reactor::Buffers;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueConfig { /// number of descriptors: power of two, 1..=32768
    pub size: u16, /// guest physical addresses
    pub desc: u64, pub avail: u64, pub used: u64, /// where to go on in the avail ring (SET_VRING_BASE)
    pub next_avail: u16, /// used.idx to start from; None: read it from the ring
    pub next_used: Option<u16>, /// negotiated virtio features (EVENT_IDX, INDIRECT_DESC)
    pub features: u64 }

/// The ring itself is broken: the device stops using it.
#[derive(Debug, thiserror::Error)]
pub enum QueueError { #[error("{0}")] Bad(String) }

/// A request as the driver laid it out: readable bytes, then writable bytes.
/// Must be given back with `Queue::push_used` (or dropped with the queue on abandon).
pub struct Chain { pub head: u16, pub readable: Buffers, pub writable: Buffers }

pub struct Queue {}
impl Queue {
    pub fn new(config: &QueueConfig, memory: MemoryLease) -> Result<Queue, QueueError> { let _ = (config, memory); todo!() }
    /// The next request, if any. One load of avail.idx per batch. An error is a broken ring (bad head, loop, indirect in indirect,
    /// table out of memory, writable before readable, address outside memory).
    pub fn pop(&mut self) -> Result<Option<Chain>, QueueError> { todo!() }
    /// Queues a used element; nothing is visible to the driver before `publish`.
    pub fn push_used(&mut self, head: u16, written: u32) -> Result<(), QueueError> { let _ = (head, written); todo!() }
    /// One release store of used.idx for all pushed elements; true if the driver wants to be signalled.
    pub fn publish(&mut self) -> bool { todo!() }
    /// No kicks wanted (a hint).
    pub fn mute_kicks(&mut self) { todo!() }
    /// Kicks wanted again; true if requests came in meanwhile: the caller must look again.
    pub fn arm_kicks(&mut self) -> bool { todo!() }
    /// Requests are waiting (one acquire load).
    pub fn has_avail(&self) -> bool { todo!() }
    /// Popped, not yet used.
    pub fn in_flight(&self) -> u16 { todo!() }
    pub fn size(&self) -> u16 { todo!() }
    /// For GET_VRING_BASE.
    pub fn next_avail(&self) -> u16 { todo!() }
    pub fn next_used(&self) -> u16 { todo!() }
    pub fn memory(&self) -> &MemoryLease { todo!() }
    /// SET_MEM_TABLE under a running ring: resolves the ring anew; requests in flight keep their old lease.
    pub fn set_memory(&mut self, memory: MemoryLease) -> Result<(), QueueError> { let _ = memory; todo!() }
}
