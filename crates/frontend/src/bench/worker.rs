//! The loop of one queue: keep `depth` requests in flight, take what is done, refill, publish once, kick at most once.
//!
//! Nothing is allocated between the first and the last request, and the clock is read twice per batch: a client that
//! is slower than the server measures itself.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::driver::{Driver, Io, Slot};
use crate::error::{Error, Result};
use crate::peer::own_cpu_ns;
use crate::request::{SECTOR, STATUS_OK};
use crate::verify::{Flaw, check, stamp};

/// Requests run, nothing counts.
pub(super) const WARM_UP: u8 = 0;
/// Everything counts.
pub(super) const MEASURE: u8 = 1;
/// No new requests.
pub(super) const STOP: u8 = 2;

/// A request that takes longer than this ends the run; a call that stays away this long is counted as lost.
const PATIENCE: Duration = Duration::from_secs(10);
/// Flaws that are kept to be shown; all are counted.
const SHOWN: usize = 8;

/// What one queue does.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) random: bool,
    pub(super) read_percent: u8,
    pub(super) depth: usize,
    /// Bytes of a request.
    pub(super) block: u32,
    /// First sector of this queue's part of the disk.
    pub(super) first: u64,
    /// Blocks of this queue's part.
    pub(super) blocks: u64,
    pub(super) seed: u64,
    /// Requests to measure, if not by time.
    pub(super) quota: Option<u64>,
    pub(super) verify: bool,
}

/// What one queue measured.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Nanoseconds from publication to the moment the completion was seen.
    pub(super) latency: Histogram<u64>,
    pub(super) ios: u64,
    pub(super) errors: u64,
    pub(super) lost_calls: u64,
    pub(super) kicks: u64,
    pub(super) calls: u64,
    pub(super) cpu_ns: u64,
    pub(super) finished: Instant,
    pub(super) checked: u64,
    pub(super) flaws: u64,
    pub(super) shown: Vec<Flaw>,
}

/// A slot's request.
#[derive(Clone, Copy, Debug, Default)]
struct Flight {
    started_ns: u64,
    block: u64,
    write: bool,
}

/// What the disk must hold: sequence number of the last write per block, and which blocks are under way.
struct Model {
    sequences: Vec<u64>,
    busy: Vec<bool>,
    next: u64,
    scratch: Vec<u8>,
}

pub(super) struct Worker<'a> {
    driver: &'a mut Driver,
    plan: Plan,
    random: fastrand::Rng,
    cursor: u64,
    flights: Vec<Flight>,
    epoch: Instant,
    model: Option<Model>,
    outcome: Outcome,
}

impl<'a> Worker<'a> {
    pub(super) fn new(driver: &'a mut Driver, plan: Plan) -> Result<Self> {
        // 1 ns to 100 s, 3 digits: 200 KiB, allocated now.
        let latency = Histogram::new_with_bounds(1, 100_000_000_000, 3)
            .map_err(|error| Error::Bench(format!("histogram: {error}")))?;
        let model = plan.verify.then(|| Model {
            sequences: vec![0; plan.blocks as usize],
            busy: vec![false; plan.blocks as usize],
            next: 1,
            scratch: vec![0; plan.block as usize],
        });
        let epoch = Instant::now();
        Ok(Self {
            random: fastrand::Rng::with_seed(plan.seed),
            cursor: 0,
            flights: vec![Flight::default(); usize::from(driver.options().slots)],
            epoch,
            model,
            outcome: Outcome {
                latency,
                ios: 0,
                errors: 0,
                lost_calls: 0,
                kicks: 0,
                calls: 0,
                cpu_ns: 0,
                finished: epoch,
                checked: 0,
                flaws: 0,
                shown: Vec::with_capacity(SHOWN),
            },
            driver,
            plan,
        })
    }

    /// Before the warm-up: with verification, writes every block once.
    pub(super) fn prepare(&mut self) -> Result<()> {
        if self.model.is_some() {
            self.pass(true)?;
        }
        Ok(())
    }

    /// Runs until the phase says stop or the quota is reached.
    pub(super) fn run(&mut self, phase: &AtomicU8) -> Result<()> {
        let mut measuring = false;
        let mut before = self.driver.counters();
        let mut cpu = 0;
        loop {
            let now = phase.load(Ordering::Relaxed);
            // A queue that slept through the whole measurement learns of its end first: it has measured nothing.
            if now != WARM_UP && !measuring {
                measuring = true;
                self.outcome.latency.reset();
                self.outcome.ios = 0;
                before = self.driver.counters();
                cpu = own_cpu_ns();
            }
            if now == STOP {
                break;
            }
            let quota = self.plan.quota.filter(|_| measuring);
            if quota.is_some_and(|quota| self.outcome.ios >= quota) {
                break;
            }
            self.refill(quota)?;
            self.reap()?;
        }
        self.outcome.finished = Instant::now();
        let after = self.driver.counters();
        self.outcome.kicks = after.kicks - before.kicks;
        self.outcome.calls = after.calls - before.calls;
        self.outcome.cpu_ns = own_cpu_ns() - cpu;
        Ok(())
    }

    /// After the measurement: lets everything in flight end and, with verification, reads every block back.
    pub(super) fn finish(mut self) -> Result<Outcome> {
        let (ios, latency) = (self.outcome.ios, self.outcome.latency.clone());
        while self.driver.in_flight() > 0 {
            self.reap()?;
        }
        if self.model.is_some() {
            self.pass(false)?;
        }
        self.outcome.ios = ios;
        self.outcome.latency = latency;
        Ok(self.outcome)
    }

    /// Goes over all blocks once, in order.
    fn pass(&mut self, write: bool) -> Result<()> {
        let mut next = 0;
        while next < self.plan.blocks || self.driver.in_flight() > 0 {
            let now = self.now();
            while next < self.plan.blocks && self.driver.in_flight() < self.plan.depth {
                self.submit(next, write, now)?;
                next += 1;
            }
            self.driver.kick()?;
            self.reap()?;
        }
        Ok(())
    }

    #[inline]
    fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    /// Fills the ring up to the depth (or the quota) and publishes.
    #[inline]
    fn refill(&mut self, quota: Option<u64>) -> Result<()> {
        let flying = self.driver.in_flight();
        let mut room = self.plan.depth.saturating_sub(flying);
        if let Some(quota) = quota {
            let left = quota
                .saturating_sub(self.outcome.ios)
                .saturating_sub(flying as u64);
            room = room.min(usize::try_from(left).unwrap_or(usize::MAX));
        }
        if room == 0 {
            return Ok(());
        }
        let now = self.now();
        for _ in 0..room {
            let block = self.pick();
            let write = match self.plan.read_percent {
                100 => false,
                0 => true,
                percent => self.random.u8(..100) >= percent,
            };
            // With verification two requests never meet on one block: their order would be anyone's guess.
            if self
                .model
                .as_ref()
                .is_some_and(|model| is(&model.busy, block))
            {
                break;
            }
            self.submit(block, write, now)?;
        }
        self.driver.kick().map(drop)
    }

    #[inline]
    fn pick(&mut self) -> u64 {
        if self.plan.random {
            return self.random.u64(..self.plan.blocks);
        }
        let block = self.cursor;
        self.cursor = if block + 1 >= self.plan.blocks {
            0
        } else {
            block + 1
        };
        block
    }

    #[inline]
    fn submit(&mut self, block: u64, write: bool, started_ns: u64) -> Result<()> {
        let slot = self.driver.take_slot()?;
        let sector = self.plan.first + block * (u64::from(self.plan.block) / SECTOR);
        if let Some(model) = &mut self.model {
            if write {
                stamp(&mut model.scratch, sector, model.next);
                self.driver.write_data(slot, &model.scratch);
                set(&mut model.sequences, block, model.next);
                model.next += 1;
            }
            set(&mut model.busy, block, true);
        }
        if let Some(flight) = self.flights.get_mut(slot.index()) {
            *flight = Flight {
                started_ns,
                block,
                write,
            };
        }
        let io = if write { Io::Write } else { Io::Read };
        self.driver.submit_io(slot, io, sector, self.plan.block)
    }

    /// Waits for completions and takes all that are there.
    #[inline]
    fn reap(&mut self) -> Result<()> {
        if self.driver.in_flight() == 0 {
            return Ok(());
        }
        match self.driver.wait_used(PATIENCE) {
            // The completions are there: go on, and let the count speak.
            Err(Error::LostCall { .. }) => self.outcome.lost_calls += 1,
            other => other?,
        }
        let now = self.now();
        while let Some(done) = self.driver.try_next()? {
            let Some(slot) = done.slot else { continue };
            let flight = self.flights.get(slot.index()).copied().unwrap_or_default();
            let nanoseconds = now.saturating_sub(flight.started_ns).max(1);
            self.outcome.latency.saturating_record(nanoseconds);
            self.outcome.ios += 1;
            let length = if flight.write { 1 } else { 1 + self.plan.block };
            let good = done.status == STATUS_OK && done.used == length;
            self.outcome.errors += u64::from(!good);
            if self.model.is_some() {
                self.settle(slot, flight, good);
            }
            self.driver.release(slot);
        }
        Ok(())
    }

    /// Checks a read against the model and frees the block.
    fn settle(&mut self, slot: Slot, flight: Flight, good: bool) {
        let Some(model) = &mut self.model else { return };
        set(&mut model.busy, flight.block, false);
        if flight.write || !good {
            return;
        }
        self.driver.read_data(slot, &mut model.scratch);
        let sector = self.plan.first + flight.block * (u64::from(self.plan.block) / SECTOR);
        let sequence = model
            .sequences
            .get(flight.block as usize)
            .copied()
            .unwrap_or(0);
        self.outcome.checked += 1;
        if let Err(flaw) = check(&model.scratch, sector, sequence) {
            self.outcome.flaws += 1;
            if self.outcome.shown.len() < SHOWN {
                self.outcome.shown.push(flaw);
            }
        }
    }
}

fn is(flags: &[bool], at: u64) -> bool {
    flags.get(at as usize).copied().unwrap_or(false)
}

fn set<T>(values: &mut [T], at: u64, value: T) {
    if let Some(place) = values.get_mut(at as usize) {
        *place = value;
    }
}
