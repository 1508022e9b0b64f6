//! SeaBIOS boots from a disk of the daemon, under TCG and under KVM.
//!
//! Firmware is a driver like no other: it sets the rings up only in part, uses one queue of many and polls for its completions.

use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use outboard_tests::daemon::Site;
use outboard_tests::process::SOON;
use outboard_tests::{kvm, repository};

/// What the boot sector says on port 0xf4, seen as QEMU's exit status 2 * N + 1.
const GOOD: u8 = 0x2a;

/// A boot sector: reads the second sector through the firmware (INT 13h) to 0x8000 and tells its first byte to
/// QEMU's exit device, or 0xff where the firmware reports an error.
#[rustfmt::skip]
const BOOT: &[u8] = &[
    0x31, 0xc0,             // xor ax, ax
    0x8e, 0xd8,             // mov ds, ax
    0x8e, 0xc0,             // mov es, ax
    0xb8, 0x01, 0x02,       // mov ax, 0x0201   read one sector
    0xbb, 0x00, 0x80,       // mov bx, 0x8000
    0xb9, 0x02, 0x00,       // mov cx, 2        cylinder 0, sector 2
    0xb6, 0x00,             // mov dh, 0        head 0; dl is the boot drive
    0xcd, 0x13,             // int 0x13
    0xb0, 0xff,             // mov al, 0xff
    0x72, 0x03,             // jc tell
    0xa0, 0x00, 0x80,       // mov al, [0x8000]
    0xe6, 0xf4,             // tell: out 0xf4, al
    0xf4,                   // hlt
    0xeb, 0xfd,             // jmp hlt
];

fn boot(accel: &str) {
    let site = Site::new();
    let path = site.image("disk.raw", 16 << 20);
    let image = std::fs::File::options().write(true).open(&path).unwrap();
    image.write_all_at(BOOT, 0).unwrap();
    image.write_all_at(&[0x55, 0xaa], 510).unwrap();
    image.write_all_at(&[GOOD], 512).unwrap();

    let daemon = site.blk(&["--blk-file", "{}/disk.raw"]);
    let mut command = Command::new(repository().join("qemu/run"));
    command
        .args([
            "--boot-disk",
            "--accel",
            accel,
            "--smp",
            "1",
            "--memory",
            "64M",
        ])
        .arg(daemon.socket());
    let mut qemu = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + 4 * SOON;
    let status = loop {
        if let Some(status) = qemu.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            qemu.kill().unwrap();
            qemu.wait().unwrap();
            panic!("no verdict of the boot sector under {accel}");
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    assert_eq!(
        status.code(),
        Some(i32::from(GOOD) * 2 + 1),
        "the boot sector's verdict under {accel}"
    );
    daemon.process.stop();
}

#[test]
fn seabios_boots_from_the_disk_under_tcg() {
    boot("tcg");
}

#[test]
fn seabios_boots_from_the_disk_under_kvm() {
    if kvm::usable("seabios_boots_from_the_disk_under_kvm") {
        boot("kvm");
    }
}
