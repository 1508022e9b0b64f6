//! A guest's driver behind the raw front end: memory, a ring, a kick and a call.

use crate::{harness::eventually, raw::*};
use outboard_virtio::mock::{Buffer, MockDriver, MockMemory};
use std::os::fd::{AsFd, OwnedFd};

pub const SIZE: u16 = 64;
pub const FEATURES: u64 = F_VERSION_1 | F_INDIRECT | F_EVENT_IDX | F_PROTOCOL;
pub const MEMORY: u64 = 1 << 20;

pub struct Guest {
    pub memory: MockMemory,
    pub driver: MockDriver,
    pub kick: OwnedFd,
    pub call: OwnedFd,
    pub index: u32,
    /// index of the next request
    base: u16,
    buffer: u64,
}

/// Takes the count of an eventfd; 0 if there is none.
pub fn count(fd: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    match rustix::io::read(fd, &mut count) {
        Ok(_) => u64::from_ne_bytes(count),
        Err(rustix::io::Errno::AGAIN) => 0,
        Err(e) => panic!("reading an eventfd: {e}"),
    }
}

pub fn region_of(memory: &MockMemory) -> (Region, OwnedFd) {
    let (info, file) = memory.files().remove(0);
    (
        [info.guest_addr, info.size, info.user_addr, info.file_offset],
        file.into(),
    )
}

impl Guest {
    pub fn new(index: u32) -> Guest {
        Guest::over(&MockMemory::flat(MEMORY), index)
    }

    /// One more ring in memory that is there already.
    pub fn over(memory: &MockMemory, index: u32) -> Guest {
        Guest::starting_at(memory, index, 0)
    }

    pub fn starting_at(memory: &MockMemory, index: u32, base: u16) -> Guest {
        let at = u64::from(index) * 0x10000;
        let mut driver = MockDriver::starting_at(memory, at, SIZE, FEATURES, base);
        let buffer = driver.alloc(4096, 4096);
        Guest {
            memory: memory.clone(),
            driver,
            kick: eventfd(),
            call: eventfd(),
            index,
            base,
            buffer,
        }
    }

    pub fn give_memory(&self, front: &Raw) {
        let (region, file) = region_of(&self.memory);
        front.ok(ADD_MEM_REG, &single(region), &[file.as_fd()]);
    }

    pub fn addresses(&self) -> Vec<u8> {
        let config = self.driver.config();
        let user = region_of(&self.memory).0[2];
        addresses(
            self.index,
            0,
            user + config.desc,
            user + config.used,
            user + config.avail,
        )
    }

    pub fn give_ring(&self, front: &Raw) {
        front.ok(SET_VRING_NUM, &state(self.index, u32::from(SIZE)), &[]);
        front.ok(
            SET_VRING_BASE,
            &state(self.index, u32::from(self.base)),
            &[],
        );
        front.ok(SET_VRING_ADDR, &self.addresses(), &[]);
    }

    pub fn give_call(&self, front: &Raw) {
        front.ring_fd(SET_VRING_CALL, self.index.into(), Some(&self.call));
    }

    pub fn give_kick(&self, front: &Raw) {
        front.ring_fd(SET_VRING_KICK, self.index.into(), Some(&self.kick));
    }

    pub fn enable(&self, front: &Raw, on: bool) {
        front.ok(SET_VRING_ENABLE, &state(self.index, u32::from(on)), &[]);
    }

    /// In QEMU's order.
    pub fn start(&self, front: &Raw) {
        self.give_ring(front);
        self.give_call(front);
        self.give_kick(front);
        self.enable(front, true);
    }

    /// Negotiation, memory and the ring.
    pub fn boot(&self, front: &Raw) {
        front.negotiate(FEATURES);
        self.give_memory(front);
        self.start(front);
    }

    /// Makes a request available; the driver kicks if the device wants it.
    pub fn offer(&mut self) -> u16 {
        let from = self.buffer + 16 * u64::from(self.base % 64);
        self.memory
            .write(from, &[u8::try_from(self.base & 0xff).unwrap(); 8]);
        let head = self
            .driver
            .add(&[Buffer::readable(from, 8), Buffer::writable(from + 2048, 8)]);
        self.base = self.base.wrapping_add(1);
        if self.driver.make_available() {
            self.kick();
        }
        head.expect("a free descriptor")
    }

    pub fn kick(&self) {
        rustix::io::write(&self.kick, &1_u64.to_ne_bytes()).expect("kick");
    }

    /// Waits for the next used element.
    pub fn used(&mut self) -> (u16, u32) {
        let mut used = None;
        let driver = &mut self.driver;
        eventually("a used buffer", || {
            used = driver.take_used();
            used.is_some()
        });
        used.unwrap()
    }

    /// A request to its end, the data compared.
    pub fn round_trip(&mut self) {
        let head = self.offer();
        assert_eq!(self.used(), (head, 8));
        let at = self.base.wrapping_sub(1);
        let from = self.buffer + 16 * u64::from(at % 64);
        assert_eq!(
            self.memory.read(from + 2048, 8),
            [u8::try_from(at & 0xff).unwrap(); 8]
        );
    }

    /// GET_VRING_BASE.
    pub fn stop(&self, front: &Raw) -> u32 {
        let body = front.get(GET_VRING_BASE, &state(self.index, 0)).body;
        assert_eq!(body[..4], self.index.to_ne_bytes());
        u32::from_ne_bytes(body[4..8].try_into().unwrap())
    }
}
