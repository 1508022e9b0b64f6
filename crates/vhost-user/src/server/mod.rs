//! One device on one socket: accepts front ends, one at a time, one session each.
use crate::worker::WorkerPool;
use outboard_virtio::device::Device;
use std::{io, os::unix::net::{UnixListener, UnixStream}, sync::Arc, time::Duration};

pub enum Endpoint { /// serves one front end after the other
    Listen(UnixListener), /// serves this one and ends
    Connected(UnixStream) }
pub struct Server {}
impl Server {
    /// Starts the accepting thread.
    pub fn start(name: &str, device: Arc<dyn Device>, pool: Arc<WorkerPool>, endpoint: Endpoint) -> io::Result<Server> { let _ = (name, device, pool, endpoint); todo!() }
    /// Asks for the end: no new front ends, rings stop popping and drain, the session closes. Returns at once.
    pub fn stop(&self) { todo!() }
    /// True when the server has ended (after `stop`, or after the connected front end left). Waits at most `timeout`.
    pub fn wait(&self, timeout: Option<Duration>) -> bool { let _ = timeout; todo!() }
}
