//! From a head to a checked chain: one bounded walk, each descriptor copied once.
#![allow(unsafe_code)]
use super::QueueError;
use super::split::{Descriptor, SplitRing, read_descriptor};
use super::translate::{Segments, Translator};
use crate::memory::OutOfMemory;

/// The most descriptors of an indirect table: the largest queue size (2.7).
const MAX_INDIRECT: u32 = 32768;
/// The most pieces of a chain in host memory. A buffer is one, or one for each region that it runs over: that is beyond a chain's
/// natural bound only if the front end cut guest memory into crumbs, to have us keep a long list for a short request.
const MAX_PIECES: usize = MAX_INDIRECT as usize;
/// The most bytes of a chain (2.7.5.2).
const MAX_BYTES: u64 = 1 << 32;

/// Collects the buffers of one chain.
pub(super) struct Walk<'a> {
    ring: &'a SplitRing,
    translator: &'a mut Translator,
    head: u16,
    bytes: u64,
    readable: Segments,
    writable: Segments,
}

impl<'a> Walk<'a> {
    /// Starts with empty segment lists, given so that their storage is reused.
    pub(super) fn new(
        ring: &'a SplitRing,
        translator: &'a mut Translator,
        head: u16,
        (readable, writable): (Segments, Segments),
    ) -> Walk<'a> {
        Walk {
            ring,
            translator,
            head,
            bytes: 0,
            readable,
            writable,
        }
    }

    /// Walks the chain; readable and writable segments.
    ///
    /// Bounds: at most `size` descriptors of the ring's table, then at most one indirect table of at most 32768. A chain inside an indirect
    /// table may be longer than the queue: 2.7.5.3.1 forbids that to drivers, Linux does it all the same when the device's limits allow it,
    /// and the table's length bounds the walk as well.
    pub(super) fn run(
        mut self,
        size: u16,
        indirect: bool,
    ) -> Result<(Segments, Segments), QueueError> {
        let mut index = self.head;
        for _ in 0..size {
            let descriptor = self.ring.descriptor(index).ok_or(QueueError::Index {
                index,
                size: size.into(),
            })?;
            if descriptor.is_indirect() {
                self.indirect(&descriptor, indirect)?;
                return Ok((self.readable, self.writable));
            }
            self.buffer(&descriptor)?;
            if !descriptor.has_next() {
                return Ok((self.readable, self.writable));
            }
            index = descriptor.next;
        }
        Err(QueueError::Endless {
            head: self.head,
            size: size.into(),
        })
    }

    /// 2.7.5.3. The table's own WRITE flag is ignored, as 2.7.5.3.2 demands.
    fn indirect(&mut self, table: &Descriptor, negotiated: bool) -> Result<(), QueueError> {
        let head = self.head;
        let forbidden = |why| Err(QueueError::Indirect { head, why });
        if !negotiated {
            return forbidden("but VIRTIO_F_INDIRECT_DESC was not negotiated");
        }
        if table.has_next() {
            return forbidden("with a next descriptor");
        }
        let entries = table.len / Descriptor::SIZE;
        if entries == 0 || !table.len.is_multiple_of(Descriptor::SIZE) || entries > MAX_INDIRECT {
            return Err(QueueError::IndirectLength {
                head,
                len: table.len,
            });
        }
        // The whole table must be there, used or not: then no entry needs another check.
        let mut whole = None;
        let (addr, len) = (table.addr, u64::from(table.len));
        self.translator
            .pieces(self.ring.memory(), addr, len, |host, piece| {
                whole = (piece == len).then_some(host);
            })
            .map_err(|range| QueueError::Memory { head, range })?;

        let mut index = 0;
        for _ in 0..entries {
            if u32::from(index) >= entries {
                return Err(QueueError::Index {
                    index,
                    size: entries,
                });
            }
            let descriptor = match whole {
                // SAFETY: the table of `entries` descriptors is mapped in one piece at `host`, index < entries, and the ring's
                // lease keeps it mapped.
                Some(host) => unsafe {
                    read_descriptor(
                        host.wrapping_add(usize::from(index) * Descriptor::SIZE as usize),
                    )
                },
                None => self
                    .scattered(addr.wrapping_add(u64::from(index) * u64::from(Descriptor::SIZE)))?,
            };
            if descriptor.is_indirect() {
                return forbidden("within an indirect table");
            }
            self.buffer(&descriptor)?;
            if !descriptor.has_next() {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(QueueError::Endless {
            head,
            size: entries,
        })
    }

    /// A descriptor of a table that runs over regions: it may itself lie across a border.
    #[cold]
    fn scattered(&mut self, addr: u64) -> Result<Descriptor, QueueError> {
        let mut bytes = [0; Descriptor::SIZE as usize];
        let mut rest = bytes.iter_mut();
        self.translator
            .pieces(
                self.ring.memory(),
                addr,
                u64::from(Descriptor::SIZE),
                |host, len| {
                    for (offset, byte) in (0..len as usize).zip(rest.by_ref()) {
                        // SAFETY: `len` bytes are mapped at `host`, and the ring's lease keeps them mapped.
                        *byte = unsafe { host.wrapping_add(offset).read_volatile() };
                    }
                },
            )
            .map_err(|range| QueueError::Memory {
                head: self.head,
                range,
            })?;
        Ok(Descriptor::from_bytes(bytes))
    }

    #[inline]
    fn buffer(&mut self, descriptor: &Descriptor) -> Result<(), QueueError> {
        let head = self.head;
        // A buffer without bytes is nowhere, whatever its address and direction say.
        if descriptor.len == 0 {
            return Ok(());
        }
        let len = u64::from(descriptor.len);
        self.bytes += len;
        if self.bytes > MAX_BYTES {
            return Err(QueueError::TooLong(head));
        }
        let segments = if descriptor.is_writable() {
            &mut self.writable
        } else if self.writable.is_empty() {
            &mut self.readable
        } else {
            return Err(QueueError::Order(head));
        };
        self.translator
            .pieces(self.ring.memory(), descriptor.addr, len, |host, piece| {
                segments.push(libc::iovec {
                    iov_base: host.cast(),
                    iov_len: piece as usize,
                });
            })
            .map_err(|range: OutOfMemory| QueueError::Memory { head, range })?;
        if self.readable.len() + self.writable.len() > MAX_PIECES {
            return Err(QueueError::TooManyPieces(head));
        }
        Ok(())
    }
}
