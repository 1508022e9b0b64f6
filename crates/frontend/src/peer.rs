//! What a back end's process costs: CPU time and context switches of all its threads, from `/proc`.

use std::collections::HashMap;
use std::fs;

use crate::error::{Error, Result};

/// Costs of one thread since its start.
#[derive(Clone, Copy, Debug, Default)]
struct Thread {
    cpu_ns: u64,
    switches: u64,
}

/// A moment in a process's life.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    threads: HashMap<u32, Thread>,
}

/// Costs between two moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// CPU time of all threads in nanoseconds.
    pub cpu_ns: u64,
    /// Context switches of all threads, voluntary or not.
    pub switches: u64,
    /// Threads at the later moment.
    pub threads: usize,
}

impl Snapshot {
    /// Reads `/proc/PID/task/*/{schedstat,status}`.
    pub fn of(pid: i32) -> Result<Self> {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"))
            .map_err(Error::io("read of /proc/PID/task of the back end"))?;
        let threads = tasks
            .filter_map(|task| {
                let task = task.ok()?;
                let tid = task.file_name().to_str()?.parse().ok()?;
                // A thread that ends while it is looked at is left out.
                let schedstat = fs::read_to_string(task.path().join("schedstat")).ok()?;
                let status = fs::read_to_string(task.path().join("status")).ok()?;
                Some((
                    tid,
                    Thread {
                        cpu_ns: cpu_ns(&schedstat)?,
                        switches: switches(&status),
                    },
                ))
            })
            .collect();
        Ok(Self { threads })
    }

    /// What happened since `earlier`. Threads that began since then count in full; those that ended do not count.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Cost {
        let mut cost = Cost {
            threads: self.threads.len(),
            ..Cost::default()
        };
        for (tid, now) in &self.threads {
            let before = earlier.threads.get(tid).copied().unwrap_or_default();
            cost.cpu_ns += now.cpu_ns.saturating_sub(before.cpu_ns);
            cost.switches += now.switches.saturating_sub(before.switches);
        }
        cost
    }
}

/// First field of `schedstat`: nanoseconds on a CPU.
fn cpu_ns(schedstat: &str) -> Option<u64> {
    schedstat.split_whitespace().next()?.parse().ok()
}

/// Both lines of `status` that count context switches.
fn switches(status: &str) -> u64 {
    status
        .lines()
        .filter_map(|line| line.split_once("voluntary_ctxt_switches:"))
        .filter_map(|(_, count)| count.trim().parse::<u64>().ok())
        .sum()
}

/// CPU time of the calling thread in nanoseconds, 0 if the kernel does not tell.
#[must_use]
pub fn own_cpu_ns() -> u64 {
    fs::read_to_string("/proc/thread-self/schedstat")
        .ok()
        .as_deref()
        .and_then(cpu_ns)
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_of_another_thread_is_counted() {
        let before = Snapshot::of(std::process::id() as i32).unwrap();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let worker = std::thread::spawn(move || {
            let mut rounds = 0_u64;
            while own_cpu_ns() < 20_000_000 {
                rounds = std::hint::black_box(rounds + 1);
            }
            let cpu = own_cpu_ns();
            stopped.recv().ok();
            cpu
        });
        while Snapshot::of(std::process::id() as i32)
            .unwrap()
            .since(&before)
            .cpu_ns
            < 20_000_000
        {
            std::thread::yield_now();
        }
        drop(stop);
        assert!(worker.join().unwrap() >= 20_000_000);
    }

    #[test]
    fn both_kinds_of_switches_are_summed() {
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t30\n";
        assert_eq!(switches(status), 42);
        assert_eq!(cpu_ns("312293 1404443 2"), Some(312_293));
    }
}
