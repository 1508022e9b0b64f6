use super::MockMemory;
use crate::queue::QueueConfig;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{Ordering, fence};
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};

/// One buffer of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Guest address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// The device writes it; else it reads it.
    pub writable: bool,
}

impl Buffer {
    /// For the device to read.
    pub fn readable(addr: u64, len: u32) -> Buffer {
        Buffer {
            addr,
            len,
            writable: false,
        }
    }
    /// For the device to write.
    pub fn writable(addr: u64, len: u32) -> Buffer {
        Buffer {
            addr,
            len,
            writable: true,
        }
    }
}

/// A raw descriptor (2.7.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// NEXT 1, WRITE 2, INDIRECT 4.
    pub flags: u16,
    /// Index of the next descriptor, with NEXT.
    pub next: u16,
}

impl Descriptor {
    /// The flag bits.
    pub const NEXT: u16 = VRING_DESC_F_NEXT as u16;
    /// Device-writable.
    pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;
    /// Points to a table.
    pub const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

    fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        let fields = self
            .addr
            .to_le_bytes()
            .into_iter()
            .chain(self.len.to_le_bytes());
        let fields = fields
            .chain(self.flags.to_le_bytes())
            .chain(self.next.to_le_bytes());
        bytes
            .iter_mut()
            .zip(fields)
            .for_each(|(byte, field)| *byte = field);
        bytes
    }
}

/// The driver of one split ring.
pub struct MockDriver {
    memory: MockMemory,
    config: QueueConfig,
    event_idx: bool,
    free: VecDeque<u16>,
    /// Descriptors of each outstanding request by head; empty for those offered raw.
    outstanding: BTreeMap<u16, Vec<u16>>,
    /// Free-running index behind the last entry filled.
    filled: u16,
    /// avail.idx as the device sees it.
    available: u16,
    /// Free-running index of the next used element to take.
    last_used: u16,
    /// Start of the memory that `alloc` has not given away.
    unused: u64,
}

impl MockDriver {
    /// Lays a ring out at `base` (aligned to 4096) and zeroes it. `features`: the virtio feature bits both sides agreed upon.
    pub fn new(memory: &MockMemory, base: u64, size: u16, features: u64) -> MockDriver {
        MockDriver::starting_at(memory, base, size, features, 0)
    }

    /// As [`MockDriver::new`], as if `index` requests had gone through the ring before.
    pub fn starting_at(
        memory: &MockMemory,
        base: u64,
        size: u16,
        features: u64,
        index: u16,
    ) -> MockDriver {
        assert_eq!(base % 4096, 0, "the ring's base is page-aligned");
        let entries = u64::from(size);
        let avail = base + 16 * entries;
        let used = (avail + 6 + 2 * entries).next_multiple_of(4);
        let end = used + 6 + 8 * entries;
        let zeros = vec![0; usize::try_from(end - base).expect("a ring fits memory")];
        memory.write(base, &zeros);
        let config = QueueConfig {
            size,
            desc: base,
            avail,
            used,
            next_avail: index,
            next_used: Some(index),
            features,
        };
        let driver = MockDriver {
            memory: memory.clone(),
            config,
            event_idx: features >> VIRTIO_RING_F_EVENT_IDX & 1 == 1,
            free: (0..size).collect(),
            outstanding: BTreeMap::new(),
            filled: index,
            available: index,
            last_used: index,
            unused: end.next_multiple_of(4096),
        };
        driver.set_avail_idx(index);
        memory.store(used + 2, index, Ordering::Release);
        driver.set_used_event(index);
        driver
            .memory
            .store(driver.avail_event_addr(), index, Ordering::Release);
        driver
    }

    /// What the front end would tell the back end about the ring.
    pub fn config(&self) -> QueueConfig {
        self.config
    }

    /// The memory the ring lies in.
    pub fn memory(&self) -> &MockMemory {
        &self.memory
    }

    /// Address of `len` unused bytes behind the ring; never given back.
    pub fn alloc(&mut self, len: u64, align: u64) -> u64 {
        let addr = self.unused.next_multiple_of(align);
        self.unused = addr + len;
        addr
    }

    /// Descriptors that `add` may take.
    pub fn free_descriptors(&self) -> usize {
        self.free.len()
    }

    /// Requests made available (or filled in) and not yet taken back.
    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// Writes a request as a chain in the ring's table and fills its avail entry; its head. `None`: not enough free descriptors.
    pub fn add(&mut self, buffers: &[Buffer]) -> Option<u16> {
        if buffers.is_empty() || buffers.len() > self.free.len() {
            return None;
        }
        let indices: Vec<u16> = self.free.drain(..buffers.len()).collect();
        for ((at, buffer), next) in indices.iter().zip(buffers).zip(following(&indices)) {
            self.write_descriptor(*at, plain(buffer, next));
        }
        Some(self.outstand(indices))
    }

    /// As [`MockDriver::add`] with the descriptors in an indirect table at `table`.
    pub fn add_indirect(&mut self, table: u64, buffers: &[Buffer]) -> Option<u16> {
        let head = self.free.pop_front()?;
        let indices: Vec<u16> = (0..).take(buffers.len()).collect();
        let entries: Vec<_> = buffers
            .iter()
            .zip(following(&indices))
            .map(|(buffer, next)| plain(buffer, next))
            .collect();
        self.write_table(table, &entries);
        let len = u32::try_from(16 * entries.len()).expect("table length fits u32");
        self.write_descriptor(
            head,
            Descriptor {
                addr: table,
                len,
                flags: Descriptor::INDIRECT,
                next: 0,
            },
        );
        Some(self.outstand(vec![head]))
    }

    fn outstand(&mut self, indices: Vec<u16>) -> u16 {
        let head = *indices.first().expect("a chain has a descriptor");
        self.fill_avail(head);
        self.outstanding.insert(head, indices);
        head
    }

    /// Raw: fills the next avail entry with any number at all.
    pub fn offer(&mut self, head: u16) {
        self.fill_avail(head);
        self.outstanding.entry(head).or_default();
    }

    fn fill_avail(&mut self, head: u16) {
        let slot = u64::from(self.filled % self.config.size);
        self.memory
            .store(self.config.avail + 4 + 2 * slot, head, Ordering::Relaxed);
        self.filled = self.filled.wrapping_add(1);
    }

    /// Raw: writes a descriptor of the ring's table.
    pub fn write_descriptor(&self, index: u16, descriptor: Descriptor) {
        self.memory.write(
            self.config.desc + 16 * u64::from(index),
            &descriptor.bytes(),
        );
    }

    /// Raw: writes descriptors to any address.
    pub fn write_table(&self, addr: u64, descriptors: &[Descriptor]) {
        let bytes: Vec<u8> = descriptors.iter().flat_map(Descriptor::bytes).collect();
        self.memory.write(addr, &bytes);
    }

    /// Raw: stores avail.idx.
    pub fn set_avail_idx(&self, index: u16) {
        self.memory
            .store(self.config.avail + 2, index, Ordering::Release);
    }

    /// Shows the device all filled entries; true if it wants a kick for them (2.7.13.4).
    pub fn make_available(&mut self) -> bool {
        let old = std::mem::replace(&mut self.available, self.filled);
        self.set_avail_idx(self.available);
        // The driver's full barrier between avail.idx and what the device says about kicks.
        fence(Ordering::SeqCst);
        if old == self.available {
            return false;
        }
        if self.event_idx {
            crossed(self.avail_event(), old, self.available)
        } else {
            !self.kicks_muted()
        }
    }

    /// used.idx as the device published it.
    pub fn used_idx(&self) -> u16 {
        self.memory.load(self.config.used + 2, Ordering::Acquire)
    }

    /// The next used element: head and bytes written. Its descriptors are free again.
    ///
    /// # Panics
    /// When the device used what is not outstanding.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        if self.used_idx() == self.last_used {
            return None;
        }
        let element = self.config.used + 4 + 8 * u64::from(self.last_used % self.config.size);
        let id: u32 = self.memory.load(element, Ordering::Relaxed);
        let len: u32 = self.memory.load(element + 4, Ordering::Relaxed);
        self.last_used = self.last_used.wrapping_add(1);
        let head = u16::try_from(id).expect("a used id is a descriptor index");
        let Some(descriptors) = self.outstanding.remove(&head) else {
            panic!("the device used descriptor {head}, which is not outstanding");
        };
        self.free.extend(descriptors);
        Some((head, len))
    }

    /// Asks for a call at the next used element; true if there already is one (2.7.7): then there may be no call for it.
    pub fn enable_calls(&mut self) -> bool {
        if self.event_idx {
            self.set_used_event(self.last_used);
        } else {
            self.memory
                .store(self.config.avail, 0u16, Ordering::Relaxed);
        }
        // The driver's full barrier between what it says about calls and its last look at used.idx.
        fence(Ordering::SeqCst);
        self.used_idx() != self.last_used
    }

    /// Asks for no calls (a hint; with EVENT_IDX only a used_event left behind).
    pub fn disable_calls(&mut self) {
        if !self.event_idx {
            self.memory
                .store(self.config.avail, 1u16, Ordering::Relaxed);
        }
    }

    /// Raw: stores used_event.
    pub fn set_used_event(&self, index: u16) {
        let addr = self.config.avail + 4 + 2 * u64::from(self.config.size);
        self.memory.store(addr, index, Ordering::Relaxed);
    }

    fn avail_event_addr(&self) -> u64 {
        self.config.used + 4 + 8 * u64::from(self.config.size)
    }

    /// avail_event as the device left it.
    pub fn avail_event(&self) -> u16 {
        self.memory.load(self.avail_event_addr(), Ordering::Relaxed)
    }

    /// VIRTQ_USED_F_NO_NOTIFY as the device left it.
    pub fn kicks_muted(&self) -> bool {
        self.memory.load::<u16>(self.config.used, Ordering::Relaxed) & 1 == 1
    }
}

/// The index after each.
fn following(indices: &[u16]) -> impl Iterator<Item = Option<u16>> {
    indices
        .iter()
        .skip(1)
        .map(|index| Some(*index))
        .chain([None])
}

fn plain(buffer: &Buffer, next: Option<u16>) -> Descriptor {
    let write = if buffer.writable {
        Descriptor::WRITE
    } else {
        0
    };
    let has_next = if next.is_some() { Descriptor::NEXT } else { 0 };
    Descriptor {
        addr: buffer.addr,
        len: buffer.len,
        flags: write | has_next,
        next: next.unwrap_or(0),
    }
}

/// Some entry in (old, new] is the one behind `event`; counted out rather than computed, being a witness.
fn crossed(event: u16, old: u16, new: u16) -> bool {
    let mut at = old;
    while at != new {
        if at == event {
            return true;
        }
        at = at.wrapping_add(1);
    }
    false
}
