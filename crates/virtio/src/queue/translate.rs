use crate::memory::{MemoryMap, OutOfMemory, Window};
use smallvec::SmallVec;

/// Host ranges of guest buffers.
pub(super) type Segments = SmallVec<[libc::iovec; 4]>;

/// Guest addresses to host addresses, with the last region remembered: buffers of neighbouring requests nearly always share one, and then
/// a translation is a subtraction and a comparison.
#[derive(Debug)]
pub(super) struct Translator {
    last: Window,
}

impl Translator {
    /// Remembers nothing. A translator belongs to one map: with a new map comes a new translator.
    pub(super) fn new() -> Translator {
        Translator { last: Window::NONE }
    }

    /// Host address of `guest` and the number of bytes that follow it in its region.
    #[inline]
    pub(super) fn host(&mut self, map: &MemoryMap, guest: u64) -> Option<(*mut u8, u64)> {
        if let Some(host) = self.last.host(guest) {
            return Some(host);
        }
        self.last = map.window(guest)?;
        self.last.host(guest)
    }

    /// Calls `each` with the host address and length of every piece of a guest range: one, or several when it runs over adjacent regions.
    #[inline]
    pub(super) fn pieces(
        &mut self,
        map: &MemoryMap,
        addr: u64,
        len: u64,
        mut each: impl FnMut(*mut u8, u64),
    ) -> Result<(), OutOfMemory> {
        let outside = OutOfMemory { addr, len };
        let (mut at, mut left) = (addr, len);
        while left > 0 {
            let (host, room) = self.host(map, at).ok_or(outside)?;
            let piece = room.min(left);
            each(host, piece);
            left -= piece;
            // A region never ends at 2^64, so only a range that is about to be refused wraps.
            at = at.wrapping_add(piece);
        }
        Ok(())
    }
}
