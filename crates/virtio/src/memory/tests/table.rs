//! What a memory table may say, and what addresses mean in it.
use super::{byte, info, memfd};
use crate::memory::{MAX_BYTES, MAX_REGIONS, MemoryError, MemoryMap, RegionInfo};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

fn refused(info: RegionInfo, file: File) -> MemoryError {
    MemoryMap::from_files(vec![(info, file)]).unwrap_err()
}

#[test]
fn an_empty_map_holds_no_address() {
    let map = MemoryMap::empty();
    assert!(map.window(0).is_none() && map.user_to_guest(0).is_none() && !map.is_damaged());
    assert_eq!(map.regions().count(), 0);
}

#[test]
fn addresses_are_found_in_their_region_up_to_its_last_byte() {
    let map = MemoryMap::from_files(vec![
        (info(0x10_0000, 0x2000, 0), memfd(0x2000)),
        (info(0x1000, 0x3000, 0x1000), memfd(0x4000)),
    ])
    .unwrap();
    assert_eq!(
        map.regions()
            .map(|region| region.guest_addr)
            .collect::<Vec<_>>(),
        [0x1000, 0x10_0000]
    );
    assert_eq!(byte(&map, 0x1000), Some(2), "file offset counts");
    assert_eq!(byte(&map, 0x3fff), Some(4));
    assert_eq!(byte(&map, 0x10_1fff), Some(2));
    for outside in [0, 0xfff, 0x4000, 0xf_ffff, 0x10_2000, u64::MAX] {
        assert_eq!(byte(&map, outside), None, "{outside:#x}");
    }
    let (_, room) = map.window(0x3ff0).unwrap().host(0x3ff0).unwrap();
    assert_eq!(room, 0x10);
}

#[test]
fn user_addresses_translate_by_their_own_layout() {
    // User order is the reverse of guest order, so a mix-up of the two sorts shows.
    let low = RegionInfo {
        guest_addr: 0,
        size: 0x1000,
        user_addr: 0x9000,
        file_offset: 0,
    };
    let high = RegionInfo {
        guest_addr: 0x8000,
        size: 0x1000,
        user_addr: 0x2000,
        file_offset: 0,
    };
    let map = MemoryMap::from_files(vec![(low, memfd(0x1000)), (high, memfd(0x1000))]).unwrap();
    assert_eq!(map.user_to_guest(0x9000), Some(0));
    assert_eq!(map.user_to_guest(0x2fff), Some(0x8fff));
    for outside in [0, 0x1fff, 0x3000, 0x8fff, 0xa000, u64::MAX] {
        assert_eq!(map.user_to_guest(outside), None, "{outside:#x}");
    }
}

#[test]
fn a_file_offset_within_a_page_is_mapped_from_the_page_start() {
    let file = memfd(0x3000);
    file.write_all_at(b"here", 0x1804).unwrap();
    let map = MemoryMap::from_files(vec![(
        info(0x500, 0x1000, 0x1804),
        file.try_clone().unwrap(),
    )])
    .unwrap();
    assert_eq!(byte(&map, 0x500), Some(b'h'));
    assert_eq!(byte(&map, 0x503), Some(b'e'));
    assert_eq!(
        byte(&map, 0x14ff),
        Some(3),
        "the last byte is in the next page"
    );
    assert_eq!(byte(&map, 0x1500), None);
}

#[test]
fn a_region_without_bytes_is_refused() {
    assert!(matches!(
        refused(info(0, 0, 0), memfd(0x1000)),
        MemoryError::Empty(_)
    ));
}

#[test]
fn a_region_that_wraps_is_refused_in_each_of_its_three_positions() {
    let good = RegionInfo {
        guest_addr: 0,
        size: 0x1000,
        user_addr: 0,
        file_offset: 0,
    };
    let top = u64::MAX - 0xfff;
    for (region, what) in [
        (
            RegionInfo {
                guest_addr: top,
                ..good
            },
            "guest address",
        ),
        (
            RegionInfo {
                user_addr: top,
                ..good
            },
            "user address",
        ),
        (
            RegionInfo {
                file_offset: top,
                ..good
            },
            "file offset",
        ),
        (
            RegionInfo {
                size: u64::MAX,
                guest_addr: 1,
                ..good
            },
            "guest address",
        ),
    ] {
        match refused(region, memfd(0x1000)) {
            MemoryError::Wraps { what: found, .. } => assert_eq!(found, what),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn a_region_past_the_end_of_its_file_is_refused() {
    assert!(matches!(
        refused(info(0, 0x2000, 0), memfd(0x1fff)),
        MemoryError::PastEnd {
            file_size: 0x1fff,
            ..
        }
    ));
    assert!(matches!(
        refused(info(0, 0x1000, 0x1001), memfd(0x2000)),
        MemoryError::PastEnd { .. }
    ));
    // The sum is larger than any file, and near the limit of file offsets.
    assert!(matches!(
        refused(info(0, 32 << 40, 1 << 62), memfd(0x2000)),
        MemoryError::PastEnd { .. }
    ));
    assert!(MemoryMap::from_files(vec![(info(0, 0x1000, 0x1000), memfd(0x2000))]).is_ok());
}

#[test]
fn only_regular_files_and_memfds_hold_guest_memory() {
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let (_reader, pipe) = rustix::pipe::pipe().unwrap();
    let eventfd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let zero = File::options()
        .read(true)
        .write(true)
        .open("/dev/zero")
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let cases: [(&str, OwnedFd); 5] = [
        ("socket", socket.into()),
        ("pipe", pipe),
        (
            "descriptor without a file (eventfd, epoll or the like)",
            eventfd,
        ),
        ("character device", zero.into()),
        ("directory", File::open(dir.path()).unwrap().into()),
    ];
    for (name, fd) in cases {
        match refused(info(0, 0x1000, 0), File::from(fd)) {
            MemoryError::NotAFile { kind, .. } => assert_eq!(kind, name),
            other => panic!("{name}: {other}"),
        }
    }
    let file = tempfile::tempfile().unwrap();
    file.set_len(0x1000).unwrap();
    assert!(
        MemoryMap::from_files(vec![(info(0, 0x1000, 0), file)]).is_ok(),
        "a file is as good as a memfd"
    );
}

#[test]
fn a_file_that_cannot_be_written_is_refused_by_the_mapping() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(0x1000).unwrap();
    let read_only = File::open(file.path()).unwrap();
    assert!(matches!(
        refused(info(0, 0x1000, 0), read_only),
        MemoryError::Map(..)
    ));
}

#[test]
fn regions_must_not_overlap_in_guest_or_user_addresses() {
    let one = RegionInfo {
        guest_addr: 0x1000,
        size: 0x2000,
        user_addr: 0x10_0000,
        file_offset: 0,
    };
    let map = MemoryMap::from_files(vec![(one, memfd(0x2000))]).unwrap();
    let add = |guest_addr, user_addr| {
        map.with_region(
            RegionInfo {
                guest_addr,
                size: 0x1000,
                user_addr,
                file_offset: 0,
            },
            memfd(0x1000),
        )
    };
    for guest_addr in [0x1, 0x1000, 0x2000, 0x2fff] {
        let error = add(guest_addr, 0x20_0000).unwrap_err();
        assert!(
            matches!(error, MemoryError::Overlap { space: "guest", .. }),
            "{error}"
        );
    }
    for user_addr in [0xf_f001, 0x10_0000, 0x10_1fff] {
        let error = add(0x9000, user_addr).unwrap_err();
        assert!(
            matches!(error, MemoryError::Overlap { space: "user", .. }),
            "{error}"
        );
    }
    assert!(
        add(0x3000, 0xf_f000).is_ok() && add(0, 0x10_2000).is_ok(),
        "neighbours are no overlap"
    );
}

#[test]
fn a_table_has_at_most_509_regions() {
    let file = memfd(0x1000);
    let region = |n: usize| {
        (
            info(n as u64 * 0x1000, 0x1000, 0),
            file.try_clone().unwrap(),
        )
    };
    assert!(matches!(
        MemoryMap::from_files((0..=MAX_REGIONS).map(region).collect()),
        Err(MemoryError::TooMany)
    ));
    let full = MemoryMap::from_files((0..MAX_REGIONS).map(region).collect()).unwrap();
    assert_eq!(full.regions().count(), MAX_REGIONS);
    assert!((0..MAX_REGIONS as u64).all(|n| byte(&full, n * 0x1000 + 0xfff) == Some(1)));
    let (extra, file) = region(MAX_REGIONS);
    assert!(matches!(
        full.with_region(extra, file),
        Err(MemoryError::TooMany)
    ));
}

#[test]
fn a_removed_region_lives_in_the_maps_that_still_have_it() {
    let (one, other) = (info(0, 0x1000, 0), info(0x1000, 0x1000, 0));
    let old = MemoryMap::from_files(vec![(one, memfd(0x1000))]).unwrap();
    let both = old.with_region(other, memfd(0x1000)).unwrap();
    let host = |map: &MemoryMap| map.window(0).unwrap().host(0).unwrap().0;
    assert_eq!(
        host(&old),
        host(&both),
        "the mapping is shared, not made anew"
    );

    let wrong_size = RegionInfo { size: 0x800, ..one };
    assert!(matches!(
        both.without_region(&wrong_size),
        Err(MemoryError::NotFound(_))
    ));
    let rest = both
        .without_region(&RegionInfo {
            file_offset: 77,
            ..one
        })
        .unwrap();
    assert_eq!(rest.regions().collect::<Vec<_>>(), [other]);
    assert_eq!((byte(&rest, 0), byte(&rest, 0x1000)), (None, Some(1)));

    drop(both);
    assert_eq!(
        byte(&old, 0),
        Some(1),
        "still mapped for whoever holds the old map"
    );
}

#[test]
fn mappings_go_with_the_last_map_and_are_kept_out_of_forks_and_dumps() {
    let name = "outboard-mapping-of-its-own";
    let file = File::from(rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(0x5000).unwrap();
    let map = MemoryMap::from_files(vec![(info(0, 0x5000, 0), file)]).unwrap();
    let flags = vm_flags(name).expect("mapped");
    assert!(
        flags.contains(" dc") && flags.contains(" dd"),
        "DONTFORK is dc, DONTDUMP is dd: {flags}"
    );
    drop(map);
    assert_eq!(vm_flags(name), None, "unmapped");
}

/// VmFlags of the mapping of the memfd with that name.
fn vm_flags(name: &str) -> Option<String> {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let (_, mapping) = smaps.split_once(name)?;
    mapping
        .lines()
        .find_map(|line| line.strip_prefix("VmFlags:"))
        .map(str::to_owned)
}

/// Sparse files cost a front end nothing; the addresses would be ours.
#[test]
fn a_table_takes_a_part_of_the_address_space_at_most() {
    let half = MAX_BYTES / 2;
    let file = memfd(0);
    file.set_len(half).unwrap();
    let region = |n| (info(n * half, half, 0), file.try_clone().unwrap());
    let map = MemoryMap::from_files(vec![region(0)]).unwrap();
    let (second, file) = region(1);
    let map = map.with_region(second, file).unwrap();
    let (third, file) = region(2);
    let too_large = |result| matches!(result, Err(MemoryError::TooLarge(n)) if n == 3 * half);
    assert!(too_large(map.with_region(third, file)));
    let three = vec![region(0), region(1), region(2)];
    assert!(too_large(MemoryMap::from_files(three)));
}
