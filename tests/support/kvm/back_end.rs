//! The VMM's side of the wire, by the `vhost` crate: an independent opinion about the protocol.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::program;
use super::vm::Vm;

/// A connection with one ring: the guest's.
pub struct BackEnd {
    frontend: Frontend,
    host: u64,
}

impl BackEnd {
    /// Connects, negotiates (no event index, no indirect descriptors: every completion owes an interrupt) and hands over the
    /// guest's memory.
    ///
    /// A back end turns a second front end away while it still takes leave of the first: tried again until the deadline.
    pub fn connect(socket: &Path, vm: &Vm) -> Self {
        let deadline = Instant::now() + super::DEADLINE;
        let (mut frontend, offered) = loop {
            match greet(socket) {
                Ok(greeted) => break greeted,
                Err(error) => assert!(Instant::now() < deadline, "{}: {error}", socket.display()),
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let wanted = 1 << VIRTIO_F_VERSION_1 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        assert_eq!(offered & wanted, wanted, "features offered: {offered:#x}");
        frontend.set_features(wanted).expect("SET_FEATURES");
        let protocol = frontend
            .get_protocol_features()
            .expect("GET_PROTOCOL_FEATURES");
        frontend
            .set_protocol_features(
                protocol
                    & (VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::CONFIG),
            )
            .expect("SET_PROTOCOL_FEATURES");
        if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }

        let memory = vm.memory();
        let host = memory
            .get_host_address(GuestAddress(0))
            .expect("guest memory") as u64;
        let region = memory.iter().next().expect("one region");
        let file = region.file_offset().expect("guest memory is a file");
        frontend
            .set_mem_table(&[VhostUserMemoryRegionInfo {
                guest_phys_addr: 0,
                memory_size: program::MEMORY as u64,
                userspace_addr: host,
                mmap_offset: file.start(),
                mmap_handle: file.file().as_raw_fd(),
            }])
            .expect("SET_MEM_TABLE");
        Self { frontend, host }
    }

    /// Starts the ring where it stopped, on these eventfds, and kicks it once, as a VMM does for what the guest made
    /// available while nobody listened.
    pub fn start(&mut self, base: u16, kick: &EventFd, call: &EventFd) {
        self.frontend
            .set_vring_num(0, program::QUEUE_SIZE)
            .expect("SET_VRING_NUM");
        let addresses = VringConfigData {
            queue_max_size: program::QUEUE_SIZE,
            queue_size: program::QUEUE_SIZE,
            flags: 0,
            desc_table_addr: self.host + program::DESCRIPTORS,
            used_ring_addr: self.host + program::USED,
            avail_ring_addr: self.host + program::AVAIL,
            log_addr: None,
        };
        self.frontend
            .set_vring_addr(0, &addresses)
            .expect("SET_VRING_ADDR");
        self.frontend
            .set_vring_base(0, base)
            .expect("SET_VRING_BASE");
        self.frontend
            .set_vring_call(0, call)
            .expect("SET_VRING_CALL");
        self.frontend
            .set_vring_kick(0, kick)
            .expect("SET_VRING_KICK");
        self.frontend
            .set_vring_enable(0, true)
            .expect("SET_VRING_ENABLE 1");
        kick.write(1).expect("kick");
    }

    /// SET_VRING_ENABLE 0.
    pub fn disable(&mut self) {
        self.frontend
            .set_vring_enable(0, false)
            .expect("SET_VRING_ENABLE 0");
    }

    /// GET_VRING_BASE: stops the ring. Returns the next available index.
    pub fn stop(&mut self) -> u16 {
        let base = self.frontend.get_vring_base(0).expect("GET_VRING_BASE");
        u16::try_from(base).expect("the base of a split ring has 16 bits")
    }
}

/// The first words, after which the back end is known to serve this connection.
fn greet(socket: &Path) -> Result<(Frontend, u64), vhost::Error> {
    let frontend = Frontend::connect(socket, 1)?;
    frontend.set_owner()?;
    let features = frontend.get_features()?;
    Ok((frontend, features))
}
