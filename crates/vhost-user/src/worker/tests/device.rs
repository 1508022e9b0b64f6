//! A device whose requests say what is to happen to them.

use super::DEADLINE;
use outboard_reactor::{IoPort, PortCompletion, RemotePort, io_uring::opcode};
use outboard_virtio::{
    device::{ConfigError, Device, DeviceError, Progress, QueueHandler, QueueSetup},
    queue::{Chain, Queue, QueueError},
};
use std::{
    collections::HashMap,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

/// The first readable byte of a request.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub enum Op {
    /// Answered at once.
    Now,
    /// By an operation of the kernel.
    Kernel,
    /// By a timer of a millisecond.
    Slow,
    /// When the test says so.
    Held,
    /// The worker waits in `process` until the test says so.
    Block,
    /// The handler says that the ring is broken.
    Break,
    /// The handler panics.
    Panic,
}

#[derive(Default)]
pub struct TestDevice {
    /// Shared by the tests' devices that want to compare.
    pub log: Arc<Mutex<Vec<(u32, u32)>>>,
    pub name: u32,
    pub refuses: bool,
    pub panics_at_open: bool,
    pub panics_at_reap: bool,
    pub handlers: Arc<AtomicU32>,
    /// At most this many in flight; 0: no limit.
    pub limit: usize,
    /// The most that were.
    pub most_in_flight: AtomicU32,
    held: Mutex<Vec<(RemotePort, u32)>>,
    blocked: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl TestDevice {
    pub fn held(&self) -> usize {
        self.held.lock().unwrap().len()
    }

    pub fn release(&self) {
        for (remote, token) in self.held.lock().unwrap().drain(..) {
            remote.complete(token, 0);
        }
    }

    /// Until the worker sits in a Block.
    pub fn wait_blocked(&self) {
        let state = self.blocked.lock().unwrap();
        drop(
            self.changed
                .wait_while(state, |(inside, _)| !*inside)
                .unwrap(),
        );
    }

    pub fn unblock(&self) {
        self.blocked.lock().unwrap().1 = true;
        self.changed.notify_all();
    }

    fn block(&self) {
        let mut state = self.blocked.lock().unwrap();
        state.0 = true;
        self.changed.notify_all();
        // Bounded, so that a test that failed meanwhile can end.
        let waited = self
            .changed
            .wait_timeout_while(state, DEADLINE, |(_, go)| !*go);
        drop(waited.unwrap());
    }
}

/// `Device` for an `Arc`, so that handlers can hold the device.
impl Device for TestDevice {
    fn id(&self) -> u32 {
        0
    }
    fn features(&self) -> u64 {
        0
    }
    fn max_queues(&self) -> u16 {
        1
    }
    fn max_queue_size(&self) -> u16 {
        128
    }
    fn ack_features(&self, _: u64) {}
    fn config_size(&self) -> u32 {
        0
    }
    fn read_config(&self, _: u32, _: &mut [u8]) -> Result<(), ConfigError> {
        Err(ConfigError("none".into()))
    }
    fn write_config(&self, _: u32, _: &[u8]) -> Result<(), ConfigError> {
        Err(ConfigError("none".into()))
    }
    fn reset(&self) {}
    fn on_config_change(&self, _: Option<Arc<dyn Fn() + Send + Sync>>) {}
    fn open_queue(&self, setup: QueueSetup) -> Result<Box<dyn QueueHandler>, DeviceError> {
        assert!(!self.panics_at_open, "as told");
        if self.refuses {
            return Err(DeviceError("as told".into()));
        }
        self.handlers.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Handler {
            // The worker promises to keep the device for as long as the handler.
            device: std::ptr::from_ref(self),
            port: setup.port,
            chains: HashMap::new(),
            next: 0,
            handlers: self.handlers.clone(),
        }))
    }
}

struct Handler {
    device: *const TestDevice,
    port: IoPort,
    chains: HashMap<u32, Chain>,
    next: u32,
    handlers: Arc<AtomicU32>,
}

impl Handler {
    fn device(&self) -> &TestDevice {
        // SAFETY: the worker keeps the `Arc<dyn Device>` until the handler was dropped.
        unsafe { &*self.device }
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        self.handlers.fetch_sub(1, Ordering::SeqCst);
    }
}

fn answer(queue: &mut Queue, chain: Chain) -> Result<(), QueueError> {
    chain.writable.copy_from(0, &[0xa5]);
    queue.push_used(chain.head, 1)
}

impl QueueHandler for Handler {
    fn process(&mut self, queue: &mut Queue, budget: u32) -> Result<Progress, QueueError> {
        for n in 0..budget {
            let limit = self.device().limit;
            if limit > 0 && self.chains.len() >= limit {
                return Ok(Progress::More);
            }
            let Some(chain) = queue.pop()? else {
                return Ok(Progress::Empty);
            };
            let device = self.device();
            device.log.lock().unwrap().push((device.name, n));
            let mut op = [0];
            chain.readable.copy_to(0, &mut op);
            let token = self.next;
            match op[0] {
                x if x == Op::Now as u8 => {
                    answer(queue, chain)?;
                    continue;
                }
                x if x == Op::Kernel as u8 => {
                    // SAFETY: a nop names nothing.
                    unsafe { self.port.push(opcode::Nop::new().build(), token) }.unwrap();
                }
                x if x == Op::Slow as u8 => self.port.timer(Duration::from_millis(1), token),
                x if x == Op::Held as u8 => {
                    device
                        .held
                        .lock()
                        .unwrap()
                        .push((self.port.remote(), token));
                }
                x if x == Op::Block as u8 => {
                    device.block();
                    answer(queue, chain)?;
                    continue;
                }
                x if x == Op::Break as u8 => return Err(QueueError::HeadInFlight(chain.head)),
                _ => panic!("as told"),
            }
            self.next += 1;
            self.chains.insert(token, chain);
            let now = self.chains.len() as u32;
            self.device()
                .most_in_flight
                .fetch_max(now, Ordering::SeqCst);
        }
        Ok(Progress::More)
    }

    fn complete(&mut self, queue: &mut Queue) -> Result<(), QueueError> {
        while let Some(PortCompletion { token, .. }) = self.port.pop() {
            answer(queue, self.chains.remove(&token).unwrap())?;
        }
        Ok(())
    }

    fn in_flight(&self) -> u32 {
        self.chains.len() as u32
    }

    fn reap(&mut self) -> u32 {
        assert!(!self.device().panics_at_reap, "as told");
        while let Some(PortCompletion { token, .. }) = self.port.pop() {
            self.chains.remove(&token);
        }
        self.chains.len() as u32
    }
}
