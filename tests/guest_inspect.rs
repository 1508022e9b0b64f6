//! What a Linux guest makes of the configuration space: every option of the daemon that a guest can see.

use outboard_tests::daemon::Site;
use outboard_tests::guest::{self, Console};

const SIZE: u64 = 64 << 20;

fn inspect(options: &[&str]) -> Console {
    let site = Site::new();
    site.image("disk.raw", SIZE);
    let daemon = site.blk(&[&["--blk-file", "{}/disk.raw"], options].concat());
    let console = guest::run("inspect", &[daemon.socket()], &["--num-queues", "2"]);
    daemon.process.stop();
    console
}

#[test]
fn a_disk_shows_its_size_serial_queues_limits_and_write_cache() {
    let console = inspect(&["--serial", "outboard-42", "--num-queues", "4"]);
    assert_eq!(console.number("sectors"), SIZE / 512);
    assert_eq!(console.value("serial"), "outboard-42");
    assert_eq!(console.value("read_only"), "0");
    assert_eq!(console.value("cache_type"), "write back");
    assert_eq!(console.value("write_cache"), "write back");
    // Two asked for by QEMU out of the four offered.
    assert_eq!(console.number("queues"), 2);
    assert_eq!(console.number("logical_block_size"), 512);
    let physical = console.number("physical_block_size");
    assert!(
        physical.is_power_of_two() && physical >= 512,
        "physical block size {physical}"
    );
    assert!(
        console.number("discard_max_bytes") >= 1 << 20,
        "no useful discard"
    );
    assert!(
        console.number("write_zeroes_max_bytes") >= 1 << 20,
        "no useful write-zeroes"
    );
    // A request needs a header and a status beside its segments, in QEMU's default ring of 128.
    assert_eq!(console.number("max_segments"), 126);
}

#[test]
fn a_read_only_disk_of_4096_byte_blocks_says_so() {
    let console = inspect(&["--read-only", "--block-size", "4096"]);
    assert_eq!(console.value("read_only"), "1");
    assert_eq!(console.number("sectors"), SIZE / 512);
    assert_eq!(console.number("logical_block_size"), 4096);
    assert_eq!(console.number("discard_max_bytes"), 0);
    assert_eq!(console.number("write_zeroes_max_bytes"), 0);
}

#[test]
fn a_write_through_disk_says_so() {
    let console = inspect(&["--cache", "writethrough"]);
    assert_eq!(console.value("cache_type"), "write through");
}
