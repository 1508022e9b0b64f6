//! Two disks in one daemon, under one guest, at the same time.

use outboard_tests::daemon::Site;
use outboard_tests::guest;

#[test]
fn two_disks_of_one_daemon_never_mix() {
    const CONFIG: &str = r#"
        [[device]]
        name = "one"
        type = "blk"
        socket = "{}/first.sock"
        disk = "file:{}/first.raw"
        serial = "first"

        [[device]]
        name = "two"
        type = "blk"
        socket = "{}/second.sock"
        disk = "file:{}/second.raw"
        serial = "second"
    "#;
    let site = Site::new();
    let first = site.image("first.raw", 64 << 20);
    let second = site.image("second.raw", 64 << 20);
    let daemon = site.serve(CONFIG, &["first.sock", "second.sock"]);
    let sockets = [site.path("first.sock"), site.path("second.sock")];
    let console = guest::run(
        "two-disks",
        &[&sockets[0], &sockets[1]],
        &["--num-queues", "2"],
    );
    assert_eq!(console.value("serial_vda"), "first");
    assert_eq!(console.value("serial_vdb"), "second");
    daemon.stop();

    // What each image begins with is what the guest wrote to that disk: known MiB 0 and known MiB 64 (lib.sh).
    let head = |image| {
        let mut bytes = std::fs::read(image).unwrap();
        bytes.truncate(9);
        bytes
    };
    let known = |mib: u8| b"100000000".map(|digit| digit - b'0' + 128 + mib);
    assert_eq!(head(&first), known(0));
    assert_eq!(head(&second), known(64));
}
