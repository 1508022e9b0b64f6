//! A device's name in the log, and how many lines its front ends may cause there.
//!
//! What a front end or a guest does wrong is worth a line, but whoever can connect can do it in a loop, and the log is the
//! host's. So the lines that a peer can cause share one budget per device: a burst, then a trickle; when lines are written
//! again, the first says how many were left out. Lines that the operator's own actions cause are not counted.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Lines at once.
const BURST: u32 = 20;
/// Then one in this time.
const REFILL: Duration = Duration::from_secs(10);

/// Clones share the budget.
#[derive(Clone)]
pub struct DeviceName {
    name: Arc<str>,
    budget: Arc<Mutex<Budget>>,
}

struct Budget {
    lines: u32,
    /// When the last line was added.
    filled: Instant,
    left_out: u64,
}

impl Budget {
    /// Takes one line, if there is one: then how many were left out before it.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let earned = now.saturating_duration_since(self.filled).as_secs() / REFILL.as_secs();
        if earned > 0 {
            self.lines = u32::try_from(earned)
                .unwrap_or(BURST)
                .saturating_add(self.lines)
                .min(BURST);
            self.filled = now;
        }
        match self.lines.checked_sub(1) {
            Some(rest) => {
                self.lines = rest;
                Some(std::mem::take(&mut self.left_out))
            }
            None => {
                self.left_out += 1;
                None
            }
        }
    }
}

impl DeviceName {
    /// Whether a line about what a peer of this device did may be logged now. Never on the request path: it takes a lock.
    pub(crate) fn may_log(&self) -> bool {
        let left_out = self
            .budget
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take(Instant::now());
        if let Some(lines @ 1..) = left_out {
            tracing::warn!(device = %self, lines, "lines about this device's front ends were left out");
        }
        left_out.is_some()
    }
}

impl From<&str> for DeviceName {
    fn from(name: &str) -> DeviceName {
        DeviceName {
            name: name.into(),
            budget: Arc::new(Mutex::new(Budget {
                lines: BURST,
                filled: Instant::now(),
                left_out: 0,
            })),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_a_trickle_and_what_was_left_out_is_told() {
        let start = Instant::now();
        let mut budget = Budget {
            lines: BURST,
            filled: start,
            left_out: 0,
        };
        for _ in 0..BURST {
            assert_eq!(budget.take(start), Some(0));
        }
        assert_eq!(budget.take(start), None);
        assert_eq!(budget.take(start + REFILL / 2), None);
        assert_eq!(budget.take(start + REFILL), Some(2));
        assert_eq!(budget.take(start + REFILL), None);
        // A long silence earns a burst again, not more.
        let later = start + REFILL * 1000;
        for left_out in std::iter::once(1).chain(std::iter::repeat_n(0, 19)) {
            assert_eq!(budget.take(later), Some(left_out));
        }
        assert_eq!(budget.take(later), None);
    }
}
