//! What a queue looks like, and what goes in and comes out of its driver.

use vmm_sys_util::eventfd::EventFd;

use crate::ring::RingAddresses;
use crate::slots::Slot;

/// How the driver learns of completions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Completion {
    /// Sleeps on the call eventfd, like a guest with interrupts.
    #[default]
    Event,
    /// Looks at the used index, like a guest that polls; asks for no calls.
    Polled,
}

/// Size and shape of a queue.
#[derive(Clone, Copy, Debug)]
pub struct QueueOptions {
    /// Number of descriptors, a power of two.
    pub size: u16,
    /// Requests that can be in flight.
    pub slots: u16,
    /// Largest data of a request in bytes.
    pub max_data: u32,
    /// Largest number of segments of an indirect table.
    pub max_segments: u16,
    /// Memory region of the ring.
    pub ring_region: usize,
    /// Memory region of headers, data and indirect tables.
    pub buffer_region: usize,
    /// How completions are waited for.
    pub completion: Completion,
    /// Put requests into indirect tables (if negotiated) unless they say otherwise.
    pub indirect: bool,
}

impl Default for QueueOptions {
    fn default() -> Self {
        Self {
            size: 128,
            slots: 64,
            max_data: 128 << 10,
            max_segments: 64,
            ring_region: 0,
            buffer_region: 0,
            completion: Completion::Event,
            indirect: false,
        }
    }
}

/// What the driver did and got, since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Writes to the kick eventfd.
    pub kicks: u64,
    /// Signals on the call eventfd.
    pub calls: u64,
    /// Wake-ups by the call eventfd that found no used entry.
    pub empty_wakeups: u64,
    /// Requests completed.
    pub completed: u64,
}

/// What a back end must know of a queue to serve it.
#[derive(Debug)]
pub struct RingSetup {
    /// Number of the queue.
    pub index: usize,
    /// Number of descriptors.
    pub size: u16,
    /// Where the ring lies.
    pub addresses: RingAddresses,
    /// The avail index to start from.
    pub base: u16,
    /// Driver to device.
    pub kick: EventFd,
    /// Device to driver.
    pub call: EventFd,
    /// Device to VMM: the ring broke.
    pub err: EventFd,
}

/// A chain that the device gave back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Head of the chain.
    pub head: u16,
    /// The request's slot; `None` for a chain of [`submit_chain`](super::Driver::submit_chain) or a raw head.
    pub slot: Option<Slot>,
    /// Status byte; [`STATUS_NONE`](crate::STATUS_NONE) if there is no slot or the device wrote nothing.
    pub status: u8,
    /// Length in the used element.
    pub used: u32,
}

/// A data request of the allocation-free path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// Into the slot's data buffer.
    Read,
    /// Out of the slot's data buffer.
    Write,
    /// No data.
    Flush,
}
