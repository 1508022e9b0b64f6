use super::*;
use harness::options;
use model::ModelDisk;
use std::sync::atomic::{AtomicU32, Ordering};

fn blk_on(disk: ModelDisk) -> Blk {
    Blk::new(Arc::new(disk), options()).unwrap()
}

fn blk() -> Blk {
    blk_on(ModelDisk::new(vec![0; 1 << 20]))
}

fn offered(blk: &Blk, feature: u32) -> bool {
    blk.features() & bit(feature) != 0
}

fn bytes(blk: &Blk, offset: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; len];
    blk.read_config(offset, &mut bytes).unwrap();
    bytes
}

fn refusal(options: BlkOptions) -> String {
    Blk::new(Arc::new(ModelDisk::new(vec![])), options)
        .err()
        .expect("refused")
        .to_string()
}

#[test]
fn a_block_device_has_id_2_and_as_many_queues_as_asked() {
    let blk = blk();
    assert_eq!(
        (blk.id(), blk.max_queues(), blk.max_queue_size()),
        (2, 2, 256)
    );
}

#[test]
fn features_follow_the_disk() {
    let all = blk();
    for feature in [
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_CONFIG_WCE,
        VIRTIO_BLK_F_MQ,
        VIRTIO_BLK_F_DISCARD,
        VIRTIO_BLK_F_WRITE_ZEROES,
    ] {
        assert!(offered(&all, feature), "feature {feature}");
    }
    assert!(!offered(&all, VIRTIO_BLK_F_RO));
    // size_max, geometry and everything from LIFETIME on are not.
    assert_eq!(all.features() & (bit(1) | bit(4) | !0 << 15), 0);

    let mut plain = ModelDisk::new(vec![0; 512]);
    plain.limits.max_discard = 0;
    plain.limits.max_write_zeroes = 0;
    let plain = blk_on(plain);
    assert!(!offered(&plain, VIRTIO_BLK_F_DISCARD) && !offered(&plain, VIRTIO_BLK_F_WRITE_ZEROES));

    let mut fixed = ModelDisk::new(vec![0; 512]);
    fixed.read_only = true;
    let fixed = blk_on(fixed);
    assert!(offered(&fixed, VIRTIO_BLK_F_RO) && offered(&fixed, VIRTIO_BLK_F_FLUSH));
    assert!(!offered(&fixed, VIRTIO_BLK_F_DISCARD) && !offered(&fixed, VIRTIO_BLK_F_WRITE_ZEROES));
}

#[test]
fn any_prefix_and_part_of_the_configuration_space_can_be_read_and_nothing_past_its_end() {
    let blk = blk();
    let size = blk.config_size();
    let whole = bytes(&blk, 0, size as usize);
    assert_eq!(whole[..8], 2048u64.to_le_bytes());
    for offset in 0..=size {
        for len in 0..=(size - offset) {
            let from = offset as usize;
            assert_eq!(
                bytes(&blk, offset, len as usize),
                whole[from..from + len as usize]
            );
        }
    }
    for (offset, len) in [
        (0, size + 1),
        (size, 1),
        (size + 1, 0),
        (u32::MAX, 1),
        (u32::MAX, 0),
    ] {
        assert!(
            blk.read_config(offset, &mut vec![0; len as usize]).is_err(),
            "{len} bytes at {offset}"
        );
        assert!(
            blk.write_config(offset, &vec![0; len as usize]).is_err(),
            "{len} bytes at {offset}"
        );
    }
}

#[test]
fn only_writeback_can_be_written() {
    let blk = blk();
    blk.ack_features(blk.features());
    let at = config::WRITEBACK as u32;
    for value in [0, 1, 0] {
        blk.write_config(at, &[value]).unwrap();
        assert_eq!(bytes(&blk, at, 1), [value]);
    }
    assert!(blk.write_config(at, &[2]).is_err());
    assert_eq!(bytes(&blk, at, 1), [0]);
    let mut whole = bytes(&blk, 0, 60);
    whole[config::WRITEBACK] = 1;
    blk.write_config(0, &whole).unwrap();
    assert_eq!(
        bytes(&blk, 0, 60),
        whole,
        "a whole structure with a new writeback"
    );
    whole[config::WRITEBACK] = 0;
    whole[0] ^= 1;
    assert!(
        blk.write_config(0, &whole).is_err(),
        "the capacity is not the driver's"
    );
    assert_eq!(bytes(&blk, at, 1), [1], "a refused write changes nothing");
}

#[test]
fn writeback_is_read_only_without_config_wce() {
    let blk = blk();
    blk.ack_features(blk.features() & !bit(VIRTIO_BLK_F_CONFIG_WCE));
    assert!(blk.write_config(config::WRITEBACK as u32, &[0]).is_err());
}

#[test]
fn a_reset_brings_the_start_cache_mode_back() {
    let blk = blk();
    blk.ack_features(blk.features());
    blk.write_config(config::WRITEBACK as u32, &[0]).unwrap();
    blk.reset();
    assert_eq!(bytes(&blk, config::WRITEBACK as u32, 1), [1]);
}

#[test]
fn a_resize_shows_at_once_and_tells_the_listener_until_it_unsubscribes() {
    let disk = Arc::new(ModelDisk::new(vec![0; 1 << 20]));
    let blk = Arc::new(Blk::new(disk.clone(), options()).unwrap());
    let told = Arc::new(AtomicU32::new(0));
    let (count, device) = (told.clone(), Arc::downgrade(&blk));
    blk.on_config_change(Some(Arc::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
        // A listener may call back, even to unsubscribe.
        device.upgrade().unwrap().on_config_change(None);
    })));
    disk.size.store(2 << 20, Ordering::Relaxed);
    assert_eq!(bytes(&blk, 0, 8), 4096u64.to_le_bytes());
    blk.config_changed();
    blk.config_changed();
    assert_eq!(told.load(Ordering::Relaxed), 1);
}

#[test]
fn options_out_of_range_are_refused_in_one_line() {
    for (option, text) in [
        (
            BlkOptions {
                num_queues: 0,
                ..options()
            },
            "num-queues",
        ),
        (
            BlkOptions {
                queue_size: 0,
                ..options()
            },
            "queue-size",
        ),
        (
            BlkOptions {
                queue_size: 1,
                ..options()
            },
            "queue-size",
        ),
        (
            BlkOptions {
                queue_size: 100,
                ..options()
            },
            "queue-size",
        ),
        (
            BlkOptions {
                serial: "123456789012345678901".into(),
                ..options()
            },
            "serial",
        ),
        (
            BlkOptions {
                serial: "a\0b".into(),
                ..options()
            },
            "serial",
        ),
        (
            BlkOptions {
                serial: "é".into(),
                ..options()
            },
            "serial",
        ),
    ] {
        let error = refusal(option);
        assert!(error.contains(text) && !error.contains('\n'), "{error}");
    }
}

#[test]
fn a_disk_that_virtio_cannot_express_is_refused() {
    for (block, size) in [
        (512, 1000),
        (4096, 4096 + 512),
        (256, 512),
        (0, 0),
        (768, 768),
    ] {
        let mut disk = ModelDisk::new(vec![0; size]);
        disk.limits.logical_block = block;
        let error = Blk::new(Arc::new(disk), options())
            .err()
            .expect("refused")
            .to_string();
        assert!(
            error.contains("model:") && error.contains("block"),
            "{error}"
        );
    }
}
