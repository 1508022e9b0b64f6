//! One device on one socket: accepts front ends, one at a time, one session each.

mod accept;

use crate::{session::Signals, wire::Limits, worker::WorkerPool};
use outboard_virtio::device::Device;
use std::{
    io,
    os::unix::net::{UnixListener, UnixStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

/// Where front ends come from.
#[derive(Debug)]
pub enum Endpoint {
    /// Serves one front end after the other. The listener is made non-blocking.
    Listen(UnixListener),
    /// Serves this one and ends.
    Connected(UnixStream),
}

/// A device being served. Dropping it asks for the end, without waiting.
pub struct Server {
    shared: Arc<Shared>,
}

/// The session being served.
struct Current {
    signals: Arc<Signals>,
    socket: Weak<UnixStream>,
}

/// What the server's handle and its threads share.
struct Shared {
    stop: Signals,
    /// the session being served; `None` once nothing of it is left
    current: Mutex<Option<Current>>,
    /// alive while requests of any session so far are with the kernel
    occupied: Mutex<Weak<accept::Occupied>>,
    ended: Mutex<bool>,
    end: Condvar,
}

impl Server {
    /// Starts serving `device`, with rings on the workers of `pool`; `name` is for threads and log lines.
    ///
    /// # Errors
    /// Out of threads or descriptors.
    pub fn start(
        name: &str,
        device: Arc<dyn Device>,
        pool: Arc<WorkerPool>,
        endpoint: Endpoint,
    ) -> io::Result<Server> {
        Server::start_with(name, device, pool, endpoint, Limits::default())
    }

    /// [`Server::start`], with other deadlines for the front end.
    ///
    /// # Errors
    /// Out of threads or descriptors.
    pub fn start_with(
        name: &str,
        device: Arc<dyn Device>,
        pool: Arc<WorkerPool>,
        endpoint: Endpoint,
        limits: Limits,
    ) -> io::Result<Server> {
        let shared = Arc::new(Shared {
            stop: Signals::new()?,
            current: Mutex::new(None),
            occupied: Mutex::default(),
            ended: Mutex::new(false),
            end: Condvar::new(),
        });
        let host = accept::Host {
            name: name.into(),
            device,
            pool,
            limits,
            shared: shared.clone(),
        };
        match endpoint {
            Endpoint::Listen(listener) => host.listen(listener)?,
            Endpoint::Connected(stream) => host.serve_one(stream)?,
        }
        Ok(Server { shared })
    }

    /// Asks for the end: no new front ends, rings stop popping and drain, the session closes. Returns at once.
    pub fn stop(&self) {
        self.shared.stop();
    }

    /// True when the server has ended (after `stop`, or after the connected front end left). Waits at most `timeout`.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        let until = timeout.and_then(|t| Instant::now().checked_add(t));
        let mut ended = self
            .shared
            .ended
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while !*ended {
            ended = match until {
                None => self
                    .shared
                    .end
                    .wait(ended)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return false;
                    }
                    self.shared
                        .end
                        .wait_timeout(ended, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
        true
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    /// Either the session that is being started sees the flag, or it is found here: both sides take the lock.
    fn stop(&self) {
        self.stop.stop();
        if let Some(session) = &*self.current() {
            session.signals.stop();
        }
    }

    fn current(&self) -> MutexGuard<'_, Option<Current>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn occupied(&self) -> MutexGuard<'_, Weak<accept::Occupied>> {
        self.occupied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, session: Current) {
        let mut current = self.current();
        if self.stop.is_stopping() {
            session.signals.stop();
        }
        *current = Some(session);
    }

    fn over(&self) {
        *self.current() = None;
        self.stop.notify();
    }

    fn set_ended(&self) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.end.notify_all();
    }
}
