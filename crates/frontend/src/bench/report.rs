//! The figures of a bench run, for people and for programs.
//!
//! JSON: one object with the arguments, the totals and the figures per I/O; latencies in microseconds. Fields are only
//! ever added.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::args::BenchArgs;
use super::worker::Outcome;
use crate::error::{Error, Result};
use crate::peer::Cost;

/// Latencies in microseconds, from publication of the request to the moment its completion was seen.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Latency {
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90 % are not above.
    pub p90: f64,
    /// 99 % are not above.
    pub p99: f64,
    /// 99.9 % are not above.
    pub p999: f64,
    /// Largest.
    pub max: f64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        let micro = |nanoseconds: u64| nanoseconds as f64 / 1000.0;
        let at = |quantile| micro(histogram.value_at_quantile(quantile));
        Self {
            mean: histogram.mean() / 1000.0,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: micro(histogram.max()),
        }
    }
}

/// What verification found.
#[derive(Clone, Debug, Serialize)]
pub struct Verified {
    /// Blocks read and checked.
    pub checked: u64,
    /// Blocks that were wrong.
    pub flaws: u64,
    /// The first of them, in words.
    pub shown: Vec<String>,
}

/// The figures of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was asked for.
    pub args: BenchArgs,
    /// Requests went through indirect tables.
    pub indirect: bool,
    /// Seconds measured.
    pub seconds: f64,
    /// Requests completed in that time.
    pub ios: u64,
    /// Requests per second.
    pub iops: f64,
    /// Mebibytes per second.
    pub mib_per_second: f64,
    /// Latencies in microseconds.
    pub latency_us: Latency,
    /// Writes to kick eventfds per request.
    pub kicks_per_io: f64,
    /// Signals on call eventfds per request.
    pub calls_per_io: f64,
    /// Process id of the back end.
    pub server_pid: i32,
    /// Its threads.
    pub server_threads: usize,
    /// Its CPU time per request in microseconds.
    pub server_cpu_us_per_io: f64,
    /// Its CPU time in CPUs.
    pub server_cpus: f64,
    /// Its context switches per request.
    pub server_switches_per_io: f64,
    /// CPU time of the client's threads per request in microseconds.
    pub client_cpu_us_per_io: f64,
    /// Requests that failed, or whose used length was wrong.
    pub errors: u64,
    /// Completions whose call never came.
    pub lost_calls: u64,
    /// What verification found, if it was asked for.
    pub verified: Option<Verified>,
}

impl Report {
    pub(super) fn new(
        args: &BenchArgs,
        indirect: bool,
        server_pid: i32,
        outcomes: &[Outcome],
        elapsed: Duration,
        cost: Cost,
    ) -> Self {
        let total = |field: fn(&Outcome) -> u64| outcomes.iter().map(field).sum::<u64>();
        let ios = total(|outcome| outcome.ios);
        let seconds = elapsed.as_secs_f64().max(1e-9);
        let per_io = |count: u64| count as f64 / ios.max(1) as f64;
        let mut histogram: Option<Histogram<u64>> = None;
        for outcome in outcomes {
            match &mut histogram {
                None => histogram = Some(outcome.latency.clone()),
                // All have the same bounds, so nothing can be out of range.
                Some(sum) => sum.add(&outcome.latency).unwrap_or(()),
            }
        }
        Self {
            args: args.clone(),
            indirect,
            seconds,
            ios,
            iops: ios as f64 / seconds,
            mib_per_second: ios as f64 * args.block_size as f64 / seconds / (1 << 20) as f64,
            latency_us: histogram.as_ref().map(Latency::of).unwrap_or_default(),
            kicks_per_io: per_io(total(|outcome| outcome.kicks)),
            calls_per_io: per_io(total(|outcome| outcome.calls)),
            server_pid,
            server_threads: cost.threads,
            server_cpu_us_per_io: per_io(cost.cpu_ns) / 1000.0,
            server_cpus: cost.cpu_ns as f64 / 1e9 / seconds,
            server_switches_per_io: per_io(cost.switches),
            client_cpu_us_per_io: per_io(total(|outcome| outcome.cpu_ns)) / 1000.0,
            errors: total(|outcome| outcome.errors),
            lost_calls: total(|outcome| outcome.lost_calls),
            verified: args.verify.then(|| Verified {
                checked: total(|outcome| outcome.checked),
                flaws: total(|outcome| outcome.flaws),
                shown: outcomes
                    .iter()
                    .flat_map(|o| &o.shown)
                    .map(ToString::to_string)
                    .collect(),
            }),
        }
    }

    /// What makes the run a failure, if anything does.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let wrong = self.verified.as_ref().map_or(0, |verified| verified.flaws);
        if self.ios == 0 {
            return Some("no request was completed in the time measured".into());
        }
        (self.errors + self.lost_calls + wrong > 0).then(|| {
            format!(
                "{} requests failed, {} calls were lost, {wrong} blocks were wrong",
                self.errors, self.lost_calls
            )
        })
    }

    /// One line of JSON.
    pub fn json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|error| Error::Bench(format!("JSON: {error}")))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let args = &self.args;
        let (mode, rw) = (name(&args.mode), name(&args.rw));
        let (block, depth, queues) = (args.block_size, args.depth, args.queues);
        let descriptors = if self.indirect { "indirect" } else { "direct" };
        writeln!(
            f,
            "{rw}, {block} B, depth {depth} x {queues} queue(s), {mode} completion, {descriptors} descriptors, {:.1} s",
            self.seconds
        )?;
        writeln!(
            f,
            "  {:.0} IOPS, {:.1} MiB/s, {} requests",
            self.iops, self.mib_per_second, self.ios
        )?;
        let Latency {
            mean,
            p50,
            p90,
            p99,
            p999,
            max,
        } = self.latency_us;
        writeln!(
            f,
            "  latency us: mean {mean:.1}, p50 {p50:.1}, p90 {p90:.1}, p99 {p99:.1}, p99.9 {p999:.1}, max {max:.1}"
        )?;
        writeln!(
            f,
            "  per request: {:.3} kicks, {:.3} calls",
            self.kicks_per_io, self.calls_per_io
        )?;
        writeln!(
            f,
            "  server (pid {}, {} threads): {:.2} us CPU per request, {:.2} CPUs, {:.3} context switches per request",
            self.server_pid,
            self.server_threads,
            self.server_cpu_us_per_io,
            self.server_cpus,
            self.server_switches_per_io
        )?;
        writeln!(
            f,
            "  client: {:.2} us CPU per request",
            self.client_cpu_us_per_io
        )?;
        if let Some(verified) = &self.verified {
            writeln!(
                f,
                "  verified: {} blocks checked, {} wrong",
                verified.checked, verified.flaws
            )?;
            for flaw in &verified.shown {
                writeln!(f, "    {flaw}")?;
            }
        }
        write!(
            f,
            "  {} errors, {} lost calls",
            self.errors, self.lost_calls
        )
    }
}

/// The name an option's value has on the command line.
fn name(value: &impl Serialize) -> String {
    serde_json::to_value(value)
        .ok()
        .and_then(|v| v.as_str().map(str::to_owned))
        .unwrap_or_default()
}
