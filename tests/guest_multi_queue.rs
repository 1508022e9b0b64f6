//! A guest with as many queues as CPUs: each carries requests and raises its own interrupt.

use outboard_tests::daemon::Site;
use outboard_tests::guest;

#[test]
fn every_queue_carries_requests_and_interrupts() {
    let site = Site::new();
    site.image("disk.raw", 64 << 20);
    let daemon = site.blk(&["--blk-file", "{}/disk.raw", "--num-queues", "4"]);
    let console = guest::run(
        "multi-queue",
        &[daemon.socket()],
        &["--smp", "4", "--num-queues", "4"],
    );
    assert_eq!(console.number("queues"), 4);
    daemon.process.stop();
}
