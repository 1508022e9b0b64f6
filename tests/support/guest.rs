//! A real guest: QEMU with our Linux image (qemu/guest), running one scenario.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Deadline of a whole scenario. One takes 5 to 20 s on an idle machine; an emulated CPU shares the host's with all that
/// else runs there.
const DEADLINE: Duration = Duration::from_secs(400);

/// What a guest printed.
pub struct Console {
    lines: Vec<String>,
}

/// Boots the guest on these sockets, runs the scenario to its end and returns what it printed.
///
/// Panics with the whole console unless the guest's own verdict is "ok".
pub fn run(scenario: &str, sockets: &[&Path], options: &[&str]) -> Console {
    let mut command = Command::new(crate::repository().join("qemu/run"));
    command
        .args(["--scenario", scenario])
        .args(options)
        .args(sockets);
    let mut qemu = Qemu::spawn(command);
    let (sender, lines) = mpsc::channel();
    let output = qemu.0.stdout.take().expect("stdout is a pipe");
    // Ends with the pipe: at the latest when `qemu` is dropped.
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(line).is_err() {
                break;
            }
        }
    });

    let deadline = Instant::now() + DEADLINE;
    let mut console = Console { lines: Vec::new() };
    let verdict = loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                console.lines.push(line.clone());
                if let Some(verdict) = line.strip_prefix("VERDICT: ") {
                    break verdict.to_owned();
                }
                if line.contains("Kernel panic") {
                    break line;
                }
            }
            Err(RecvTimeoutError::Timeout) => break format!("none within {DEADLINE:?}"),
            Err(RecvTimeoutError::Disconnected) => {
                break format!("none before QEMU ended with {}", qemu.0.wait().unwrap());
            }
        }
    };
    assert_eq!(
        verdict,
        "ok",
        "scenario {scenario}, console:\n{}",
        console.text()
    );
    // Powered off by the guest itself: QEMU resets the devices, and says goodbye to the back end, in order.
    let status = loop {
        if let Some(status) = qemu.0.try_wait().unwrap() {
            break status;
        }
        assert!(
            Instant::now() < deadline,
            "QEMU does not end after the guest's verdict"
        );
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(
        status.success(),
        "QEMU ended with {status}:\n{}",
        console.text()
    );
    reader.join().expect("the reader of the console");
    console
}

impl Console {
    /// All of it.
    pub fn text(&self) -> String {
        self.lines.join("\n")
    }

    /// The value of a `key=value` line.
    pub fn value(&self, key: &str) -> &str {
        self.lines
            .iter()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .unwrap_or_else(|| panic!("no line {key}=… in:\n{}", self.text()))
    }

    /// The same as a number.
    pub fn number(&self, key: &str) -> u64 {
        let value = self.value(key);
        value
            .parse()
            .unwrap_or_else(|error| panic!("{key}={value}: {error}"))
    }

    /// Says whether a line contains this.
    pub fn has(&self, text: &str) -> bool {
        self.lines.iter().any(|line| line.contains(text))
    }
}

/// QEMU, killed on drop. What it prints on stderr goes into the test's own.
struct Qemu(Child);

impl Qemu {
    fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        Self(
            command
                .spawn()
                .unwrap_or_else(|error| panic!("{command:?}: {error}")),
        )
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
