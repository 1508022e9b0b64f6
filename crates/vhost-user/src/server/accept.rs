//! The accepting thread, and the thread of the session.

use super::{Current, Shared};
use crate::{
    DeviceName,
    session::{Session, Signals, end::End},
    wire::Limits,
    worker::{Tenure, WorkerPool},
};
use outboard_virtio::device::Device;
use rustix::{
    event::{PollFd, PollFlags, poll},
    time::Timespec,
};
use std::{
    io,
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// So long the last requests of a front end that is gone may take before it is worth a line.
const LONG: Duration = Duration::from_secs(5);
const LONG_TIMEOUT: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};

/// What every session of a server needs.
#[derive(Clone)]
pub struct Host {
    pub name: DeviceName,
    pub device: Arc<dyn Device>,
    pub pool: Arc<WorkerPool>,
    pub limits: Limits,
    pub shared: Arc<Shared>,
}

/// Says that the server has ended, however its last thread ends.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.set_ended();
    }
}

/// Held by a session and by each of its rings until the ring's last request has ended, which after a hang-up may be later
/// than the session's end: a write that is with the kernel still lands. The next front end must not be served before: a write
/// answered to it would be overwritten.
pub struct Occupied(Arc<Shared>);

impl Drop for Occupied {
    fn drop(&mut self) {
        self.0.stop.notify();
    }
}

/// Tells the accepting thread that nothing is left of the session, however its thread ends.
struct Over {
    shared: Arc<Shared>,
    socket: Option<Arc<UnixStream>>,
    /// the server ends with the session
    _ended: Option<Ended>,
}

impl Drop for Over {
    fn drop(&mut self) {
        if let Some(socket) = self.socket.take() {
            // The front end learns it now, even if someone else still holds the connection.
            let _ = socket.shutdown(Shutdown::Both);
        }
        self.shared.over();
    }
}

/// What the device is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Serving {
    Nobody,
    One,
    /// the front end has closed its end, its session or its last requests still hold the device
    Leaving,
}

impl Host {
    /// Serves one front end after the other, on a thread of its own.
    pub fn listen(self, listener: UnixListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let ended = Ended(self.shared.clone());
        thread::Builder::new()
            .name(format!("vu-{}", self.name))
            .spawn(move || {
                // Dropped in reverse: when the end is announced, nothing is left of the device and the listener here.
                let _ended = ended;
                let (host, listener) = (self, listener);
                host.accept_all(&listener);
            })?;
        Ok(())
    }

    /// Serves one front end and ends.
    pub fn serve_one(self, stream: UnixStream) -> io::Result<()> {
        let ended = Ended(self.shared.clone());
        self.begin(stream, Some(ended))
    }

    fn accept_all(&self, listener: &UnixListener) {
        let mut turned_away = 0;
        let (mut leaving, mut warned) = (None, false);
        loop {
            self.shared.stop.clear();
            let serving = self.serving();
            if self.shared.stop.is_stopping() {
                // Requests of a session that is gone are for the end of the workers to wait for.
                if self.shared.current().is_none() {
                    return;
                }
                self.sleep(None, None);
                continue;
            }
            if serving == Serving::Leaving {
                // Whoever comes now waits in the listener's queue instead of being turned away.
                let timeout = match leaving.get_or_insert_with(Instant::now).elapsed() {
                    long if long < LONG => Some(LONG_TIMEOUT),
                    _ if std::mem::replace(&mut warned, true) => None,
                    long => {
                        let seconds = long.as_secs();
                        tracing::warn!(
                            device = %self.name, seconds,
                            "requests of a front end that is gone are not finished by the disk; the next front end waits for them"
                        );
                        None
                    }
                };
                self.sleep(None, timeout);
                continue;
            }
            (leaving, warned) = (None, false);
            match listener.accept() {
                Ok((stream, _)) => self.admit(stream, &mut turned_away),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.sleep(Some(listener), None),
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                    ) => {}
                Err(e) => {
                    tracing::error!(device = %self.name, "cannot accept a front end, trying again in a second: {e}");
                    self.sleep(
                        None,
                        Some(Timespec {
                            tv_sec: 1,
                            tv_nsec: 0,
                        }),
                    );
                }
            }
        }
    }

    fn serving(&self) -> Serving {
        match &*self.shared.current() {
            None if self.shared.occupied().strong_count() > 0 => Serving::Leaving,
            None => Serving::Nobody,
            Some(current) => match current.socket.upgrade() {
                Some(socket) if !is_leaving(&socket) => Serving::One,
                _ => Serving::Leaving,
            },
        }
    }

    /// Until the stop request, the end of the session, or a connection.
    fn sleep(&self, listener: Option<&UnixListener>, timeout: Option<Timespec>) {
        let event = PollFd::from_borrowed_fd(self.shared.stop.event_fd(), PollFlags::IN);
        // Errors are looked at by whoever uses the descriptor next; EINTR is just a wake-up.
        let _ = match listener {
            Some(listener) => poll(
                &mut [event, PollFd::new(listener, PollFlags::IN)],
                timeout.as_ref(),
            ),
            None => poll(&mut [event], timeout.as_ref()),
        };
    }

    /// `turned_away`: how many others tried while the current front end was served. One that tries again and again must not
    /// fill the log, so only every doubling is worth a line.
    fn admit(&self, stream: UnixStream, turned_away: &mut u64) {
        if self.serving() == Serving::One {
            drop(stream);
            *turned_away += 1;
            if turned_away.is_power_of_two() {
                tracing::warn!(
                    device = %self.name, times = *turned_away,
                    "a second front end was turned away: this device serves one at a time, and one is connected"
                );
            }
            return;
        }
        *turned_away = 0;
        while self.serving() != Serving::Nobody {
            if self.shared.stop.is_stopping() && self.shared.current().is_none() {
                return;
            }
            self.sleep(None, None);
            self.shared.stop.clear();
        }
        if let Err(e) = self.begin(stream, None) {
            tracing::error!(device = %self.name, "cannot serve a front end: {e}");
        }
    }

    /// Starts a session's thread.
    fn begin(&self, stream: UnixStream, ended: Option<Ended>) -> io::Result<()> {
        let socket = Arc::new(stream);
        let signals = Arc::new(Signals::new()?);
        self.shared.begin(Current {
            signals: signals.clone(),
            socket: Arc::downgrade(&socket),
        });
        let over = Over {
            shared: self.shared.clone(),
            socket: Some(socket.clone()),
            _ended: ended,
        };
        let occupied = Arc::new(Occupied(self.shared.clone()));
        *self.shared.occupied() = Arc::downgrade(&occupied);
        let host = self.clone();
        thread::Builder::new()
            .name(format!("vu-{}", self.name))
            .spawn(move || {
                let _over = over;
                host.serve(occupied, socket, signals);
            })?;
        Ok(())
    }

    fn serve(self, tenure: Tenure, socket: Arc<UnixStream>, signals: Arc<Signals>) {
        let name = self.name.clone();
        tracing::info!(device = %name, "front end connected");
        let (end, c) = Session::new(
            tenure,
            self.name,
            self.device,
            self.pool,
            socket,
            signals,
            self.limits,
        )
        .run();
        match &end {
            End::HungUp { .. } | End::Stopped => {}
            _ if name.may_log() => tracing::error!(device = %name, "session closed: {end}"),
            _ => {}
        }
        let midway = if matches!(end, End::HungUp { midway: true }) {
            " in the middle of a message"
        } else {
            ""
        };
        tracing::info!(
            device = %name,
            messages = c.messages, refused = c.refused, starts = c.starts,
            requests = c.requests, kicks = c.kicks, calls = c.calls,
            "front end gone{midway}"
        );
    }
}

/// The other end is closed.
fn is_leaving(socket: &UnixStream) -> bool {
    let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    let mut fds = [PollFd::new(socket, gone)];
    poll(
        &mut fds,
        Some(&Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    )
    .is_ok()
        && {
            let [fd] = &fds;
            fd.revents().intersects(gone)
        }
}
