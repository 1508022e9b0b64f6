//! What no driver does, for tests of how a device takes it.

use std::sync::atomic::Ordering;

use super::{Descriptor, RAW, SplitRing};

impl SplitRing {
    /// Writes one entry of the descriptor table, whatever it says.
    pub fn write_descriptor(&mut self, index: u16, descriptor: Descriptor) {
        self.descriptors.store(16 * usize::from(index), descriptor);
    }

    /// Puts any value into the avail ring. If it could be a head it counts as in flight, and its
    /// completion gives no descriptor back.
    pub fn push_raw(&mut self, head: u16) {
        if let Some(chain) = self.chains.get_mut(usize::from(head)) {
            *chain = RAW;
            self.in_flight += 1;
        }
        self.put_avail(head);
    }

    /// Stores any `avail.idx` at once.
    pub fn write_avail_idx(&mut self, index: u16) {
        self.next_avail = index;
        self.published = index;
        self.avail.atomic_u16(2).store(index, Ordering::Release);
    }
}
