//! What an operator can get wrong is refused at once: one line on stderr, a status other than 0, and nothing touched.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use outboard_frontend::{Connection, Options, QueueOptions};
use outboard_tests::daemon::{self, Site, refused};
use outboard_tests::process::Process;

const MIB: u64 = 1 << 20;

/// Refused with a line that has all these words, leaving the directory as it was.
#[track_caller]
fn refused_with(site: &Site, args: &[&str], words: &[&str]) {
    let before = site.listing();
    let line = site.refused(args);
    for word in words {
        assert!(line.contains(word), "{args:?}: no {word:?} in {line:?}");
    }
    assert_eq!(site.listing(), before, "{args:?}: something was touched");
}

fn blk<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&["blk", "--socket-path", "{}/blk.sock"], args].concat()
}

#[test]
fn a_missing_image_is_named_and_not_made() {
    let site = Site::new();
    refused_with(
        &site,
        &blk(&["--blk-file", "{}/missing.raw"]),
        &["missing.raw", "No such file"],
    );
    refused_with(
        &site,
        &blk(&["--disk", "file:{}/missing.raw"]),
        &["missing.raw"],
    );
    refused_with(
        &site,
        &blk(&["--disk", "delay:1ms-2ms:file:{}/missing.raw"]),
        &["missing.raw"],
    );
}

/// A name with a newline must not look like two lines of the log.
#[test]
fn a_name_with_control_characters_is_shown_in_one_line() {
    let site = Site::new();
    refused_with(
        &site,
        &blk(&["--blk-file", "{}/a\nb\u{1b}[31m"]),
        &[r"a\nb\u{1b}[31m"],
    );
}

#[test]
fn a_directory_is_no_image() {
    let site = Site::new();
    refused_with(&site, &blk(&["--blk-file", "{}"]), &["is a directory"]);
}

#[test]
fn a_locked_image_is_refused_until_its_user_is_gone() {
    let site = Site::new();
    let image = site.image("disk.raw", MIB);
    let first = site.blk(&["--blk-file", "{}/disk.raw"]);
    let other = Site::new();
    let file = image.to_str().unwrap();
    refused_with(&other, &blk(&["--blk-file", file]), &["disk.raw", "lock"]);
    refused_with(
        &other,
        &blk(&["--blk-file", file, "--read-only"]),
        &["disk.raw", "lock"],
    );
    assert!(first.connect().config().is_ok(), "the first user goes on");
    drop(first);
    other.blk(&["--blk-file", file]).connect();
}

#[test]
fn a_size_that_is_no_multiple_of_the_block_size_is_refused() {
    let site = Site::new();
    site.image("odd.raw", MIB + 100);
    site.image("sectors.raw", MIB + 512);
    site.image("empty.raw", 0);
    refused_with(
        &site,
        &blk(&["--blk-file", "{}/odd.raw"]),
        &["odd.raw", "1048676", "512"],
    );
    let args = blk(&["--blk-file", "{}/sectors.raw", "--block-size", "4096"]);
    refused_with(&site, &args, &["sectors.raw", "1049088", "4096"]);
    refused_with(
        &site,
        &blk(&["--blk-file", "{}/empty.raw"]),
        &["empty.raw", "empty"],
    );
    assert_eq!(
        std::fs::metadata(site.path("odd.raw")).unwrap().len(),
        MIB + 100
    );
}

#[test]
fn a_socket_of_a_live_daemon_stays_its_own() {
    let site = Site::new();
    let daemon = site.blk(&["--disk", "ram:1M", "--serial", "the first"]);
    let mut connection = daemon.connect();
    refused_with(&site, &blk(&["--disk", "ram:1M"]), &["blk.sock", "in use"]);
    // Neither the session nor the socket noticed anything.
    let mut queue = connection.queue(0, QueueOptions::default()).unwrap();
    connection.start(&mut queue).unwrap();
    assert_eq!(queue.get_id().unwrap(), b"the first");
    drop((queue, connection));
    daemon.connect();
}

#[test]
fn a_stale_socket_is_replaced_and_any_other_file_is_not() {
    let site = Site::new();
    drop(UnixListener::bind(site.path("blk.sock")).unwrap());
    let mut daemon = site.blk(&["--disk", "ram:1M"]);
    daemon.connect();
    daemon.process.signal(libc::SIGKILL);
    daemon.process.wait();
    assert!(
        site.path("blk.sock").exists(),
        "killed: the socket is stale"
    );
    site.blk(&["--disk", "ram:1M"]).connect();

    let site = Site::new();
    std::fs::write(site.path("blk.sock"), "precious").unwrap();
    refused_with(&site, &blk(&["--disk", "ram:1M"]), &["blk.sock"]);
    assert_eq!(std::fs::read(site.path("blk.sock")).unwrap(), b"precious");
    refused_with(
        &site,
        &[
            "blk",
            "--socket-path",
            "{}/no/such/dir/s",
            "--disk",
            "ram:1M",
        ],
        &["no/such/dir"],
    );
}

#[test]
fn a_refused_disk_leaves_a_stale_socket_alone() {
    let site = Site::new();
    drop(UnixListener::bind(site.path("blk.sock")).unwrap());
    refused_with(
        &site,
        &blk(&["--blk-file", "{}/missing.raw"]),
        &["missing.raw"],
    );
}

/// `outboard blk` that inherits `fd` under its number.
fn inheriting(site: &Site, fd: &OwnedFd, args: &[&str]) -> Command {
    // Without CLOEXEC from here on: children of other tests may inherit it too, which harms nobody.
    rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).unwrap();
    let number = fd.as_raw_fd().to_string();
    site.command(&[&["blk", "--fd", &number], args].concat())
}

#[test]
fn bad_descriptors_are_refused() {
    let site = Site::new();
    let disk = ["--disk", "ram:1M"];
    refused_with(
        &site,
        &[&["blk", "--fd", "987"], &disk[..]].concat(),
        &["987"],
    );
    // The first number that the daemon's own descriptors get.
    refused_with(
        &site,
        &[&["blk", "--fd", "3"], &disk[..]].concat(),
        &["--fd 3", "inherited"],
    );
    refused_with(
        &site,
        &[&["blk", "--fd", "x"], &disk[..]].concat(),
        &["--fd", "x"],
    );
    refused_with(
        &site,
        &[&["blk", "--fd", "-1"], &disk[..]].concat(),
        &["-1"],
    );
    refused_with(
        &site,
        &[&["blk", "--fd", "2"], &disk[..]].concat(),
        &["stderr"],
    );
    let file: OwnedFd = std::fs::File::create(site.path("file")).unwrap().into();
    let line = refused(inheriting(&site, &file, &disk));
    assert!(line.contains("not a unix stream socket"), "{line}");
    let datagram: OwnedFd = std::os::unix::net::UnixDatagram::unbound().unwrap().into();
    let line = refused(inheriting(&site, &datagram, &disk));
    assert!(line.contains("not a unix stream socket"), "{line}");
}

#[test]
fn a_listening_and_a_connected_descriptor_are_both_served() {
    let site = Site::new();
    let path = site.path("given.sock");
    let listener: OwnedFd = UnixListener::bind(&path).unwrap().into();
    let listening = Process::spawn(inheriting(&site, &listener, &["--disk", "ram:1M"]));
    drop(listener);
    for _ in 0..2 {
        // Tries again: a process that another test forks holds the last connection open for a moment.
        let mut connection = daemon::connect(&Options::new(&path), &listening);
        assert_eq!(connection.config().unwrap().capacity, 2048);
    }

    let (ours, theirs) = UnixStream::pair().unwrap();
    let theirs: OwnedFd = theirs.into();
    let mut connected = Process::spawn(inheriting(&site, &theirs, &["--disk", "ram:1M"]));
    drop(theirs);
    let options = Options::new("the inherited connection");
    let memory = outboard_frontend::Memory::new(&options.regions).unwrap();
    let mut connection = Connection::from_stream(ours, &options, memory).unwrap();
    connection.negotiate().unwrap();
    assert_eq!(connection.config().unwrap().capacity, 2048);
    drop(connection);
    assert!(
        connected.wait().success(),
        "its only front end left: the end\n{}",
        connected.end()
    );
}

#[test]
fn contradictions_on_the_command_line_are_refused() {
    let site = Site::new();
    site.image("disk.raw", MIB);
    refused_with(
        &site,
        &blk(&["--fd", "3", "--disk", "ram:1M"]),
        &["--fd", "--socket-path"],
    );
    refused_with(
        &site,
        &blk(&["--disk", "ram:1M", "--blk-file", "{}/disk.raw"]),
        &["--disk", "--blk-file"],
    );
    refused_with(&site, &["blk", "--disk", "ram:1M"], &["--socket-path"]);
    refused_with(&site, &blk(&[]), &["--blk-file"]);
    for (args, word) in [
        (["--num-queues", "0"], "--num-queues"),
        (["--queue-size", "100"], "--queue-size"),
        (["--block-size", "1000"], "--block-size"),
        (["--serial", "a serial that is too long"], "--serial"),
        (["--serial", "naïve"], "serial"),
        (["--cache", "write-back"], "--cache"),
        (["--no-such-option", "1"], "--no-such-option"),
    ] {
        refused_with(
            &site,
            &blk(&[&["--disk", "ram:1M"], &args[..]].concat()),
            &[word],
        );
    }
    for (uri, word) in [
        ("ram:", "ram:"),
        ("ram:1Q", "1Q"),
        ("ram:-1", "-1"),
        ("ramm:1M", "ram"),
        ("file:", "file:"),
        ("delay:5ms-1ms:ram:1M", "delay:"),
        ("null:99999999999999999999G", "null:"),
    ] {
        refused_with(&site, &blk(&["--disk", uri]), &[word]);
    }
}

#[test]
fn a_configuration_with_an_unknown_key_is_refused_with_the_nearest_name() {
    let site = Site::new();
    let device = "[[device]]\nname = \"a\"\ntype = \"blk\"\nsocket = \"/nowhere/a.sock\"\ndisk = \"ram:1M\"\n";
    let write = |text: &str| std::fs::write(site.path("outboard.toml"), text).unwrap();
    write("");
    for (text, words) in [
        (
            format!("{device}read_only = true\n"),
            &["outboard.toml", "line 6", "read_only", "read-only"][..],
        ),
        (
            format!("{device}num-queue = 2\n"),
            &["num-queue", "num-queues"][..],
        ),
        (
            format!("worker = 2\n{device}"),
            &["line 1", "worker", "workers"][..],
        ),
        (format!("{device}num-queues = 0\n"), &["num-queues"][..]),
        (format!("{device}{device}"), &["two devices"][..]),
        (device.replace("blk", "floppy"), &["floppy"][..]),
        ("[[device]\n".to_owned(), &["line 1"][..]),
    ] {
        write(&text);
        refused_with(&site, &["serve", "--config", "{}/outboard.toml"], words);
    }
    refused_with(
        &site,
        &["serve", "--config", "{}/missing.toml"],
        &["missing.toml"],
    );
    refused_with(&site, &["serve"], &["--config"]);
}

#[test]
fn of_several_devices_all_start_or_none() {
    let site = Site::new();
    site.image("good.raw", MIB);
    let config = "
[[device]]
name = \"good\"
type = \"blk\"
socket = \"{}/good.sock\"
blk-file = \"{}/good.raw\"
[[device]]
name = \"bad\"
type = \"blk\"
socket = \"{}/bad.sock\"
blk-file = \"{}/missing.raw\"
";
    let here = site
        .path("")
        .to_str()
        .unwrap()
        .trim_end_matches('/')
        .to_owned();
    std::fs::write(site.path("outboard.toml"), config.replace("{}", &here)).unwrap();
    refused_with(
        &site,
        &["serve", "--config", "{}/outboard.toml"],
        &["bad", "missing.raw"],
    );
}
