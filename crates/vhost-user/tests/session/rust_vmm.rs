//! The front end of the rust-vmm crates, as cloud-hypervisor and Firecracker use it: a third party's reading of the same
//! specification.

use crate::{
    guest::{FEATURES, Guest, SIZE},
    harness::Bench,
    raw::{F_PROTOCOL, PATIENCE, PROTOCOL},
};
use std::os::{
    fd::{AsRawFd, IntoRawFd},
    unix::net::UnixStream,
};
use vhost::{
    VhostBackend, VhostUserMemoryRegionInfo, VringConfigData,
    vhost_user::{
        Frontend, VhostUserFrontend, VhostUserProtocolFeatures,
        message::{VhostUserConfigFlags, VhostUserHeaderFlag},
    },
};
use vmm_sys_util::eventfd::EventFd;

#[allow(unsafe_code)]
fn event(fd: &impl AsRawFd) -> EventFd {
    use std::os::fd::{BorrowedFd, FromRawFd};
    // SAFETY: the caller's descriptor is open; it is only borrowed to be duplicated.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
    let own = rustix::io::fcntl_dupfd_cloexec(borrowed, 0).unwrap();
    // SAFETY: ours alone, just made.
    unsafe { EventFd::from_raw_fd(own.into_raw_fd()) }
}

/// The session as the two virtual machine monitors lead it: everything acknowledged, the table first, rings, requests, stop, start.
#[test]
fn a_whole_life() {
    let bench = Bench::new();
    let mut guest = Guest::new(0);
    bench.mark();
    let stream = UnixStream::connect(bench.path()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut front = Frontend::from_stream(stream, 4);

    front.set_owner().unwrap();
    let features = front.get_features().unwrap();
    assert_eq!(features & FEATURES, FEATURES);
    front.set_features(FEATURES).unwrap();
    let protocol = front.get_protocol_features().unwrap();
    assert_eq!(protocol.bits(), PROTOCOL);
    assert!(protocol.contains(VhostUserProtocolFeatures::REPLY_ACK));
    front.set_protocol_features(protocol).unwrap();
    front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    assert_eq!(front.get_queue_num().unwrap(), 4);
    assert_eq!(front.get_max_mem_slots().unwrap(), 509);

    let (_, bytes) = front
        .get_config(0, 60, VhostUserConfigFlags::WRITABLE, &[0; 60])
        .unwrap();
    assert_eq!(bytes, *bench.echo.config.lock().unwrap());
    front
        .set_config(32, VhostUserConfigFlags::WRITABLE, &[9])
        .unwrap();
    assert_eq!(bench.echo.config.lock().unwrap()[32], 9);
    // (A range that is not there is not asked for: this front end waits for ever for the bytes of an error reply, its own back
    // end's as well.)

    let files = guest.memory.files();
    let (info, file) = &files[0];
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: info.guest_addr,
        memory_size: info.size,
        userspace_addr: info.user_addr,
        mmap_offset: info.file_offset,
        mmap_handle: file.as_raw_fd(),
    };
    front.set_mem_table(&[region]).unwrap();
    front.remove_mem_region(&region).unwrap();
    front.add_mem_region(&region).unwrap();

    let config = guest.driver.config();
    let mut base = 0;
    for round in 1..=5 {
        front.set_vring_num(0, SIZE).unwrap();
        front
            .set_vring_addr(
                0,
                &VringConfigData {
                    queue_max_size: 256,
                    queue_size: SIZE,
                    flags: 0,
                    desc_table_addr: info.user_addr + config.desc,
                    used_ring_addr: info.user_addr + config.used,
                    avail_ring_addr: info.user_addr + config.avail,
                    log_addr: None,
                },
            )
            .unwrap();
        front.set_vring_base(0, base).unwrap();
        front.set_vring_call(0, &event(&guest.call)).unwrap();
        front.set_vring_err(0, &event(&guest.call)).unwrap();
        front.set_vring_kick(0, &event(&guest.kick)).unwrap();
        front.set_vring_enable(0, true).unwrap();
        guest.round_trip();
        guest.round_trip();
        front.set_vring_enable(0, false).unwrap();
        base = u16::try_from(front.get_vring_base(0).unwrap()).unwrap();
        assert_eq!(base, 2 * round);
    }
    front.reset_device().unwrap();
    front.reset_owner().unwrap();
    assert_ne!(FEATURES & F_PROTOCOL, 0);
    drop((front, files));
    bench.quiet();
}
