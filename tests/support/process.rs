//! Programs under test: started, watched, and surely ended.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Deadline of everything that a healthy program does at once; generous, for loaded machines.
pub const SOON: Duration = Duration::from_secs(30);

/// A child process whose stderr is kept, and which is killed on drop.
pub struct Process {
    name: String,
    child: Child,
    lines: Arc<(Mutex<Vec<String>>, Condvar)>,
    reader: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts the command with stderr captured. stdin is empty.
    pub fn spawn(mut command: Command) -> Self {
        let name = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let lines = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let stderr = child.stderr.take().expect("stderr is a pipe");
        let sink = Arc::clone(&lines);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines() {
                let line = line.unwrap_or_else(|error| format!("<stderr: {error}>"));
                sink.0.lock().unwrap().push(line);
                sink.1.notify_all();
            }
        });
        Self {
            name,
            child,
            lines,
            reader: Some(reader),
        }
    }

    /// The process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// What it wrote to stderr until now.
    pub fn stderr(&self) -> String {
        self.lines.0.lock().unwrap().join("\n")
    }

    /// Waits until stderr has a line that contains `text`, and returns it.
    pub fn wait_stderr(&self, text: &str) -> String {
        let deadline = Instant::now() + SOON;
        let mut lines = self.lines.0.lock().unwrap();
        loop {
            if let Some(line) = lines.iter().find(|line| line.contains(text)) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "{}: no line with {text:?} in:\n{}",
                self.name,
                lines.join("\n")
            );
            lines = self.lines.1.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// Waits until a socket is listened on; panics with its stderr if the process ends first.
    pub fn wait_listening(&mut self, socket: &Path) {
        let deadline = Instant::now() + SOON;
        while !is_listening(socket) {
            if let Some(status) = self.child.try_wait().unwrap() {
                let stderr = self.end();
                panic!(
                    "{} ended with {status} before it listened:\n{stderr}",
                    self.name
                );
            }
            assert!(
                Instant::now() < deadline,
                "{} does not listen on {socket:?}:\n{}",
                self.name,
                self.stderr()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: kill takes plain numbers; the child was not waited for, so its pid is still its own.
        let result = unsafe { libc::kill(self.pid(), signal) };
        assert_eq!(
            result,
            0,
            "kill({signal}): {}",
            std::io::Error::last_os_error()
        );
    }

    /// Says whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end; panics if it does not end in time.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + SOON;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "{} does not end:\n{}",
                self.name,
                self.stderr()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// SIGTERM, and the wait for a clean end: status 0 is asserted.
    pub fn stop(mut self) {
        self.signal(libc::SIGTERM);
        let status = self.wait();
        assert!(
            status.success(),
            "{} ended with {status} at SIGTERM:\n{}",
            self.name,
            self.stderr()
        );
    }

    /// All of stderr, once the process has ended.
    pub fn end(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader of stderr");
        }
        self.stderr()
    }

    /// What its open file descriptors are (`socket`, `anon_inode:[eventfd]`, a path, …), sorted; without numbers, which
    /// differ between two moments that are otherwise the same.
    pub fn fds(&self) -> Vec<String> {
        let directory = format!("/proc/{}/fd", self.pid());
        let mut fds: Vec<String> = std::fs::read_dir(&directory)
            .unwrap_or_else(|error| panic!("{directory}: {error}"))
            // An fd may be closed between the listing and this look.
            .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
            .map(|target| {
                let target = target.to_string_lossy().into_owned();
                // socket:[1234], pipe:[1234]: the number says nothing.
                match target.split_once(":[") {
                    Some((kind @ ("socket" | "pipe"), _)) => kind.to_owned(),
                    _ => target,
                }
            })
            .collect();
        fds.sort();
        fds
    }

    /// Waits until its open file descriptors are `expected`: what a hang-up closes is closed some time after it.
    pub fn wait_fds(&self, expected: &[String]) {
        let deadline = Instant::now() + SOON;
        loop {
            let fds = self.fds();
            if fds == expected {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "file descriptors:\n{fds:#?}\ninstead of\n{expected:#?}"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            self.child.kill().ok();
        }
        let status = self.child.wait().expect("wait for the child");
        let stderr = self.end();
        // Shown by the test harness only if the test fails.
        if std::thread::panicking() && !stderr.is_empty() {
            eprintln!(
                "--- stderr of {} ({status}, signal {:?}):\n{stderr}",
                self.name,
                status.signal()
            );
        }
    }
}

/// Says whether some process listens on a Unix socket, without connecting to it: a probe that connects would be a
/// front end to a vhost-user back end.
pub fn is_listening(socket: &Path) -> bool {
    const ACCEPTS: &str = "00010000";
    // The kernel finds the socket behind the path, but it is of another type; a stale path refuses.
    let probe = UnixDatagram::unbound().expect("a socket").connect(socket);
    if probe.map_err(|error| error.raw_os_error()) != Err(Some(libc::EPROTOTYPE)) {
        return false;
    }
    // Bound and not yet listening, for a short while. A socket that was renamed to its path (and listened before) has
    // no line here.
    let table = std::fs::read_to_string("/proc/net/unix").expect("/proc/net/unix");
    let line = table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.len() == 8 && Path::new(fields[7]) == socket).then(|| fields[3].to_owned())
    });
    line.is_none_or(|flags| flags == ACCEPTS)
}
