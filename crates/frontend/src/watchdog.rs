//! A deadline for every message: the `vhost` crate waits for replies without one.
//!
//! A thread sleeps until the deadline of the message that is under way; when it passes, it shuts the socket down, so
//! that the blocked receive returns. A back end that hangs thus fails a test, and never hangs it.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Default)]
struct State {
    deadline: Option<Instant>,
    fired: bool,
    stop: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Guards one socket.
pub(crate) struct Watchdog {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watchdog {
    /// Guards the socket behind `stream` (a duplicate of the one that is used).
    pub(crate) fn new(stream: UnixStream) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let mine = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || Self::watch(&mine, &stream))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    fn watch(shared: &Shared, stream: &UnixStream) {
        let mut state = shared.state();
        while !state.stop {
            state = match state.deadline {
                None => shared
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        state.fired = true;
                        state.deadline = None;
                        // An error says that the socket is closed already, which is what is wanted.
                        let _ = stream.shutdown(Shutdown::Both);
                        continue;
                    }
                    shared
                        .changed
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }

    /// Runs `work` under a deadline; the flag says that it passed (now or earlier) and the socket is gone.
    pub(crate) fn run<T>(&self, within: Duration, work: impl FnOnce() -> T) -> (T, bool) {
        self.shared.state().deadline = Some(Instant::now() + within);
        self.shared.changed.notify_one();
        let result = work();
        let mut state = self.shared.state();
        state.deadline = None;
        (result, state.fired)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.state().stop = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // The thread holds nothing that could be lost with its panic.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_silent_peer_is_cut_off() {
        let (mut mine, _peer) = UnixStream::pair().unwrap();
        let watchdog = Watchdog::new(mine.try_clone().unwrap()).unwrap();
        let (ended, fired) = watchdog.run(Duration::from_secs(60), || 1);
        assert_eq!((ended, fired), (1, false));
        let (read, fired) = watchdog.run(Duration::from_millis(10), || mine.read(&mut [0]));
        assert_eq!((read.unwrap(), fired), (0, true), "the blocked read ends");
    }
}
