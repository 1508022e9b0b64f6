//! Buffers for requests in flight, laid out once, so that the I/O path allocates nothing.
//!
//! A slot has one cache line for header and status (as the Linux driver keeps them), room for an indirect table, and
//! a page-aligned data buffer. The data buffer has a spare page before it and a spare byte after it: a request that
//! is cut freely has its header right before its data and its status right after them, so that any cut of the
//! readable or of the writable bytes is a list of contiguous pieces.

use std::sync::Arc;

use vm_memory::GuestAddress;

use crate::error::{Error, Result};
use crate::memory::{Memory, Window};
use crate::request::{HEADER, Layout, Request, STATUS_NONE};
use crate::ring::Segment;

/// A request's place in the driver's tables, from its submission to its release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub(crate) u16);

impl Slot {
    /// The slot's number, less than the queue's number of slots.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

const LINE: usize = 64;
const STATUS: usize = HEADER as usize;
const PAGE: usize = 4096;

/// What is remembered of the request in a slot.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Entry {
    pub(crate) kind: u32,
    pub(crate) sector: u64,
    pub(crate) input: u32,
    /// Offset of the input in the slot's data buffer: behind the output.
    input_at: usize,
    /// Where the status byte lies: in the slot's line, or at this offset of the data window.
    status_in_data: Option<usize>,
}

#[derive(Debug)]
pub(crate) struct Slots {
    lines: Window,
    tables: Window,
    data: Window,
    /// Bytes of a slot's indirect table.
    table: usize,
    /// Bytes between data buffers.
    stride: usize,
    max_data: u32,
    free: Vec<u16>,
    entries: Vec<Entry>,
}

impl Slots {
    pub(crate) fn new(
        memory: &Arc<Memory>,
        region: usize,
        count: u16,
        max_data: u32,
        segments: u16,
    ) -> Result<Self> {
        let slots = usize::from(count);
        let part = |length: usize| {
            let at = memory.alloc_in(region, length as u64, PAGE as u64)?;
            memory.window(at, length)
        };
        let table = 16 * usize::from(segments.max(3));
        let stride = PAGE + (max_data as usize + 1).next_multiple_of(PAGE);
        Ok(Self {
            lines: part(LINE * slots)?,
            tables: part(table * slots)?,
            data: part(stride * slots)?,
            table,
            stride,
            max_data,
            free: (0..count).rev().collect(),
            entries: vec![Entry::default(); slots],
        })
    }

    /// Takes a free slot.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<Slot> {
        self.free.pop().map(Slot)
    }

    /// Gives a slot back.
    #[inline]
    pub(crate) fn release(&mut self, slot: Slot) {
        self.free.push(slot.0);
    }

    /// Frees everything, after a reset.
    pub(crate) fn reset(&mut self) {
        self.free.clear();
        self.free.extend((0..self.entries.len() as u16).rev());
    }

    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    fn data_offset(&self, slot: Slot) -> usize {
        slot.index() * self.stride + PAGE
    }

    /// Guest address of a slot's data buffer.
    pub(crate) fn data_address(&self, slot: Slot) -> GuestAddress {
        GuestAddress(self.data.guest_address().0 + self.data_offset(slot) as u64)
    }

    pub(crate) fn entry(&self, slot: Slot) -> Entry {
        self.entries.get(slot.index()).copied().unwrap_or_default()
    }

    pub(crate) fn table(&self, slot: Slot) -> (&Window, usize) {
        (&self.tables, slot.index() * self.table)
    }

    /// Largest number of segments of an indirect table.
    pub(crate) fn table_segments(&self) -> usize {
        self.table / 16
    }

    pub(crate) fn write_data(&self, slot: Slot, offset: usize, bytes: &[u8]) {
        self.data.copy_in(self.data_offset(slot) + offset, bytes);
    }

    pub(crate) fn read_data(&self, slot: Slot, offset: usize, bytes: &mut [u8]) {
        self.data.copy_out(self.data_offset(slot) + offset, bytes);
    }

    /// The data that the device was to write, all of it.
    pub(crate) fn input(&self, slot: Slot) -> Vec<u8> {
        let entry = self.entry(slot);
        let mut bytes = vec![0; entry.input as usize];
        self.read_data(slot, entry.input_at, &mut bytes);
        bytes
    }

    /// The status byte as it is now.
    #[inline]
    pub(crate) fn status(&self, slot: Slot) -> u8 {
        match self.entry(slot).status_in_data {
            None => self.lines.load(slot.index() * LINE + STATUS),
            Some(offset) => self.data.load(offset),
        }
    }

    /// Prepares header and status of an ordinary request and returns its segments; `data` is `(length, writable)`.
    #[inline]
    pub(crate) fn classic(
        &mut self,
        slot: Slot,
        kind: u32,
        sector: u64,
        data: (u32, bool),
    ) -> [Segment; 3] {
        let line = slot.index() * LINE;
        self.lines.store(line, [u64::from(kind), sector]);
        self.lines.store(line + STATUS, STATUS_NONE);
        if let Some(entry) = self.entries.get_mut(slot.index()) {
            let input = if data.1 { data.0 } else { 0 };
            *entry = Entry {
                kind,
                sector,
                input,
                input_at: 0,
                status_in_data: None,
            };
        }
        let base = self.lines.guest_address().0 + line as u64;
        [
            Segment {
                address: GuestAddress(base),
                length: HEADER,
                writable: false,
            },
            Segment {
                address: self.data_address(slot),
                length: data.0,
                writable: data.1,
            },
            Segment {
                address: GuestAddress(base + STATUS as u64),
                length: 1,
                writable: true,
            },
        ]
    }

    /// Refuses what does not fit a slot.
    pub(crate) fn check(&self, request: &Request<'_>) -> Result<()> {
        let length = request.output.len() as u64 + u64::from(request.input);
        if length > u64::from(self.max_data) {
            let max = self.max_data;
            return Err(Error::BadRequest(format!(
                "{length} bytes of data in a slot of {max}"
            )));
        }
        Ok(())
    }

    /// Prepares any request and returns its segments.
    pub(crate) fn prepare(&mut self, slot: Slot, request: &Request<'_>) -> Vec<Segment> {
        let output = request.output.len();
        self.write_data(slot, 0, &request.output);
        let writable_at = self.data_offset(slot) + output;
        self.data
            .fill(writable_at, request.input as usize + 1, STATUS_NONE);
        let Layout::Cut { readable, writable } = &request.layout else {
            let [header, data, status] =
                self.classic(slot, request.kind, request.sector, (0, false));
            let input = Segment {
                address: GuestAddress(data.address.0 + output as u64),
                length: request.input,
                writable: true,
            };
            if let Some(entry) = self.entries.get_mut(slot.index()) {
                (entry.input, entry.input_at) = (request.input, output);
            }
            let data = Segment {
                length: output as u32,
                ..data
            };
            return [header, data, input, status]
                .into_iter()
                .filter(|part| part.length > 0)
                .collect();
        };
        let readable_at = self.data_offset(slot) - HEADER as usize;
        self.data
            .store(readable_at, [u64::from(request.kind), request.sector]);
        if let Some(entry) = self.entries.get_mut(slot.index()) {
            *entry = Entry {
                kind: request.kind,
                sector: request.sector,
                input: request.input,
                input_at: output,
                status_in_data: Some(writable_at + request.input as usize),
            };
        }
        let base = self.data.guest_address().0;
        let pieces = |start: usize, lengths: &[u32], writable: bool| {
            let mut address = base + start as u64;
            lengths
                .iter()
                .map(|length| {
                    let segment = Segment {
                        address: GuestAddress(address),
                        length: *length,
                        writable,
                    };
                    address += u64::from(*length);
                    segment
                })
                .collect::<Vec<_>>()
        };
        let mut segments = pieces(readable_at, readable, false);
        segments.extend(pieces(writable_at, writable, true));
        segments
    }
}
