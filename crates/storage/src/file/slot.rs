//! What an operation in flight needs, at an address that stays.
//!
//! The kernel reads the segment list of an operation where it lies (inside [`Buffers`], or in `rest`), so a slot must not move
//! while its operation is in flight: slots are boxed, and reused without freeing them. After a queue has seen its greatest depth it
//! allocates no more.
use super::bounce::AlignedBuf;
use outboard_reactor::Buffers;

/// What a slot is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// Reading `len` bytes at `offset` into `buf`.
    Read,
    /// Writing them.
    Write {
        /// With `RWF_DSYNC`.
        durable: bool,
    },
    /// Making durable what was written.
    Flush,
    /// Releasing `len` bytes at `offset`.
    Discard,
    /// Making them read as zeroes.
    Zero(ZeroMethod),
    /// The result is known and waits in the port.
    Settled,
}

/// A way to make a range read as zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ZeroMethod {
    /// Releases the space.
    Punch,
    /// Keeps it.
    ZeroRange,
    /// Writes zeroes.
    Write,
}

/// One operation in flight.
pub(super) struct Slot {
    /// The submitter's.
    pub(super) token: u32,
    pub(super) work: Work,
    /// The operation's own buffers, whole from submit to completion.
    pub(super) buf: Buffers,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// How much of `len` has been done.
    pub(super) done: u64,
    /// Attempts since the last progress.
    pub(super) attempts: u32,
    /// The next completion is the timer's, after which the operation is started again.
    pub(super) pausing: bool,
    /// The segments of what is left, when a transfer is resumed.
    pub(super) rest: Vec<libc::iovec>,
    /// The transfer goes through a bounce buffer.
    pub(super) bounced: bool,
    pub(super) bounce: Option<AlignedBuf>,
}

/// A queue's operations in flight, by key.
#[derive(Default)]
// Boxed so that slots stay where they are when the list grows.
#[allow(clippy::vec_box)]
pub(super) struct Slots {
    slots: Vec<Box<Slot>>,
    free: Vec<u32>,
}

impl Slots {
    /// Takes a slot; everything not given starts at zero.
    pub(super) fn insert(
        &mut self,
        token: u32,
        work: Work,
        offset: u64,
        len: u64,
        buf: Buffers,
    ) -> u32 {
        let key = self.free.pop();
        if let Some(key) = key
            && let Some(slot) = self.get_mut(key)
        {
            slot.rest.clear();
            let rest = std::mem::take(&mut slot.rest);
            *slot = Slot {
                rest,
                ..Slot::new(token, work, offset, len, buf)
            };
            return key;
        }
        self.slots
            .push(Box::new(Slot::new(token, work, offset, len, buf)));
        // A queue has at most 32768 requests.
        (self.slots.len() - 1) as u32
    }

    pub(super) fn get_mut(&mut self, key: u32) -> Option<&mut Slot> {
        self.slots.get_mut(key as usize).map(Box::as_mut)
    }

    /// Gives a slot back; its buffers are the caller's to take before.
    pub(super) fn free(&mut self, key: u32) {
        self.free.push(key);
    }

    pub(super) fn in_use(&self) -> u32 {
        (self.slots.len() - self.free.len()) as u32
    }
}

impl Slot {
    fn new(token: u32, work: Work, offset: u64, len: u64, buf: Buffers) -> Slot {
        Slot {
            token,
            work,
            buf,
            offset,
            len,
            done: 0,
            attempts: 0,
            pausing: false,
            rest: Vec::new(),
            bounced: false,
            bounce: None,
        }
    }

    /// Bytes still to do.
    pub(super) fn left(&self) -> u64 {
        self.len.saturating_sub(self.done)
    }

    /// Where on the disk to go on.
    pub(super) fn position(&self) -> u64 {
        self.offset.saturating_add(self.done)
    }
}
