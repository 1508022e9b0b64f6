//! Discard and write-zeroes from a Linux guest end as holes in the image.

use std::os::unix::fs::MetadataExt;

use outboard_tests::daemon::Site;
use outboard_tests::guest;

#[test]
fn a_discarded_range_gives_its_blocks_back_to_the_host() {
    let site = Site::new();
    let image = site.image("disk.raw", 64 << 20);
    let daemon = site.blk(&["--blk-file", "{}/disk.raw"]);
    guest::run("discard", &[daemon.socket()], &["--num-queues", "2"]);
    daemon.process.stop();
    // 8 MiB were written; 1 MiB was discarded and 1 MiB zeroed. Only the discard must free blocks: a write-zeroes may keep
    // them. The neighbours' content was checked by the guest.
    let allocated = std::fs::metadata(&image).unwrap().blocks() * 512;
    assert!(
        (6 << 20..=(7 << 20) + 65536).contains(&allocated),
        "{allocated} bytes are allocated"
    );
    let zeroes = std::fs::read(&image).unwrap();
    for mib in [2, 5] {
        assert!(
            zeroes[mib << 20..(mib + 1) << 20]
                .iter()
                .all(|byte| *byte == 0),
            "MiB {mib} is not zero in the image"
        );
    }
}
