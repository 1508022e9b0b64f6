//! A server with a device of the tests' own, and the watch over descriptors.

use crate::raw::{PATIENCE, Raw};
use outboard_reactor::RemotePort;
use outboard_vhost_user::{
    Limits,
    server::{Endpoint, Server},
    worker::WorkerPool,
};
use outboard_virtio::{
    device::{ConfigError, Device, DeviceError, Progress, QueueHandler, QueueSetup},
    queue::{Chain, Queue, QueueError},
};
use std::{
    collections::BTreeMap,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

/// Echoes what it reads; on demand, only when told to.
#[derive(Default)]
pub struct Echo {
    /// requests are held until `release`
    pub hold: AtomicBool,
    held: Mutex<Vec<(RemotePort, u32)>>,
    pub config: Mutex<Vec<u8>>,
    pub resets: AtomicU32,
    pub acked: Mutex<Vec<u64>>,
    listener: Mutex<Option<Arc<dyn Fn() + Send + Sync>>>,
}

pub const QUEUES: u16 = 4;
pub const QUEUE_SIZE: u16 = 256;
pub const CONFIG_SIZE: usize = 60;
/// Of the device: 9 (FLUSH of a block device, say).
pub const DEVICE_FEATURES: u64 = 1 << 9;

impl Echo {
    pub fn held(&self) -> usize {
        self.held.lock().unwrap().len()
    }

    /// Lets every held request finish.
    pub fn release(&self) {
        for (port, token) in self.held.lock().unwrap().drain(..) {
            port.complete(token, 0);
        }
    }

    /// As if the device had been resized.
    pub fn change(&self) {
        let listener = self.listener.lock().unwrap().clone();
        if let Some(listener) = listener {
            listener();
        }
    }

    pub fn is_listened_to(&self) -> bool {
        self.listener.lock().unwrap().is_some()
    }
}

/// The device, shared with the test.
pub struct EchoDevice(pub Arc<Echo>);

impl Device for EchoDevice {
    fn id(&self) -> u32 {
        2
    }
    fn features(&self) -> u64 {
        DEVICE_FEATURES
    }
    fn max_queues(&self) -> u16 {
        QUEUES
    }
    fn max_queue_size(&self) -> u16 {
        QUEUE_SIZE
    }
    fn ack_features(&self, features: u64) {
        self.0.acked.lock().unwrap().push(features);
    }
    fn config_size(&self) -> u32 {
        u32::try_from(CONFIG_SIZE).unwrap()
    }
    fn read_config(&self, offset: u32, data: &mut [u8]) -> Result<(), ConfigError> {
        let config = self.0.config.lock().unwrap();
        let at = usize::try_from(offset).unwrap();
        let from = at
            .checked_add(data.len())
            .and_then(|end| config.get(at..end));
        data.copy_from_slice(from.ok_or_else(|| ConfigError("past the end".into()))?);
        Ok(())
    }
    fn write_config(&self, offset: u32, data: &[u8]) -> Result<(), ConfigError> {
        let mut config = self.0.config.lock().unwrap();
        let at = usize::try_from(offset).unwrap();
        let to = at
            .checked_add(data.len())
            .and_then(|end| config.get_mut(at..end));
        to.ok_or_else(|| ConfigError("past the end".into()))?
            .copy_from_slice(data);
        Ok(())
    }
    fn reset(&self) {
        self.0.resets.fetch_add(1, Ordering::SeqCst);
    }
    fn on_config_change(&self, listener: Option<Arc<dyn Fn() + Send + Sync>>) {
        *self.0.listener.lock().unwrap() = listener;
    }
    fn open_queue(&self, setup: QueueSetup) -> Result<Box<dyn QueueHandler>, DeviceError> {
        Ok(Box::new(EchoQueue {
            echo: self.0.clone(),
            setup,
            next: 0,
            waiting: BTreeMap::new(),
        }))
    }
}

struct EchoQueue {
    echo: Arc<Echo>,
    setup: QueueSetup,
    next: u32,
    waiting: BTreeMap<u32, Chain>,
}

fn answer(queue: &mut Queue, chain: Chain) -> Result<(), QueueError> {
    let mut bytes = vec![0; usize::try_from(chain.readable.len()).unwrap()];
    chain.readable.copy_to(0, &mut bytes);
    let written = chain.writable.copy_from(0, &bytes);
    let head = chain.head;
    drop(chain);
    queue.push_used(head, u32::try_from(written).unwrap())
}

impl QueueHandler for EchoQueue {
    fn process(&mut self, queue: &mut Queue, budget: u32) -> Result<Progress, QueueError> {
        for _ in 0..budget {
            let Some(chain) = queue.pop()? else {
                return Ok(Progress::Empty);
            };
            if self.echo.hold.load(Ordering::SeqCst) {
                self.next += 1;
                self.waiting.insert(self.next, chain);
                self.echo
                    .held
                    .lock()
                    .unwrap()
                    .push((self.setup.port.remote(), self.next));
            } else {
                answer(queue, chain)?;
            }
        }
        Ok(Progress::More)
    }
    fn complete(&mut self, queue: &mut Queue) -> Result<(), QueueError> {
        while let Some(done) = self.setup.port.pop() {
            let chain = self
                .waiting
                .remove(&done.token)
                .expect("a completion of what waits");
            answer(queue, chain)?;
        }
        Ok(())
    }
    fn in_flight(&self) -> u32 {
        u32::try_from(self.waiting.len()).unwrap()
    }
    fn reap(&mut self) -> u32 {
        while let Some(done) = self.setup.port.pop() {
            self.waiting
                .remove(&done.token)
                .expect("a completion of what waits");
        }
        self.in_flight()
    }
}

/// The process' descriptors are one of the things watched, so tests take turns.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What every open descriptor of this process is.
pub fn descriptors() -> Vec<String> {
    let mut list: Vec<_> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .map(|link| link.display().to_string())
        // the directory being read
        .filter(|link| !link.ends_with("/fd"))
        .collect();
    list.sort();
    list
}

/// Threads that serve front ends.
pub fn sessions() -> usize {
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .filter(|name| name.starts_with("vu-"))
        .count()
}

pub fn eventually(what: &str, mut true_now: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !true_now() {
        assert!(Instant::now() < until, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub struct Bench {
    pub echo: Arc<Echo>,
    pub server: Server,
    path: PathBuf,
    idle: Mutex<Vec<String>>,
    _pool: Arc<WorkerPool>,
    _dir: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Bench {
    pub fn new() -> Bench {
        Bench::with(Limits::default())
    }

    pub fn with(limits: Limits) -> Bench {
        let turn = turn();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (echo, device) = echo();
        let pool = WorkerPool::new(1).expect("workers");
        let listener = UnixListener::bind(&path).unwrap();
        let server = Server::start_with(
            "echo",
            device,
            pool.clone(),
            Endpoint::Listen(listener),
            limits,
        )
        .expect("a server");
        let bench = Bench {
            echo,
            server,
            path,
            idle: Mutex::new(descriptors()),
            _pool: pool,
            _dir: dir,
            _turn: turn,
        };
        eventually("the accepting thread runs", || sessions() == 1);
        bench
    }

    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    pub fn connect(&self) -> Raw {
        Raw::connect(&self.path)
    }

    /// What is open now is the test's own and stays open. Called while no front end is connected.
    pub fn mark(&self) {
        *self.idle.lock().unwrap() = descriptors();
    }

    /// The front end, which was answered before, leaves, and whatever it did to be kept, its session ends.
    pub fn gone(&self, front: Raw) {
        drop(front);
        eventually("the session ends", || sessions() == 1);
    }

    /// Every session has ended and left nothing behind: no thread, no descriptor, no listener in the device.
    ///
    /// First one more front end is served: when it is, no earlier connection waits in the listener's queue any more. (It may
    /// be turned away as long as one that was passed to itself is still to be found out.)
    pub fn quiet(&self) {
        eventually("the next front end is served", || {
            let front = self.connect();
            front.is_served()
        });
        let until = Instant::now() + PATIENCE;
        let idle = self.idle.lock().unwrap();
        loop {
            let now = descriptors();
            if now == *idle && sessions() == 1 {
                break;
            }
            assert!(
                Instant::now() < until,
                "{} session threads; descriptors\n  before: {:?}\n  now:    {now:?}",
                sessions() - 1,
                *idle
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!self.echo.is_listened_to());
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.echo.release();
        self.server.stop();
        let ended = self.server.wait(Some(PATIENCE));
        assert!(ended || std::thread::panicking(), "the server did not end");
    }
}

pub fn echo() -> (Arc<Echo>, Arc<dyn Device>) {
    let echo = Arc::new(Echo::default());
    *echo.config.lock().unwrap() = (0..u8::try_from(CONFIG_SIZE).unwrap()).collect();
    (echo.clone(), Arc::new(EchoDevice(echo)))
}

/// A server for one connected front end; the caller keeps what it needs.
pub fn connected(limits: Limits) -> (Server, Raw, Arc<Echo>, Arc<WorkerPool>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (echo, device) = echo();
    let pool = WorkerPool::new(1).expect("workers");
    let server = Server::start_with(
        "echo",
        device,
        pool.clone(),
        Endpoint::Connected(theirs),
        limits,
    )
    .expect("a server");
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    (server, Raw(ours), echo, pool)
}

/// For tests that make their own server.
pub fn take_turn() -> MutexGuard<'static, ()> {
    turn()
}
