//! Block devices: what is asked of them at open.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use outboard_storage::{
    disk::Disk,
    uri::{CacheMode, OpenOptions, open},
};
use std::{
    fs::File,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::PathBuf,
    sync::Arc,
};
use support::loopdev::LoopDevice;

const SIZE: u64 = 8 << 20;

struct Device {
    device: LoopDevice,
    file: PathBuf,
    _dir: tempfile::TempDir,
}

impl Device {
    fn new(block: u32) -> Option<Device> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("image");
        File::create(&file).unwrap().set_len(SIZE).unwrap();
        let device = LoopDevice::over(&file, block)?;
        Some(Device {
            device,
            file,
            _dir: dir,
        })
    }

    fn open(&self, options: &OpenOptions) -> Result<Arc<dyn Disk>, String> {
        open(self.device.path.to_str().unwrap(), options).map_err(|e| e.to_string())
    }
}

fn read_only() -> OpenOptions {
    OpenOptions {
        read_only: true,
        ..Default::default()
    }
}

#[test]
fn the_limits_are_the_devices() {
    for block in [512, 4096] {
        let Some(device) = Device::new(block) else {
            return;
        };
        for cache in [CacheMode::Writeback, CacheMode::None] {
            let options = OpenOptions {
                cache,
                ..Default::default()
            };
            let disk = device.open(&options).unwrap();
            let name = device.device.path.file_name().unwrap().to_str().unwrap();
            let attribute = |attribute: &str| -> u64 {
                let path = format!("/sys/block/{name}/queue/{attribute}");
                std::fs::read_to_string(path)
                    .unwrap()
                    .trim()
                    .parse()
                    .unwrap()
            };
            let limits = disk.limits();
            assert_eq!(disk.size(), SIZE);
            assert_eq!(limits.logical_block, block);
            assert_eq!(
                u64::from(limits.physical_block),
                attribute("physical_block_size")
            );
            assert_eq!(u64::from(limits.min_io), attribute("minimum_io_size"));
            assert_eq!(u64::from(limits.opt_io), attribute("optimal_io_size"));
            assert_eq!(limits.max_discard > 0, attribute("discard_max_bytes") > 0);
            assert_eq!(
                u64::from(limits.discard_granularity),
                attribute("discard_granularity")
            );
        }
    }
}

#[test]
fn blocks_smaller_than_the_devices_are_refused() {
    let Some(device) = Device::new(4096) else {
        return;
    };
    for cache in [CacheMode::Writeback, CacheMode::None] {
        let options = OpenOptions {
            cache,
            block_size: Some(512),
            ..Default::default()
        };
        let said = device.open(&options).map(|_| ()).unwrap_err();
        assert!(said.contains("use block size 4096"), "{said}");
    }
}

#[test]
fn a_device_that_the_host_uses_is_only_read() {
    let Some(device) = Device::new(512) else {
        return;
    };
    // As a mount does.
    let claim = File::options()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(&device.device.path)
        .unwrap();
    let said = device
        .open(&OpenOptions::default())
        .map(|_| ())
        .unwrap_err();
    assert!(said.contains("is in use on this host"), "{said}");
    device.open(&read_only()).unwrap();
    drop(claim);
    let disk = device.open(&OpenOptions::default()).unwrap();
    let said = device.open(&read_only()).map(|_| ()).unwrap_err();
    assert!(said.contains("is locked"), "{said}");
    drop(disk);
}

#[test]
fn a_discard_on_a_device_releases_space_through_the_helper_thread() {
    use outboard_storage::disk::Op;
    let Some(device) = Device::new(512) else {
        return;
    };
    let disk = device.open(&OpenOptions::default()).unwrap();
    let mut driver = support::Driver::new(&*disk);
    driver.write(0, &support::pattern(1, SIZE as usize));
    driver.run(Op::Flush).unwrap();
    let space = || std::fs::metadata(&device.file).unwrap().blocks() * 512;
    assert!(space() >= SIZE);
    driver
        .run(Op::Discard {
            offset: 0,
            len: SIZE,
        })
        .unwrap();
    assert!(space() < SIZE / 2);
}
