//! The SIGBUS guard under real truncations.
#![allow(unsafe_code)]
use super::{byte, info, memfd};
use crate::memory::MemoryMap;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

#[test]
fn a_truncation_under_access_damages_its_region_and_nothing_else() {
    let (file, other) = (memfd(0x4000), memfd(0x1000));
    let map = MemoryMap::from_files(vec![
        (info(0, 0x4000, 0), file.try_clone().unwrap()),
        (info(0x10_0000, 0x1000, 0), other),
    ])
    .unwrap();
    let shared = map
        .with_region(info(0x20_0000, 0x1000, 0), memfd(0x1000))
        .unwrap();
    let intact = map.without_region(&info(0, 0x4000, 0)).unwrap();
    assert_eq!(byte(&map, 0x3000), Some(4));

    file.set_len(0x2000).unwrap();
    assert!(!map.is_damaged(), "nobody touched the lost pages yet");
    assert_eq!(
        byte(&map, 0x1fff),
        Some(2),
        "what is left of the file is still there"
    );
    assert!(!map.is_damaged());
    assert_eq!(byte(&map, 0x2abc), Some(0), "a page of zeros in its place");
    assert!(
        map.is_damaged() && shared.is_damaged(),
        "every map with that region"
    );
    assert!(!intact.is_damaged());
    assert_eq!(
        byte(&map, 0x1000),
        Some(2),
        "the neighbouring page was not replaced"
    );

    let (host, _) = map.window(0x3fff).unwrap().host(0x3fff).unwrap();
    // SAFETY: translated by a map that lives; the guard replaces the lost page under the store.
    unsafe { host.write_volatile(9) };
    assert_eq!(byte(&map, 0x3fff), Some(9), "stores are caught as well");
}

#[test]
fn threads_that_fault_on_the_same_pages_all_go_on() {
    let file = memfd(0x10_0000);
    let map =
        MemoryMap::from_files(vec![(info(0, 0x10_0000, 0), file.try_clone().unwrap())]).unwrap();
    file.set_len(0).unwrap();
    let zeros: usize = std::thread::scope(|scope| {
        let touch = || {
            (0..0x100u64)
                .filter(|page| byte(&map, page * 0x1000) == Some(0))
                .count()
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(touch)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    assert_eq!(zeros, 4 * 0x100);
    assert!(map.is_damaged());
}

#[test]
fn the_registry_grows_and_a_reused_slot_starts_undamaged() {
    // More regions than a chunk has slots, twice, with maps of other tests coming and going.
    for _ in 0..2 {
        let file = memfd(0x1000);
        let region = |n: u64| (info(n * 0x1000, 0x1000, 0), file.try_clone().unwrap());
        let map = MemoryMap::from_files((0..200).map(region).collect()).unwrap();
        assert!(!map.is_damaged());
        file.set_len(0).unwrap();
        assert_eq!(byte(&map, 199 * 0x1000), Some(0));
        assert!(map.is_damaged());
        let last = map.without_region(&region(199).0).unwrap();
        assert!(!last.is_damaged(), "only the touched one");
    }
}

/// Runs `body` in a process of its own, which is this test started once more; in the parent, how the child ended.
fn in_child(test: &str, body: impl FnOnce()) -> Option<ExitStatus> {
    const CHILD: &str = "OUTBOARD_TEST_CHILD";
    if std::env::var_os(CHILD).is_some() {
        body();
        return None;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            &format!("memory::tests::guard::{test}"),
            "--exact",
            "--nocapture",
        ])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        printed.contains("running 1 test"),
        "no such test: {printed}"
    );
    Some(output.status)
}

/// Reads behind the end of a mapped file that is none of ours, while the guard watches another.
fn touch_foreign_mapping() {
    let _watched = MemoryMap::from_files(vec![(info(0, 0x1000, 0), memfd(0x1000))]).unwrap();
    let file = memfd(0x1000);
    let region: vm_memory::MmapRegion = vm_memory::MmapRegion::from_file(
        vm_memory::FileOffset::new(file.try_clone().unwrap(), 0),
        0x1000,
    )
    .unwrap();
    file.set_len(0).unwrap();
    // SAFETY: mapped; the fault is the point.
    unsafe { region.as_ptr().read_volatile() };
}

#[test]
fn a_fault_elsewhere_is_as_fatal_as_without_the_guard() {
    let test = "a_fault_elsewhere_is_as_fatal_as_without_the_guard";
    if let Some(status) = in_child(test, touch_foreign_mapping) {
        assert_eq!(status.signal(), Some(libc::SIGBUS));
    }
}

#[test]
fn a_sent_sigbus_is_as_fatal_as_without_the_guard() {
    let child = || {
        // SAFETY: sets the default action.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
        let _watched = MemoryMap::from_files(vec![(info(0, 0x1000, 0), memfd(0x1000))]).unwrap();
        // SAFETY: raises a signal.
        unsafe { libc::raise(libc::SIGBUS) };
    };
    if let Some(status) = in_child("a_sent_sigbus_is_as_fatal_as_without_the_guard", child) {
        assert_eq!(status.signal(), Some(libc::SIGBUS));
    }
}

#[test]
fn an_earlier_handler_still_gets_the_faults_that_are_not_ours() {
    extern "C" fn earlier(_: libc::c_int) {
        // SAFETY: ends the process at once, as a handler may.
        unsafe { libc::_exit(42) }
    }
    let child = || {
        // SAFETY: a handler of the plain kind, doing what a handler may.
        unsafe { libc::signal(libc::SIGBUS, earlier as *const () as usize) };
        touch_foreign_mapping();
    };
    if let Some(status) = in_child(
        "an_earlier_handler_still_gets_the_faults_that_are_not_ours",
        child,
    ) {
        assert_eq!(status.code(), Some(42));
    }
}
