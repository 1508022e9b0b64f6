//! What management layers expect of a vhost-user program ("Backend program conventions" of the vhost-user specification).

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use outboard_frontend::{Connection, Options, QueueOptions};
use outboard_tests::daemon::{Site, binary};
use outboard_tests::process::{Process, SOON};

/// Exit status, stdout and stderr of a command that ends by itself.
fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(binary())
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn capabilities_are_json_on_stdout_whatever_else_is_asked() {
    let expected = serde_json::json!({ "type": "block", "features": ["read-only", "blk-file"] });
    for args in [
        &["blk", "--print-capabilities"][..],
        &["--print-capabilities"],
        &[
            "blk",
            "--print-capabilities",
            "--blk-file",
            "/no/such/image",
            "--fd",
            "77",
        ],
        &["blk", "--no-such-option", "--print-capabilities"],
    ] {
        let (status, stdout, stderr) = run(args);
        assert_eq!((status, stderr.as_str()), (Some(0), ""), "{args:?}");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&stdout).unwrap(),
            expected,
            "{args:?}"
        );
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for args in [
        &["--help"][..],
        &["blk", "--help"],
        &["serve", "--help"],
        &["--version"],
    ] {
        let (status, stdout, stderr) = run(args);
        assert_eq!((status, stderr.as_str()), (Some(0), ""), "{args:?}");
        assert!(stdout.contains("outboard"), "{args:?}: {stdout}");
    }
}

/// Management layers start one program for each device type.
#[test]
fn called_as_outboard_blk_it_takes_the_options_of_blk() {
    let site = Site::new();
    site.image("disk.raw", 1 << 20);
    let args = [
        "--socket-path",
        "{}/blk.sock",
        "--blk-file",
        "{}/disk.raw",
        "--read-only",
    ];
    let mut command = site.command(&args);
    command.arg0("/usr/libexec/outboard-blk");
    let mut process = Process::spawn(command);
    process.wait_listening(&site.path("blk.sock"));
    let mut connection = Connection::open(&Options::new(site.path("blk.sock"))).unwrap();
    assert_eq!(connection.config().unwrap().capacity, 2048);
    assert!(connection.has(virtio_bindings::bindings::virtio_blk::VIRTIO_BLK_F_RO));
}

/// The soft limit that a supervisor leaves in place is too small for some guests with many regions and rings.
#[test]
fn the_daemon_may_open_as_many_files_as_the_hard_limit_allows() {
    let site = Site::new();
    let daemon = site.command(&["blk", "--socket-path", "{}/blk.sock", "--disk", "null:1M"]);
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -Sn 200; exec \"$0\" \"$@\""])
        .arg(daemon.get_program())
        .args(daemon.get_args())
        .stdout(Stdio::null());
    let mut process = Process::spawn(command);
    process.wait_listening(&site.path("blk.sock"));
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.pid())).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let numbers: Vec<_> = line.unwrap().split_whitespace().skip(3).take(2).collect();
    assert_ne!(numbers[0], "200", "{limits}");
    assert_eq!(numbers[0], numbers[1], "{limits}");
}

#[test]
fn a_daemon_that_served_and_idles_is_small_and_silent() {
    const LIMIT: u64 = 10 << 10;
    let site = Site::new();
    site.image("disk.raw", 1 << 30);
    let daemon = site.blk(&["--blk-file", "{}/disk.raw"]);
    let mut connection = daemon.connect();
    let mut queue = connection.queue(0, QueueOptions::default()).unwrap();
    connection.start(&mut queue).unwrap();
    for sector in 0..256 {
        queue.write(sector * 256, &[1; 128 << 10]).unwrap();
        queue.read(sector * 256, 128 << 10).unwrap();
    }
    connection.stop(&mut queue).unwrap();
    assert_eq!(daemon.process.stderr(), "", "quiet by default");
    drop(connection);
    // Served again: what the first front end brought along is gone.
    let _connection = daemon.connect();
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.process.pid())).unwrap();
    let resident = |name: &str| -> u64 {
        let line = status
            .lines()
            .find(|line| line.starts_with(name))
            .expect("a line of /proc/PID/status");
        line.split_whitespace()
            .nth(1)
            .and_then(|kib| kib.parse().ok())
            .expect("a number of KiB")
    };
    let (total, own) = (resident("VmRSS:"), resident("RssAnon:"));
    eprintln!("resident: {total} KiB, of which {own} KiB are not files");
    assert!(
        total < LIMIT,
        "{total} KiB are resident, of which {own} KiB are not files"
    );
}

/// Whoever can connect can break the protocol in a loop; the log is the host's.
#[test]
fn front_ends_cannot_fill_the_log() {
    const SESSIONS: usize = 60;
    let site = Site::new();
    let daemon = site.blk(&["--disk", "ram:1M"]);
    for _ in 0..SESSIONS {
        let mut front = UnixStream::connect(daemon.socket()).unwrap();
        front.set_read_timeout(Some(SOON)).unwrap();
        // No such version. It may be closed while this is written: nothing is expected but its end.
        let _ = front.write_all(&[0xff; 12]);
        match front.read(&mut [0; 64]) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("a broken session was answered: {other:?}"),
        }
    }
    // That this one is served says that the log of the others is written.
    drop(daemon.connect());
    let lines = daemon.process.stderr().matches("session closed").count();
    assert!(
        (1..SESSIONS / 2).contains(&lines),
        "{lines} lines for {SESSIONS} broken sessions"
    );
}
