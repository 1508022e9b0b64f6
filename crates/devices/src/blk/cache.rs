//! Who decides whether a write is stable when it completes (virtio 1.3, 5.2.5 and 5.2.6.2).
//!
//! | negotiated | cache mode |
//! |-|-|
//! | CONFIG_WCE | what the driver wrote last to `writeback`; before that: write-through without FLUSH, else the start mode |
//! | FLUSH alone | the start mode (the driver assumes writeback and flushes, so either is safe) |
//! | neither | write-through: the driver cannot flush and may deduce it |
//! | nothing yet | the start mode, so that `writeback` tells it to a front end that reads ahead |
//!
//! The mode is computed from what was negotiated and what was written, never stepped by events: a front end acknowledges
//! features again whenever it restarts the device or toggles dirty logging, and may write `writeback` before it does.
//! Only a reset forgets what was written.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH};

/// The cache mode of a device, shared with the handlers of its queues.
pub struct Cache {
    start: bool,
    inputs: Mutex<Inputs>,
    /// The result, for the queues: one load per write.
    ///
    /// Release in [`Cache::update`], Acquire in [`Cache::is_write_through`]. A change happens before the front end is told
    /// so, and the driver's next write after that; a write that races with the change may be either (5.2.6.2).
    write_through: AtomicBool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Inputs {
    features: Option<u64>,
    chosen: Option<bool>,
}

impl Cache {
    /// `start`: writeback as long as nobody says otherwise.
    pub fn new(start: bool) -> Cache {
        Cache {
            start,
            inputs: Mutex::default(),
            write_through: AtomicBool::new(!start),
        }
    }

    /// Every completed write must be on stable storage.
    pub fn is_write_through(&self) -> bool {
        self.write_through.load(Ordering::Acquire)
    }

    /// The driver's features.
    pub fn negotiated(&self, features: u64) {
        self.update(|inputs| inputs.features = Some(features));
    }

    /// The driver wrote `writeback`. Refused (false) if it did not negotiate CONFIG_WCE.
    pub fn choose(&self, writeback: bool) -> bool {
        self.update(|inputs| {
            let allowed = inputs
                .features
                .is_none_or(|features| has(features, VIRTIO_BLK_F_CONFIG_WCE));
            if allowed {
                inputs.chosen = Some(writeback);
            }
            allowed
        })
    }

    /// Back to the start mode.
    pub fn reset(&self) {
        self.update(|inputs| *inputs = Inputs::default());
    }

    fn update<T>(&self, change: impl FnOnce(&mut Inputs) -> T) -> T {
        // Inputs are two plain values, whole after a panic elsewhere.
        let mut inputs = self.inputs.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = change(&mut inputs);
        self.write_through
            .store(!self.writeback(*inputs), Ordering::Release);
        answer
    }

    fn writeback(&self, inputs: Inputs) -> bool {
        let Some(features) = inputs.features else {
            return inputs.chosen.unwrap_or(self.start);
        };
        let flush = has(features, VIRTIO_BLK_F_FLUSH);
        if has(features, VIRTIO_BLK_F_CONFIG_WCE) {
            inputs.chosen.unwrap_or(flush && self.start)
        } else {
            flush && self.start
        }
    }
}

fn has(features: u64, bit: u32) -> bool {
    features >> bit & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;
    const WCE: u64 = 1 << VIRTIO_BLK_F_CONFIG_WCE;

    fn after(start: bool, features: u64) -> Cache {
        let cache = Cache::new(start);
        cache.negotiated(features);
        cache
    }

    #[test]
    fn neither_flush_nor_config_wce_negotiated_is_a_write_through_cache() {
        assert!(after(true, 0).is_write_through());
    }

    #[test]
    fn flush_alone_keeps_the_start_mode() {
        assert!(!after(true, FLUSH).is_write_through());
        assert!(after(false, FLUSH).is_write_through());
    }

    #[test]
    fn config_wce_without_flush_initializes_writeback_to_0_and_lets_the_driver_set_it() {
        let cache = after(true, WCE);
        assert!(cache.is_write_through());
        assert!(cache.choose(true));
        assert!(!cache.is_write_through());
    }

    #[test]
    fn the_driver_switches_both_ways_with_config_wce_only() {
        let cache = after(true, WCE | FLUSH);
        assert!(!cache.is_write_through());
        assert!(cache.choose(false));
        assert!(cache.is_write_through());
        assert!(cache.choose(true));
        assert!(!cache.is_write_through());

        let cache = after(true, FLUSH);
        assert!(!cache.choose(false), "not negotiated");
        assert!(!cache.is_write_through());
    }

    #[test]
    fn the_choice_survives_features_acknowledged_again_and_not_a_reset() {
        let cache = after(true, WCE | FLUSH);
        cache.choose(false);
        cache.negotiated(WCE | FLUSH);
        assert!(cache.is_write_through());
        cache.reset();
        assert!(!cache.is_write_through());
        cache.negotiated(WCE | FLUSH);
        assert!(!cache.is_write_through());
    }

    #[test]
    fn a_choice_written_before_the_features_counts_once_config_wce_is_negotiated() {
        let cache = Cache::new(true);
        assert!(cache.choose(false));
        cache.negotiated(WCE | FLUSH);
        assert!(cache.is_write_through());
        cache.negotiated(FLUSH);
        assert!(
            !cache.is_write_through(),
            "without CONFIG_WCE the field is not the driver's"
        );
    }
}
