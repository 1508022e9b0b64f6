//! `outboard bench`: load on a vhost-user-blk back end, and what it costs that back end.
//!
//! One thread per queue runs `worker`; the main thread turns the phases (warm-up, measure, stop) and looks at the
//! back end's process at the two edges of the measurement, so that warm-up and verification cost nothing in the
//! figures.

pub mod args;
pub mod report;
mod worker;

use std::io::Write;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};
use virtio_bindings::bindings::virtio_blk::VIRTIO_BLK_F_RO;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

pub use args::{BenchArgs, Mode, Pattern};
pub use report::Report;

use crate::connection::Connection;
use crate::driver::{Completion, Driver, QueueOptions};
use crate::error::{Error, Result};
use crate::options::Options;
use crate::peer::Snapshot;
use crate::request::SECTOR;
use worker::{MEASURE, Outcome, Plan, STOP, WARM_UP, Worker};

/// Runs the bench and prints its report to stdout. An error if a request failed, a call was lost or a block was wrong.
pub fn run(args: &BenchArgs) -> Result<()> {
    let report = measure(args)?;
    let text = if args.json {
        report.json()?
    } else {
        report.to_string()
    };
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}")
        .and_then(|()| stdout.flush())
        .map_err(Error::io("write of the report"))?;
    match report.fault() {
        None => Ok(()),
        Some(fault) => Err(Error::Bench(fault)),
    }
}

/// Runs the bench and returns its report.
pub fn measure(args: &BenchArgs) -> Result<Report> {
    check(args)?;
    let shape = shape(args);
    let options = Options::new(&args.socket_path).regions(&[memory(args, &shape)]);
    let mut connection = Connection::open(&options)?;
    if u64::from(args.queues) > connection.queue_count() {
        let offered = connection.queue_count();
        return Err(Error::NotOffered {
            what: format!("{} queues", args.queues),
            offered,
        });
    }
    let writes = args.verify || args.rw.read_percent(args.read_percent) < 100;
    if writes && connection.has(VIRTIO_BLK_F_RO) {
        return Err(Error::Bench("the disk is read-only".into()));
    }
    let indirect = !args.direct && connection.has(VIRTIO_RING_F_INDIRECT_DESC);
    let shape = QueueOptions { indirect, ..shape };
    let plans = plans(args, connection.config()?.capacity * SECTOR)?;
    let pid = match args.server_pid {
        Some(pid) => pid,
        None => connection.server_pid()?,
    };
    let mut drivers = Vec::with_capacity(plans.len());
    for index in 0..plans.len() {
        let mut driver = connection.queue(index, shape)?;
        connection.start(&mut driver)?;
        drivers.push(driver);
    }
    let (outcomes, elapsed, cost) = drive(args, &mut drivers, plans, pid)?;
    for driver in &mut drivers {
        connection.stop(driver)?;
    }
    Ok(Report::new(args, indirect, pid, &outcomes, elapsed, cost))
}

fn check(args: &BenchArgs) -> Result<()> {
    let wrong = |what: String| Err(Error::Bench(what));
    if args.block_size == 0 || !args.block_size.is_multiple_of(SECTOR) || args.block_size > 16 << 20
    {
        return wrong(format!(
            "a block size of {} is no multiple of 512 up to 16M",
            args.block_size
        ));
    }
    if args.depth == 0 || args.queues == 0 || args.depth > 4096 {
        return wrong("depth and queues must be at least 1, depth at most 4096".into());
    }
    let seconds = |value: f64| Duration::try_from_secs_f64(value);
    if seconds(args.warmup).is_err() {
        return wrong(format!(
            "a warm-up of {} seconds; give 0 or more",
            args.warmup
        ));
    }
    let enough = match args.ios {
        Some(ios) => ios > 0,
        None => seconds(args.seconds).is_ok_and(|time| !time.is_zero()),
    };
    if !enough {
        return wrong("nothing to measure: give --seconds or --ios above 0".into());
    }
    Ok(())
}

/// A ring that holds the depth even with direct descriptors, three each.
fn shape(args: &BenchArgs) -> QueueOptions {
    QueueOptions {
        size: (args.depth * 3).next_power_of_two().clamp(128, MAX_RING),
        slots: args.depth,
        max_data: args.block_size as u32,
        max_segments: 4,
        completion: match args.mode {
            Mode::Event => Completion::Event,
            Mode::Polled => Completion::Polled,
        },
        ..QueueOptions::default()
    }
}

/// Back ends serve rings of up to 1024 (QEMU's limit); a larger depth then needs indirect descriptors.
const MAX_RING: u16 = 1024;

/// Guest memory for all queues.
fn memory(args: &BenchArgs, shape: &QueueOptions) -> u64 {
    let slot = args.block_size.next_multiple_of(4096) + 3 * 4096;
    let ring = u64::from(shape.size) * 32 + (64 << 10);
    (ring + slot * u64::from(args.depth)) * u64::from(args.queues) + (1 << 20)
}

/// Cuts the span into one part per queue.
fn plans(args: &BenchArgs, capacity: u64) -> Result<Vec<Plan>> {
    let default = if args.verify {
        capacity.min(256 << 20)
    } else {
        capacity
    };
    let span = args.span.unwrap_or(default);
    if span > capacity {
        return Err(Error::Bench(format!(
            "a span of {span} bytes on a disk of {capacity}"
        )));
    }
    let queues = u64::from(args.queues);
    let blocks = span / queues / args.block_size;
    // Twice the depth, so that a random pick with verification finds a free block.
    if blocks < 2 * u64::from(args.depth) {
        let what = "too small: each queue needs two blocks per request in flight";
        return Err(Error::Bench(format!("a span of {span} bytes is {what}")));
    }
    let plan = |index: u64| Plan {
        random: args.rw.is_random(),
        read_percent: args.rw.read_percent(args.read_percent),
        depth: usize::from(args.depth),
        block: args.block_size as u32,
        first: index * blocks * (args.block_size / SECTOR),
        blocks,
        seed: args.seed.wrapping_add(index),
        // The first queue takes the remainder.
        quota: args
            .ios
            .map(|ios| ios / queues + if index == 0 { ios % queues } else { 0 }),
        verify: args.verify,
    };
    Ok((0..queues).map(plan).collect())
}

/// Runs all queues through the phases. Returns what they measured, how long, and what it cost the back end.
fn drive(
    args: &BenchArgs,
    drivers: &mut [Driver],
    plans: Vec<Plan>,
    pid: i32,
) -> Result<(Vec<Outcome>, Duration, crate::peer::Cost)> {
    let phase = AtomicU8::new(WARM_UP);
    let prepared = Barrier::new(drivers.len() + 1);
    let measured = Barrier::new(drivers.len() + 1);
    std::thread::scope(|scope| {
        let mut threads = Vec::with_capacity(drivers.len());
        for (index, (driver, plan)) in drivers.iter_mut().zip(plans).enumerate() {
            let cpu = (!args.cpu.is_empty())
                .then(|| args.cpu.iter().cycle().nth(index).copied())
                .flatten();
            let (phase, prepared, measured) = (&phase, &prepared, &measured);
            threads.push(scope.spawn(move || {
                let worker =
                    pin(cpu)
                        .and_then(|()| Worker::new(driver, plan))
                        .and_then(|mut worker| {
                            worker.prepare()?;
                            Ok(worker)
                        });
                prepared.wait();
                let worker = worker.and_then(|mut worker| {
                    worker.run(phase)?;
                    Ok(worker)
                });
                measured.wait();
                worker?.finish()
            }));
        }
        prepared.wait();
        std::thread::sleep(Duration::from_secs_f64(args.warmup));
        let before = Snapshot::of(pid);
        let start = Instant::now();
        phase.store(MEASURE, Ordering::Relaxed);
        let mut edge = None;
        if args.ios.is_none() {
            std::thread::sleep(Duration::from_secs_f64(args.seconds));
            phase.store(STOP, Ordering::Relaxed);
            edge = Some(Snapshot::of(pid));
        }
        measured.wait();
        let after = edge.unwrap_or_else(|| Snapshot::of(pid));
        let outcomes = threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .map_err(|_| Error::Bench("a queue's thread panicked".into()))?
            })
            .collect::<Result<Vec<_>>>()?;
        let end = outcomes
            .iter()
            .map(|outcome| outcome.finished)
            .max()
            .unwrap_or(start);
        Ok((
            outcomes,
            end.saturating_duration_since(start),
            after?.since(&before?),
        ))
    })
}

fn pin(cpu: Option<usize>) -> Result<()> {
    let Some(cpu) = cpu else { return Ok(()) };
    if cpu >= CpuSet::MAX_CPU {
        return Err(Error::Bench(format!("there is no CPU {cpu}")));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).map_err(Error::errno("pinning a queue's thread to its CPU"))
}
