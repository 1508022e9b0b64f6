//! The daemon under test: the real binary, in a directory of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use outboard_frontend::{Connection, Options, QueueOptions};
use tempfile::TempDir;

use crate::process::{Process, SOON};

/// The binary: `OUTBOARD_BIN`, or the one that cargo built beside these tests.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("OUTBOARD_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().expect("the path of this test");
    // target/PROFILE/deps/TEST
    let path = test
        .ancestors()
        .nth(2)
        .expect("a target directory")
        .join("outboard");
    assert!(
        path.exists(),
        "{} is missing: cargo build -p outboard (or set OUTBOARD_BIN)",
        path.display()
    );
    path
}

/// A directory with images and sockets for daemons.
pub struct Site {
    directory: TempDir,
}

impl Default for Site {
    fn default() -> Self {
        Self::new()
    }
}

impl Site {
    /// An empty one.
    pub fn new() -> Self {
        Self {
            directory: TempDir::new().expect("a temporary directory"),
        }
    }

    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Makes a sparse image of zeroes.
    pub fn image(&self, name: &str, size: u64) -> PathBuf {
        let path = self.path(name);
        std::fs::File::create(&path)
            .and_then(|file| file.set_len(size))
            .expect("an image");
        path
    }

    /// Names of everything in the directory, sorted.
    pub fn listing(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory.path()).expect("the directory");
        let mut names: Vec<String> = entries
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        names.sort();
        names
    }

    /// `outboard` with these arguments, not started. `{}` in an argument is the directory.
    pub fn command(&self, args: &[&str]) -> Command {
        let directory = self
            .directory
            .path()
            .to_str()
            .expect("a temporary directory in UTF-8");
        let mut command = Command::new(binary());
        command.args(args.iter().map(|arg| arg.replace("{}", directory)));
        command.env_remove("OUTBOARD_LOG").stdout(Stdio::null());
        command
    }

    /// `outboard blk` on the socket `blk.sock`, listening.
    pub fn blk(&self, args: &[&str]) -> Daemon {
        let socket = self.path("blk.sock");
        let mut command = self.command(&["blk", "--socket-path", "{}/blk.sock"]);
        command.args(self.command(args).get_args());
        let mut process = Process::spawn(command);
        process.wait_listening(&socket);
        Daemon { process, socket }
    }

    /// `outboard serve` with this configuration, in which `{}` is the directory; listening on all `sockets`.
    pub fn serve(&self, config: &str, sockets: &[&str]) -> Process {
        let directory = self
            .directory
            .path()
            .to_str()
            .expect("a temporary directory in UTF-8");
        std::fs::write(self.path("outboard.toml"), config.replace("{}", directory))
            .expect("a configuration");
        let mut process = Process::spawn(self.command(&["serve", "--config", "{}/outboard.toml"]));
        for socket in sockets {
            process.wait_listening(&self.path(socket));
        }
        process
    }

    /// Runs `outboard` to its end, which is to be a refusal: status other than 0 and one line on stderr. Returns the line.
    pub fn refused(&self, args: &[&str]) -> String {
        refused(self.command(args))
    }
}

/// As [`Site::refused`], for any command.
pub fn refused(command: Command) -> String {
    let shown = format!("{command:?}");
    let mut process = Process::spawn(command);
    let status = process.wait();
    let stderr = process.end();
    assert!(
        status.code().is_some_and(|code| code != 0),
        "{shown}: {status}\n{stderr}"
    );
    let lines: Vec<&str> = stderr.lines().collect();
    assert_eq!(lines.len(), 1, "{shown}: not one line:\n{stderr}");
    lines[0].to_owned()
}

/// A daemon that serves one device.
pub struct Daemon {
    /// The process.
    pub process: Process,
    socket: PathBuf,
}

impl Daemon {
    /// The device's socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A front end that accepts all it can, with its memory handed over and no ring started.
    pub fn connect(&self) -> Connection {
        self.connect_with(&Options::new(&self.socket))
    }

    /// The same with options. Tries again while the daemon still clears away the session before, which it may refuse
    /// meanwhile.
    pub fn connect_with(&self, options: &Options) -> Connection {
        connect(options, &self.process)
    }

    /// File descriptors of the daemon while a front end is connected that does nothing. A front end that ran a ring
    /// has come and gone before, so that everything made at the first use is there.
    pub fn idle_fds(&self) -> Vec<String> {
        let mut connection = self.connect();
        let mut queue = connection
            .queue(0, QueueOptions::default())
            .expect("a queue");
        connection.start(&mut queue).expect("a started ring");
        queue.read(0, 512).expect("a read");
        connection.stop(&mut queue).expect("a stopped ring");
        drop(connection);
        // That this one is served says that the one before is gone.
        let _connection = self.connect();
        self.process.fds()
    }

    /// Waits until the file descriptors are as [`idle_fds`](Self::idle_fds) found them.
    pub fn wait_idle(&self, expected: &[String]) {
        let _connection = self.connect();
        self.process.wait_fds(expected);
    }
}

/// As [`Daemon::connect_with`], for any device of a daemon.
pub fn connect(options: &Options, daemon: &Process) -> Connection {
    let deadline = Instant::now() + SOON;
    loop {
        match Connection::open(options) {
            Ok(connection) => return connection,
            Err(error) => {
                assert!(Instant::now() < deadline, "{error:?}\n{}", daemon.stderr());
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
