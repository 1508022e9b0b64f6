//! `delay:MIN-MAX:URI`: another disk, slower and out of order. For tests.
//!
//! Each operation is handed to the disk below at once, and its completion is held back until a delay of its own has passed since
//! the submit, drawn evenly from MIN to MAX by a generator with a known seed. So:
//!
//! * operations complete out of order, though their effects happen as early as without the delay;
//! * an operation never completes before the disk below completed it, so nothing is promised too early. In particular a flush
//!   covers every write whose completion was fetched before the flush was submitted: that write had completed below even earlier.
//!
//! Queues draw from generators of their own, seeded by the order in which they were opened.
use crate::disk::{Completion, Disk, DiskQueue, Limits, Op};
use outboard_reactor::{Buffers, IoPort};
use slab::Slab;
use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// See the module.
pub struct DelayDisk {
    name: String,
    inner: Arc<dyn Disk>,
    min: Duration,
    max: Duration,
    seed: u64,
    queues: AtomicU64,
}

impl DelayDisk {
    /// `min` is at most `max` (checked by `uri::open`).
    pub(crate) fn new(
        name: String,
        inner: Arc<dyn Disk>,
        min: Duration,
        max: Duration,
        seed: u64,
    ) -> DelayDisk {
        DelayDisk {
            name,
            inner,
            min,
            max,
            seed,
            queues: AtomicU64::new(0),
        }
    }
}

impl Disk for DelayDisk {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn is_read_only(&self) -> bool {
        self.inner.is_read_only()
    }

    fn open_queue(&self, port: IoPort) -> io::Result<Box<dyn DiskQueue>> {
        let timers = port.sibling();
        let queue = self.queues.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(DelayQueue {
            inner: self.inner.open_queue(port)?,
            timers,
            random: generator(self.seed, queue),
            min: nanoseconds(self.min),
            max: nanoseconds(self.max),
            held: Slab::new(),
            released: VecDeque::new(),
        }))
    }

    fn name(&self) -> &str {
        &self.name
    }
}

/// The generator of the disk's `queue`th queue.
fn generator(seed: u64, queue: u64) -> fastrand::Rng {
    // Any odd number spreads the queues' seeds; this one (the golden ratio's) spreads them far.
    fastrand::Rng::with_seed(seed ^ queue.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

struct DelayQueue {
    inner: Box<dyn DiskQueue>,
    /// A second queue of the port that `inner` works with: for the timers.
    timers: IoPort,
    random: fastrand::Rng,
    min: u64,
    max: u64,
    /// Operations by the token that they have below, which is their timer's token too.
    held: Slab<Held>,
    released: VecDeque<Completion>,
}

/// An operation that waits for its completion, its timer or both.
struct Held {
    token: u32,
    timer_expired: bool,
    done: Option<(io::Result<()>, Buffers)>,
}

impl DelayQueue {
    /// Gives the operation back if it waits for nothing any more.
    fn release(&mut self, key: usize) {
        let ready = self
            .held
            .get(key)
            .is_some_and(|held| held.timer_expired && held.done.is_some());
        if ready
            && let Some(Held {
                token,
                done: Some((result, buf)),
                ..
            }) = self.held.try_remove(key)
        {
            self.released.push_back(Completion { token, result, buf });
        }
    }
}

impl DiskQueue for DelayQueue {
    fn submit(&mut self, token: u32, op: Op) {
        let key = self.held.insert(Held {
            token,
            timer_expired: false,
            done: None,
        });
        // At most as many as a queue has requests.
        let below = key as u32;
        let delay = Duration::from_nanos(self.random.u64(self.min..=self.max));
        self.timers.timer(delay, below);
        self.inner.submit(below, op);
    }

    fn next_completion(&mut self) -> Option<Completion> {
        while let Some(Completion { token, result, buf }) = self.inner.next_completion() {
            if let Some(held) = self.held.get_mut(token as usize) {
                held.done = Some((result, buf));
            }
            self.release(token as usize);
        }
        while let Some(timer) = self.timers.pop() {
            if let Some(held) = self.held.get_mut(timer.token as usize) {
                held.timer_expired = true;
            }
            self.release(timer.token as usize);
        }
        self.released.pop_front()
    }

    fn in_flight(&self) -> u32 {
        u32::try_from(self.held.len() + self.released.len()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_decides_and_queues_differ() {
        let draws = |seed, queue| {
            let mut random = generator(seed, queue);
            [random.u64(..), random.u64(..)]
        };
        assert_eq!(draws(1, 0), draws(1, 0));
        assert_ne!(draws(1, 0), draws(2, 0));
        assert_ne!(draws(1, 0), draws(1, 1));
    }
}
