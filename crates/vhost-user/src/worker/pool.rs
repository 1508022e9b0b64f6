//! The threads.

use super::{
    RingStart, RunningRing, StartError,
    mailbox::{Command, Mailbox, RingId},
    thread::Worker,
};
use outboard_reactor::{Config, Counters};
use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::sync_channel,
    },
    thread::{self, JoinHandle},
};

/// Threads shared by all devices of the process; one reactor each.
///
/// Dropping the pool abandons the rings that still run and joins the threads.
pub struct WorkerPool {
    workers: Vec<Handle>,
    next_id: AtomicU64,
}

struct Handle {
    mailbox: Arc<Mailbox>,
    load: Arc<Load>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What others may know of a worker.
#[derive(Default)]
pub(super) struct Load {
    /// Rings, ghosts included.
    pub rings: AtomicUsize,
    enters: AtomicU64,
    sleeps: AtomicU64,
    sqes: AtomicU64,
    cqes: AtomicU64,
    wakes: AtomicU64,
}

impl Load {
    /// Written by the worker before it sleeps.
    pub fn note(&self, counters: &Counters) {
        self.enters.store(counters.enters, Ordering::Relaxed);
        self.sleeps.store(counters.sleeps, Ordering::Relaxed);
        self.sqes.store(counters.sqes, Ordering::Relaxed);
        self.cqes.store(counters.cqes, Ordering::Relaxed);
        self.wakes.store(counters.wakes, Ordering::Relaxed);
    }
}

impl WorkerPool {
    /// Starts `threads` threads (at least one). Fails when the kernel refuses io_uring, with a text that says what to do.
    pub fn new(threads: usize) -> io::Result<Arc<WorkerPool>> {
        WorkerPool::with_config(threads, Config::default())
    }

    /// As [`WorkerPool::new`], with reactors of other sizes.
    pub fn with_config(threads: usize, config: Config) -> io::Result<Arc<WorkerPool>> {
        let mut pool = WorkerPool {
            workers: Vec::new(),
            next_id: AtomicU64::new(1),
        };
        for n in 0..threads.max(1) {
            pool.workers.push(spawn(n, config)?);
        }
        Ok(Arc::new(pool))
    }

    /// Gives the ring to the least loaded worker. Fails when the ring's addresses do not resolve or the device refuses.
    pub fn start(&self, ring: RingStart) -> Result<RunningRing, StartError> {
        let worker = self
            .workers
            .iter()
            .min_by_key(|w| w.load.rings.load(Ordering::Relaxed))
            .ok_or_else(|| StartError("the pool has no workers".into()))?;
        worker.load.rings.fetch_add(1, Ordering::Relaxed);
        let id: RingId = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = sync_channel(1);
        worker.mailbox.post(Command::Start {
            id,
            ring: Box::new(ring),
            reply,
        });
        let started = answer
            .recv()
            .unwrap_or_else(|_| Err(StartError("the worker thread has ended".into())));
        match started {
            Ok(shared) => Ok(RunningRing::new(id, shared, worker.mailbox.clone())),
            Err(e) => {
                worker.load.rings.fetch_sub(1, Ordering::Relaxed);
                Err(e)
            }
        }
    }

    /// What the workers' reactors did, summed, as of each one's last sleep.
    pub fn reactor_counters(&self) -> Counters {
        let mut sum = Counters::default();
        for Handle { load, .. } in &self.workers {
            sum.enters += load.enters.load(Ordering::Relaxed);
            sum.sleeps += load.sleeps.load(Ordering::Relaxed);
            sum.sqes += load.sqes.load(Ordering::Relaxed);
            sum.cqes += load.cqes.load(Ordering::Relaxed);
            sum.wakes += load.wakes.load(Ordering::Relaxed);
        }
        sum
    }

    /// Abandons what still runs, hands it back, and waits for the threads. Cancels and awaits I/O in flight, so it takes as
    /// long as the slowest operation that cannot be cancelled. Whatever is asked of the pool later fails.
    pub fn shut_down(&self) {
        for worker in &self.workers {
            worker.mailbox.post(Command::End);
        }
        for worker in &self.workers {
            let thread = worker
                .thread
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            // The last reference may be dropped by a callback on a worker: it cannot wait for itself.
            if let Some(thread) = thread.filter(|t| t.thread().id() != thread::current().id()) {
                // A panic was reported by the panic hook, and the worker's drop has put things in order.
                let _ = thread.join();
            }
        }
    }
}

impl Drop for WorkerPool {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// The reactor is made on the thread that uses it, so the thread reports whether it could be.
fn spawn(n: usize, config: Config) -> io::Result<Handle> {
    let load = Arc::new(Load::default());
    let (report, ready) = sync_channel(1);
    let of_thread = load.clone();
    let thread =
        thread::Builder::new()
            .name(format!("worker-{n}"))
            .spawn(move || match Worker::new(config, of_thread) {
                Ok(mut worker) => {
                    let _ = report.send(Ok(worker.mailbox()));
                    worker.run();
                }
                Err(e) => {
                    let _ = report.send(Err(e));
                }
            })?;
    let mailbox = ready
        .recv()
        .unwrap_or_else(|_| Err(io::Error::other("a worker thread ended at its start")))?;
    Ok(Handle {
        mailbox,
        load,
        thread: Mutex::new(Some(thread)),
    })
}
