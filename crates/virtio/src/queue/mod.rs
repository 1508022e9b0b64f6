//! A virtqueue, owned by one worker: addresses resolved once, walks bounded, publication in batches.
//!
//! # A batch
//! The worker calls [`Queue::mute_kicks`], pops until there is nothing left, pushes what is done, calls [`Queue::publish`] and signals the
//! driver if that says so, then [`Queue::arm_kicks`]; if requests came in meanwhile it goes round again, else it sleeps. For the whole batch
//! there is one acquire load of avail.idx, one release store of used.idx, one fence and one look at what the driver wants to hear.
//!
//! # Who may write what
//! The driver owns the descriptor table and the available ring and may change both at any time, even where the specification forbids it. So:
//! - every field is copied once, and all checks and all use are made on the copy;
//! - every walk ends after as many steps as its table has entries;
//! - what goes wrong is an error of the ring, never a panic. After an error from [`Queue::pop`] nothing was consumed.
//!
//! # In flight
//! A chain belongs to the device from `pop` until `push_used`, known by its head. The queue counts: the same head twice, or more requests than
//! descriptors, is a broken ring, so that a device's per-head tables can neither overflow nor be confused.
//!
//! # Orderings
//! | access | order | partner in the driver |
//! |-|-|-|
//! | avail.idx | load acquire | its write barrier between filling the entry and storing avail.idx |
//! | avail.ring, descriptors, indirect tables | load relaxed, after the above | |
//! | used.ring | store relaxed, before the below | |
//! | used.idx | store release | its read barrier between loading used.idx and reading the element |
//! | used_event, avail.flags, avail_event, used.flags | relaxed, on the far side of a SeqCst fence | its full barriers: `handshake` |
mod error;
mod handshake;
mod heads;
mod split;
#[cfg(test)]
mod tests;
mod translate;
mod walk;

use crate::memory::MemoryLease;
pub use error::QueueError;
use handshake::Word;
use heads::Heads;
use outboard_reactor::Buffers;
use split::SplitRing;
use std::sync::atomic::Ordering;
use translate::{Segments, Translator};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use walk::Walk;

/// Segment lists kept for reuse. More than that are in use at once only at depths where an allocation per request is not what costs.
const MAX_SPARE: usize = 64;
/// A longer list is freed, so that one huge request does not hold its storage for ever.
const MAX_SPARE_SEGMENTS: usize = 1024;

/// Where a ring is and where to go on in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueConfig {
    /// Number of descriptors: a power of two, 1..=32768.
    pub size: u16,
    /// Guest physical address of the descriptor table, aligned to 16.
    pub desc: u64,
    /// Guest physical address of the available ring, aligned to 2.
    pub avail: u64,
    /// Guest physical address of the used ring, aligned to 4.
    pub used: u64,
    /// Where to go on in the available ring (SET_VRING_BASE): a free-running index.
    pub next_avail: u16,
    /// used.idx to start from; `None`: read it from the ring.
    pub next_used: Option<u16>,
    /// Negotiated virtio features, of which EVENT_IDX and INDIRECT_DESC matter here.
    pub features: u64,
}

impl QueueConfig {
    fn has(&self, bit: u32) -> bool {
        self.features >> bit & 1 == 1
    }
}

/// A request as the driver laid it out: readable bytes, then writable bytes.
///
/// Where one buffer ends and the next begins is lost on purpose: 2.7.4.1 forbids the device to depend on it.
/// Must be given back with [`Queue::push_used`] (or dropped with the queue on abandon). The buffers keep the memory map that was in force
/// when it was popped.
pub struct Chain {
    /// Index of the first descriptor, the request's name in the used ring. Below the queue size, and unique among those in flight.
    pub head: u16,
    /// What the driver wrote for the device.
    pub readable: Buffers,
    /// Room for what the device answers.
    pub writable: Buffers,
}

/// What the driver was last told about kicks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kicks {
    /// Nothing by us: what the ring says dates from before we got it.
    Unknown,
    Muted,
    Armed,
}

/// A running virtqueue. Thread-bound, like the lease of the memory it lies in.
pub struct Queue {
    config: QueueConfig,
    ring: SplitRing,
    translator: Translator,
    /// Free-running; the next entry to pop.
    next_avail: u16,
    /// avail.idx as last loaded by `pop`: entries up to here may be read without another load.
    seen_avail: u16,
    /// Free-running; the next used element to fill.
    filled: u16,
    /// used.idx as the driver sees it.
    published: u16,
    heads: Heads,
    kicks: Kicks,
    spare: Vec<Segments>,
}

impl Queue {
    /// Resolves the ring's addresses.
    ///
    /// Writes nothing: until [`Queue::arm_kicks`] or [`Queue::mute_kicks`] the driver goes by what the ring says.
    ///
    /// # Errors
    /// When the size is not a power of two, or a part of the ring is misaligned or not in one memory region (2.7).
    pub fn new(config: &QueueConfig, memory: MemoryLease) -> Result<Queue, QueueError> {
        let ring = SplitRing::resolve(config, memory)?;
        let next_used = config
            .next_used
            .unwrap_or_else(|| Word::load(ring.used_idx(), Ordering::Acquire));
        Ok(Queue {
            config: *config,
            ring,
            translator: Translator::new(),
            next_avail: config.next_avail,
            seen_avail: config.next_avail,
            filled: next_used,
            published: next_used,
            heads: Heads::new(config.size),
            kicks: Kicks::Unknown,
            spare: Vec::new(),
        })
    }

    /// The next request, if any. Loads avail.idx only when the entries seen by the last load are used up.
    ///
    /// # Errors
    /// A broken ring: see [`QueueError`]. The entry is not consumed, and [`Queue::next_avail`] still points to it.
    pub fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        let size = self.config.size;
        if self.next_avail == self.seen_avail {
            // Acquire: pairs with the driver's write barrier before its store of avail.idx, so the entries up to it and the descriptors
            // they name are visible from here on.
            let avail_idx = Word::load(self.ring.avail_idx(), Ordering::Acquire);
            let waiting = avail_idx.wrapping_sub(self.next_avail);
            if waiting == 0 {
                return Ok(None);
            }
            if waiting > size {
                return Err(QueueError::AvailIndex {
                    avail_idx,
                    next_avail: self.next_avail,
                    size,
                });
            }
            self.seen_avail = avail_idx;
        }
        // Unpublished elements count: the driver cannot have reused their descriptors yet.
        if u32::from(self.heads.len()) + u32::from(self.unpublished()) >= u32::from(size) {
            return Err(QueueError::TooManyOutstanding(size));
        }
        let head = self.ring.avail_head(self.next_avail);
        if self.heads.contains(head) {
            return Err(QueueError::HeadInFlight(head));
        }
        let lists = (
            self.spare.pop().unwrap_or_default(),
            self.spare.pop().unwrap_or_default(),
        );
        let walk = Walk::new(&self.ring, &mut self.translator, head, lists);
        let (readable, writable) = walk.run(size, self.config.has(VIRTIO_RING_F_INDIRECT_DESC))?;
        self.heads.insert(head);
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(Some(Chain {
            head,
            readable: self.buffers(readable),
            writable: self.buffers(writable),
        }))
    }

    #[allow(unsafe_code)]
    fn buffers(&mut self, segments: Segments) -> Buffers {
        if segments.is_empty() {
            self.keep(segments);
            return Buffers::empty();
        }
        // SAFETY: every segment was translated by the map behind this lease, so it lies in a shared, readable and writable mapping
        // that the map keeps; a truncation of the file behind it is caught by the SIGBUS guard.
        unsafe { Buffers::from_raw(segments, self.ring.memory().clone()) }
    }

    /// Takes the storage of spent buffers back, so that long requests do not allocate either. Optional.
    pub fn recycle(&mut self, buffers: Buffers) {
        self.keep(buffers.into_iovecs());
    }

    fn keep(&mut self, mut segments: Segments) {
        if segments.spilled()
            && segments.capacity() <= MAX_SPARE_SEGMENTS
            && self.spare.len() < MAX_SPARE
        {
            segments.clear();
            self.spare.push(segments);
        }
    }

    /// Queues a used element; nothing is visible to the driver before [`Queue::publish`]. `written` is the number of bytes written to the
    /// chain's writable part, counted from its start (2.7.8.2).
    ///
    /// # Errors
    /// [`QueueError::NotInFlight`]: a request given back twice, or never popped.
    pub fn push_used(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        self.heads.remove(head)?;
        self.ring.write_used(self.filled, head, written);
        self.filled = self.filled.wrapping_add(1);
        Ok(())
    }

    fn unpublished(&self) -> u16 {
        self.filled.wrapping_sub(self.published)
    }

    /// One release store of used.idx for all pushed elements; true if the driver wants to be signalled. False when nothing was pushed.
    #[must_use = "a driver that waits for a signal must get it"]
    pub fn publish(&mut self) -> bool {
        if self.unpublished() == 0 {
            return false;
        }
        let old = std::mem::replace(&mut self.published, self.filled);
        handshake::publish(self.ring.used_idx(), old, self.filled, self.ring.call())
    }

    /// No kicks wanted (a hint).
    pub fn mute_kicks(&mut self) {
        if self.kicks != Kicks::Muted {
            handshake::mute(self.ring.kick());
            self.kicks = Kicks::Muted;
        }
    }

    /// Kicks wanted again; true if requests came in meanwhile: the caller must look again, since there may be no kick for them.
    #[must_use = "requests that came in before the driver saw the wish get no kick"]
    pub fn arm_kicks(&mut self) -> bool {
        self.kicks = Kicks::Armed;
        handshake::arm(self.ring.kick(), self.next_avail, self.ring.avail_idx())
    }

    /// Requests are waiting (one acquire load). Also true when avail.idx is nonsense, which [`Queue::pop`] then tells.
    pub fn has_avail(&self) -> bool {
        Word::load(self.ring.avail_idx(), Ordering::Acquire) != self.next_avail
    }

    /// Popped, not yet used.
    pub fn in_flight(&self) -> u16 {
        self.heads.len()
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.config.size
    }

    /// Free-running index of the next entry to pop, for GET_VRING_BASE.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// used.idx as the driver sees it.
    pub fn next_used(&self) -> u16 {
        self.published
    }

    /// The map in which addresses are translated.
    pub fn memory(&self) -> &MemoryLease {
        self.ring.memory()
    }

    /// SET_MEM_TABLE under a running ring: resolves the ring anew; requests in flight keep their old lease.
    ///
    /// The guest addresses of the ring stay. If it moved in guest memory it is another ring. To be called between passes, with all that was
    /// pushed published: elements are not written a second time.
    ///
    /// # Errors
    /// The ring is not in the new memory: the queue goes on in the old, and the caller should stop it.
    pub fn set_memory(&mut self, memory: MemoryLease) -> Result<(), QueueError> {
        self.ring = SplitRing::resolve(&self.config, memory)?;
        self.translator = Translator::new();
        self.kicks = Kicks::Unknown;
        Ok(())
    }
}
