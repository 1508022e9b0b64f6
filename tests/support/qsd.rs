//! qemu-storage-daemon as a back end that is not ours: what the front end is checked against.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::process::Process;

/// A qemu-storage-daemon that exports one disk.
pub struct Qsd {
    /// The process.
    pub process: Process,
    socket: PathBuf,
    directory: TempDir,
}

/// Says whether qemu-storage-daemon is there. If not: a loud skip, or a failure where CI=true says that everything
/// must be there.
pub fn available(test: &str) -> bool {
    let found = Command::new("qemu-storage-daemon")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !found {
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "{test}: qemu-storage-daemon is missing (Debian: qemu-utils)"
        );
        crate::skip(
            "qemu-storage-daemon",
            test,
            "not found (Debian: qemu-utils)",
        );
    }
    found
}

impl Qsd {
    /// Exports a raw file of `size` zero bytes.
    pub fn file(size: u64, queues: u16, options: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let image = directory.path().join("disk.raw");
        std::fs::File::create(&image)
            .unwrap()
            .set_len(size)
            .unwrap();
        let node = format!(
            "driver=raw,node-name=n,discard=unmap,file.driver=file,file.filename={}",
            image.display()
        );
        Self::start(directory, &node, queues, options)
    }

    /// Exports a disk that reads as zeroes and forgets what is written.
    pub fn null(size: u64, queues: u16) -> Self {
        let node = format!("driver=null-co,node-name=n,size={size},read-zeroes=on");
        Self::start(TempDir::new().unwrap(), &node, queues, "")
    }

    fn start(directory: TempDir, node: &str, queues: u16, options: &str) -> Self {
        let socket = directory.path().join("vhost.sock");
        let export = format!(
            "type=vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={},writable=on,num-queues={queues}{options}",
            socket.display()
        );
        let mut command = Command::new("qemu-storage-daemon");
        command.args(["--blockdev", node, "--export", &export]);
        let mut process = Process::spawn(command);
        process.wait_listening(&socket);
        Self {
            process,
            socket,
            directory,
        }
    }

    /// The vhost-user socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The image of [`file`](Self::file).
    pub fn image(&self) -> PathBuf {
        self.directory.path().join("disk.raw")
    }
}
