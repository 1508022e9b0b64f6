//! Puts disks under devices, devices behind sockets, and waits for the end.

use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use outboard_devices::blk::{Blk, BlkOptions};
use outboard_vhost_user::server::Server;
use outboard_vhost_user::worker::WorkerPool;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::{info, warn};

use crate::endpoint::{BoundPath, EndpointSpec};
use crate::options::BlkSpec;

/// Signals this soon after the first are the same request: some supervisors send one to the process and one to its group.
const SAME_REQUEST: Duration = Duration::from_secs(1);

/// A device to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSpec {
    /// For logs; unique in the process.
    pub name: String,
    /// Where its front end comes in.
    pub endpoint: EndpointSpec,
    /// The disk.
    pub blk: BlkSpec,
}

enum Happened {
    /// SIGTERM or SIGINT.
    Signal(i32),
    /// A server ended by itself: its only front end left.
    Ended,
}

/// Serves all devices until SIGTERM or SIGINT, or until the front ends of inherited connections have all left.
/// Either all devices start or none.
///
/// The first signal ends in order: nothing new is taken from the rings, what is in flight completes and is
/// published, then the sockets close. A second one, a second or more later, gives up on I/O that does not complete.
pub fn run(devices: Vec<DeviceSpec>, workers: Option<u16>) -> anyhow::Result<()> {
    // What was inherited, before anything of our own gets the number of what was not.
    let claims = devices
        .iter()
        .map(|spec| in_device(spec, spec.endpoint.claim()))
        .collect::<anyhow::Result<Vec<_>>>()?;
    raise_descriptor_limit();
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("cannot catch signals")?;
    // All disks, then all sockets: a disk that is refused leaves every path as it was.
    let opened = devices
        .iter()
        .map(|spec| in_device(spec, open(spec)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let endpoints = devices
        .iter()
        .zip(claims)
        .map(|(spec, claim)| in_device(spec, claim.open()))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let pool = WorkerPool::new(threads(&devices, workers)).context("cannot start the workers")?;
    let mut servers = Vec::with_capacity(opened.len());
    let mut paths: Vec<BoundPath> = Vec::new();
    for ((spec, device), (endpoint, bound)) in devices.iter().zip(opened).zip(endpoints) {
        let server = Server::start(&spec.name, device, Arc::clone(&pool), endpoint)
            .with_context(|| format!("device {:?}: cannot start its server", spec.name))?;
        servers.push(Arc::new(server));
        paths.extend(bound);
        info!(device = spec.name, disk = spec.blk.disk, "serving");
    }

    let (tell, happened) = mpsc::channel();
    watch_ends(&servers, &tell)?;
    spawn("signals", move || {
        for signal in signals.forever() {
            if tell.send(Happened::Signal(signal)).is_err() {
                break;
            }
        }
    })?;

    let mut left = servers.len();
    while left > 0 {
        match happened.recv().context("the signal thread is gone")? {
            Happened::Ended => left -= 1,
            Happened::Signal(signal) => {
                info!(signal, "stopping: draining all devices");
                // From here on the path is free for a successor.
                paths.clear();
                servers.iter().for_each(|server| server.stop());
                break;
            }
        }
    }
    let asked = Instant::now();
    while left > 0 {
        match happened.recv().context("the signal thread is gone")? {
            Happened::Ended => left -= 1,
            Happened::Signal(_) if asked.elapsed() < SAME_REQUEST => {}
            Happened::Signal(_) => {
                warn!("second signal: giving up on I/O in flight");
                bail!("stopped by a second signal with I/O in flight");
            }
        }
    }
    Ok(())
}

/// As many descriptors as this process may have at all: every region of a guest's memory and every ring of every guest takes some, and
/// one guest that takes many must not leave the others without. (The usual soft limit of 1024 is for programs that call select(2).)
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!(soft = limit.current, %error, "the limit of open files cannot be raised");
    }
}

fn in_device<T>(spec: &DeviceSpec, result: anyhow::Result<T>) -> anyhow::Result<T> {
    result.with_context(|| format!("device {:?}", spec.name))
}

fn open(spec: &DeviceSpec) -> anyhow::Result<Arc<Blk>> {
    let disk = outboard_storage::uri::open(&spec.blk.disk, &spec.blk.open)?;
    let device = Blk::new(
        disk,
        BlkOptions {
            num_queues: spec.blk.num_queues,
            queue_size: spec.blk.queue_size,
            serial: spec.blk.serial.clone(),
            writeback: spec.blk.writeback,
        },
    )?;
    Ok(Arc::new(device))
}

/// One worker per usable CPU, but no more than there can be queues to serve.
fn threads(devices: &[DeviceSpec], asked: Option<u16>) -> usize {
    let queues: usize = devices
        .iter()
        .map(|spec| usize::from(spec.blk.num_queues))
        .sum();
    match asked {
        Some(n) => usize::from(n),
        None => thread::available_parallelism()
            .map_or(1, usize::from)
            .min(queues),
    }
}

fn watch_ends(servers: &[Arc<Server>], tell: &Sender<Happened>) -> anyhow::Result<()> {
    for server in servers {
        let (server, tell) = (Arc::clone(server), tell.clone());
        spawn("end", move || {
            server.wait(None);
            let _ = tell.send(Happened::Ended);
        })?;
    }
    Ok(())
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    thread::Builder::new()
        .name(name.to_owned())
        .stack_size(64 * 1024)
        .spawn(body)
        .with_context(|| format!("cannot start the thread {name:?}"))?;
    Ok(())
}
