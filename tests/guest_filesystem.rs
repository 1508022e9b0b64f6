//! A guest makes a file system on a disk of the daemon, fills, checks and re-reads it; the host then checks the image.

use std::process::Command;

use outboard_tests::daemon::Site;
use outboard_tests::guest;

const SIZE: u64 = 256 << 20;

#[test]
fn ext4_lives_its_whole_life_on_the_disk() {
    let site = Site::new();
    let image = site.image("disk.raw", SIZE);
    let daemon = site.blk(&["--blk-file", "{}/disk.raw", "--num-queues", "2"]);
    let console = guest::run("filesystem", &[daemon.socket()], &["--num-queues", "2"]);
    assert!(
        console.has(&format!("/dev/vda has {SIZE} bytes")),
        "{}",
        console.text()
    );
    daemon.process.stop();

    // The daemon is gone: what the guest saw must be in the file, and nothing else.
    let check = Command::new("/usr/sbin/e2fsck")
        .args(["-f", "-n"])
        .arg(&image)
        .output()
        .unwrap();
    assert!(
        check.status.success(),
        "{}",
        String::from_utf8_lossy(&check.stdout)
    );
    let listing = Command::new("/usr/sbin/debugfs")
        .args(["-R", "ls -p /known"])
        .arg(&image)
        .output()
        .unwrap();
    let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
    // "/INODE/MODE/UID/GID/NAME/SIZE/": 16 files of 4 MiB.
    let files = listing
        .lines()
        .filter(|line| line.ends_with(&format!("/{}/", 4 << 20)))
        .count();
    assert_eq!(files, 16, "{listing}");
}
