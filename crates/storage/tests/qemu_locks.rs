//! Image locks against QEMU's own tools, both ways.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use outboard_storage::{
    disk::Disk,
    uri::{OpenOptions, open},
};
use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

struct Image {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Image {
    /// `None` where there are no QEMU tools (a failure with `REQUIRE_QEMU_UTILS=1`).
    fn new() -> Option<Image> {
        for tool in ["qemu-img", "qemu-io", "qemu-storage-daemon"] {
            if Command::new(tool).arg("--version").output().is_err() {
                assert!(
                    std::env::var_os("REQUIRE_QEMU_UTILS").is_none(),
                    "no {tool}; install qemu-utils"
                );
                eprintln!("SKIP(qemu-utils): no {tool}");
                return None;
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::File::create(&path)
            .unwrap()
            .set_len(1 << 20)
            .unwrap();
        Some(Image { _dir: dir, path })
    }

    fn open(&self, read_only: bool) -> Result<Arc<dyn Disk>, String> {
        let options = OpenOptions {
            read_only,
            ..Default::default()
        };
        open(self.path.to_str().unwrap(), &options).map_err(|e| e.to_string())
    }

    /// Runs a tool on the image; `Err` is what it said.
    fn tool(&self, tool: &str, args: &[&str]) -> Result<(), String> {
        let output = Command::new(tool)
            .args(args)
            .arg(&self.path)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    fn assert_refused_to_tool(&self, tool: &str, args: &[&str]) {
        let said = self
            .tool(tool, args)
            .expect_err("QEMU opened an image that we hold");
        assert!(said.contains("lock"), "{tool} {args:?}: {said}");
    }

    /// We are refused, in one line that names the program and its pid.
    fn assert_refused_to_us(&self, read_only: bool, holder: &Child, program: &str) {
        let said = match self.open(read_only) {
            Err(said) => said,
            Ok(_) => panic!("we opened an image that {program} holds"),
        };
        assert!(!said.contains('\n'), "{said}");
        assert!(said.contains(self.path.to_str().unwrap()), "{said}");
        let named = format!("{program} (pid {})", holder.id());
        assert!(said.contains(&named), "{said}");
    }
}

/// A tool that holds the image until it is dropped.
struct Holder(Child);

impl Holder {
    /// qemu-io, waiting for its next command.
    fn qemu_io(image: &Path, args: &[&str]) -> Holder {
        let mut child = Command::new("qemu-io")
            .args(args)
            .arg(image)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Its answer to a command shows that it has the image open.
        writeln!(child.stdin.as_mut().unwrap(), "read 0 512").unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        while !line.contains("read 512/512") {
            line.clear();
            assert!(stdout.read_line(&mut line).unwrap() > 0, "qemu-io ended");
        }
        Holder(child)
    }

    /// qemu-storage-daemon, exporting the image for writing.
    fn storage_daemon(image: &Path) -> Holder {
        let socket = image.with_extension("sock");
        let child = Command::new("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!(
                "driver=file,node-name=f,filename={}",
                image.display()
            ))
            .arg("--nbd-server")
            .arg(format!("addr.type=unix,addr.path={}", socket.display()))
            .arg("--export")
            .arg("nbd,id=e,node-name=f,writable=on")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut holder = Holder(child);
        let deadline = Instant::now() + Duration::from_secs(30);
        // The export is made after the server, so ask for it: the greeting alone comes too early.
        loop {
            let exports = Command::new("qemu-img")
                .args([
                    "info",
                    &format!("nbd+unix:///f?socket={}", socket.display()),
                ])
                .output()
                .unwrap();
            if exports.status.success() {
                break;
            }
            assert_eq!(
                holder.0.try_wait().unwrap(),
                None,
                "qemu-storage-daemon ended"
            );
            assert!(Instant::now() < deadline, "no export within 30 s");
            std::thread::sleep(Duration::from_millis(20));
        }
        holder
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn qemu_does_not_write_to_what_we_write_to() {
    let Some(image) = Image::new() else { return };
    let disk = image.open(false).unwrap();
    image.assert_refused_to_tool("qemu-io", &["-f", "raw", "-c", "write 0 512"]);
    image.assert_refused_to_tool("qemu-img", &["bench", "-f", "raw", "-w", "-c", "1"]);
    // A reader that minds no writer may look on, as it may with QEMU itself.
    image
        .tool("qemu-io", &["-f", "raw", "-r", "-c", "read 0 512"])
        .unwrap();
    drop(disk);
    image
        .tool("qemu-io", &["-f", "raw", "-c", "write 0 512"])
        .unwrap();
}

#[test]
fn qemu_reads_beside_our_readers_but_does_not_write() {
    let Some(image) = Image::new() else { return };
    let disk = image.open(true).unwrap();
    image
        .tool("qemu-io", &["-f", "raw", "-r", "-c", "read 0 512"])
        .unwrap();
    image.assert_refused_to_tool("qemu-io", &["-f", "raw", "-c", "write 0 512"]);
    drop(disk);
    image
        .tool("qemu-io", &["-f", "raw", "-c", "write 0 512"])
        .unwrap();
}

#[test]
fn we_refuse_what_qemu_io_writes_to() {
    let Some(image) = Image::new() else { return };
    let holder = Holder::qemu_io(&image.path, &["-f", "raw"]);
    image.assert_refused_to_us(false, &holder.0, "qemu-io");
    image.assert_refused_to_us(true, &holder.0, "qemu-io");
    drop(holder);
    image.open(false).unwrap();
}

/// A reader of a format with metadata lets nobody write, unlike one of a raw image.
#[test]
fn a_reader_that_minds_writers_and_our_writer_keep_each_other_out() {
    let Some(image) = Image::new() else { return };
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&image.path)
        .arg("1M")
        .status()
        .unwrap();
    assert!(made.success());
    // Whole blocks, so that we would take it.
    let file = std::fs::File::options()
        .write(true)
        .open(&image.path)
        .unwrap();
    file.set_len(1 << 18).unwrap();
    let holder = Holder::qemu_io(&image.path, &["-r", "-f", "qcow2"]);
    image.open(true).unwrap();
    image.assert_refused_to_us(false, &holder.0, "qemu-io");
    drop(holder);
    let _disk = image.open(false).unwrap();
    image.assert_refused_to_tool("qemu-io", &["-r", "-f", "qcow2", "-c", "read 0 512"]);
    // A look that asks for nothing is allowed.
    image
        .tool("qemu-img", &["info", "-f", "qcow2", "-U"])
        .unwrap();
}

#[test]
fn we_refuse_what_the_storage_daemon_exports() {
    let Some(image) = Image::new() else { return };
    let holder = Holder::storage_daemon(&image.path);
    // The kernel cuts a process's name to 15 characters.
    image.assert_refused_to_us(false, &holder.0, "qemu-storage-da");
    image.assert_refused_to_us(true, &holder.0, "qemu-storage-da");
    drop(holder);
    image.open(false).unwrap();
}
