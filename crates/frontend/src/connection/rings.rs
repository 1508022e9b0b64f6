//! Rings of a session: started, stopped, given other eventfds while they run.

use std::os::fd::BorrowedFd;

use vhost::vhost_user::message::FrontendReq;
use vhost::vhost_user::{VhostUserFrontend, VhostUserVirtioFeatures};
use vhost::{VhostBackend, VringConfigData};
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use vmm_sys_util::eventfd::EventFd;

use super::Connection;
use crate::driver::{Driver, QueueOptions, RingSetup, eventfd};
use crate::error::Result;

/// Bit of the ring messages that says that no fd comes along (VHOST_USER_VRING_NOFD_MASK).
const NO_FD: u64 = 1 << 8;

impl Connection {
    /// Lays out a queue for this session; the back end hears of it in [`start`](Self::start).
    pub fn queue(&self, index: usize, options: QueueOptions) -> Result<Driver> {
        let event_idx = self.has(VIRTIO_RING_F_EVENT_IDX);
        let indirect = self.has(VIRTIO_RING_F_INDIRECT_DESC);
        Driver::new(&self.memory, index, options, event_idx, indirect)
    }

    /// Starts a ring from the driver's base and enables it. If chains wait there already, the back end is kicked, as
    /// VMMs do.
    pub fn start(&mut self, driver: &mut Driver) -> Result<()> {
        self.start_ring(&driver.setup()?)?;
        if driver.in_flight() > 0 {
            driver.force_kick()?;
        }
        Ok(())
    }

    /// The same for a driver that works in another thread.
    pub fn start_ring(&mut self, ring: &RingSetup) -> Result<()> {
        self.configure_ring(ring)?;
        self.enable(ring.index, true)
    }

    /// Everything but SET_VRING_ENABLE.
    pub fn configure_ring(&mut self, ring: &RingSetup) -> Result<()> {
        let addresses = VringConfigData {
            queue_max_size: ring.size,
            queue_size: ring.size,
            flags: 0,
            desc_table_addr: ring.addresses.descriptors,
            used_ring_addr: ring.addresses.used,
            avail_ring_addr: ring.addresses.avail,
            log_addr: None,
        };
        let index = ring.index;
        self.message("SET_VRING_NUM", |f| f.set_vring_num(index, ring.size))?;
        self.message("SET_VRING_BASE", |f| f.set_vring_base(index, ring.base))?;
        self.message("SET_VRING_ADDR", |f| f.set_vring_addr(index, &addresses))?;
        self.message("SET_VRING_CALL", |f| f.set_vring_call(index, &ring.call))?;
        self.message("SET_VRING_ERR", |f| f.set_vring_err(index, &ring.err))?;
        // Last: back ends start the ring here, and libvhost-user fails if it then has no call fd yet.
        self.message("SET_VRING_KICK", |f| f.set_vring_kick(index, &ring.kick))
    }

    /// SET_VRING_ENABLE. Without protocol features a ring is enabled by its kick fd, and nothing is sent.
    pub fn enable(&mut self, index: usize, on: bool) -> Result<()> {
        if self.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            return Ok(());
        }
        self.message("SET_VRING_ENABLE", |f| f.set_vring_enable(index, on))
    }

    /// Stops a ring with GET_VRING_BASE and remembers its base in the driver. From the reply on the back end touches
    /// neither the ring nor its eventfds.
    pub fn stop(&mut self, driver: &mut Driver) -> Result<u16> {
        let base = self.stop_ring(driver.index())?;
        driver.set_base(base);
        Ok(base)
    }

    /// The same for a driver that works in another thread.
    pub fn stop_ring(&mut self, index: usize) -> Result<u16> {
        // Split rings: the base is a 16-bit index; higher bits are zero.
        self.message("GET_VRING_BASE", |f| f.get_vring_base(index))
            .map(|base| base as u16)
    }

    /// SET_VRING_CALL alone.
    pub fn set_call(&mut self, index: usize, call: &EventFd) -> Result<()> {
        self.message("SET_VRING_CALL", |f| f.set_vring_call(index, call))
    }

    /// SET_VRING_KICK alone.
    pub fn set_kick(&mut self, index: usize, kick: &EventFd) -> Result<()> {
        self.message("SET_VRING_KICK", |f| f.set_vring_kick(index, kick))
    }

    /// SET_VRING_CALL with no fd: the back end has nothing to signal, the driver polls.
    pub fn clear_call(&mut self, index: usize) -> Result<()> {
        self.send_raw(
            FrontendReq::SET_VRING_CALL as u32,
            &(index as u64 | NO_FD).to_ne_bytes(),
            &[],
        )
    }

    /// SET_VRING_KICK with no fd: the back end must poll the ring.
    pub fn clear_kick(&mut self, index: usize) -> Result<()> {
        self.send_raw(
            FrontendReq::SET_VRING_KICK as u32,
            &(index as u64 | NO_FD).to_ne_bytes(),
            &[],
        )
    }

    /// Sends any message without asking for a reply, and returns when the back end has worked it off.
    pub fn send_raw(&mut self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        self.wire()?
            .send(request, crate::wire::VERSION, payload, fds)?;
        self.barrier()
    }

    /// Gives a running ring a new call eventfd and returns the old one. After the return the back end signals the new
    /// one only: every message is worked off in order, and one that has a reply has been answered behind it.
    pub fn swap_call(&mut self, driver: &mut Driver) -> Result<EventFd> {
        let call = eventfd()?;
        self.set_call(driver.index(), &call)?;
        self.barrier()?;
        Ok(driver.replace_call(call))
    }

    /// Gives a running ring a new kick eventfd and returns the old one. A kick is written to the new one, so that
    /// none between the two is lost.
    pub fn swap_kick(&mut self, driver: &mut Driver) -> Result<EventFd> {
        let kick = eventfd()?;
        self.set_kick(driver.index(), &kick)?;
        self.barrier()?;
        let old = driver.replace_kick(kick);
        driver.force_kick()?;
        Ok(old)
    }
}
