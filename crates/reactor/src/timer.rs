//! Timers of ports: a heap in user space. The earliest bounds the sleep (the timespec of `io_uring_enter`), so a timer
//! costs no entry and no system call of its own.

use crate::tag::SlotId;
use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

/// Ordered by time, then by age: equal deadlines expire in the order they were set.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    at: Instant,
    age: u64,
    port: u32,
    token: u32,
}

/// All timers of one reactor.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<Entry>>,
    set: u64,
}

impl Timers {
    pub fn set(&mut self, now: Instant, after: Duration, port: SlotId, token: u32) {
        // A deadline beyond the clock's range is a century away: far enough.
        let century = Duration::from_secs(100 * 365 * 86_400);
        let at = now.checked_add(after.min(century)).unwrap_or(now);
        self.heap.push(Reverse(Entry {
            at,
            age: self.set,
            port: port.pack(),
            token,
        }));
        self.set += 1;
    }

    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// How long until the earliest expires.
    pub fn next_in(&self, now: Instant) -> Option<Duration> {
        let Reverse(first) = self.heap.peek()?;
        Some(first.at.saturating_duration_since(now))
    }

    /// The next one that has expired: port and token.
    pub fn expired(&mut self, now: Instant) -> Option<(SlotId, u32)> {
        self.heap.peek().filter(|first| first.0.at <= now)?;
        self.pop()
    }

    /// The next one, expired or not.
    pub fn pop(&mut self) -> Option<(SlotId, u32)> {
        let Reverse(entry) = self.heap.pop()?;
        Some((SlotId::unpack(entry.port), entry.token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expire_in_order_of_time_then_of_setting_and_never_early() {
        let port = SlotId {
            index: 3,
            generation: 7,
        };
        let start = Instant::now();
        let mut timers = Timers::default();
        for (ms, token) in [(5, 0), (1, 1), (3, 2), (1, 3), (0, 4)] {
            timers.set(start, Duration::from_millis(ms), port, token);
        }
        timers.set(start, Duration::MAX, port, 9);
        let mut seen = Vec::new();
        for ms in 0..=5 {
            let now = start + Duration::from_millis(ms);
            while let Some((p, token)) = timers.expired(now) {
                assert_eq!(p, port);
                seen.push((ms, token));
            }
        }
        assert_eq!(seen, [(0, 4), (1, 1), (1, 3), (3, 2), (5, 0)]);
        assert!(
            timers
                .next_in(start)
                .is_some_and(|d| d > Duration::from_secs(1 << 30))
        );
    }
}
