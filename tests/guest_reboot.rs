//! A guest reboots in place: QEMU stays, resets its devices and sets them up anew on the same connection.

use outboard_tests::daemon::Site;
use outboard_tests::guest;

#[test]
fn data_and_service_outlive_a_reboot() {
    let site = Site::new();
    site.image("disk.raw", 64 << 20);
    let daemon = site.blk(&["--blk-file", "{}/disk.raw"]);
    let console = guest::run("reboot", &[daemon.socket()], &["--num-queues", "2"]);
    // Both boots were seen, so that a scenario that skips the first proves nothing by accident.
    assert!(console.has("first boot: wrote 8 MiB"), "{}", console.text());
    assert!(
        console.has("second boot: the data is there"),
        "{}",
        console.text()
    );
    daemon.process.stop();
}
