//! The daemon beside qemu-storage-daemon: the same client, the same work, rounds interleaved A B A B.
//!
//! `make bench` runs it and prints a Markdown table of medians. The server is pinned to one CPU, the client to another. Only the
//! ratios mean something from one machine to the next, and a ratio only if both sides come from one run.
//!
//! Environment: `ROUNDS` (3), `SECONDS_PER_RUN` (2), `OUTBOARD_BIN` (target/release/outboard), `BENCH_DIR` (where the images lie).

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use outboard_frontend::bench::{BenchArgs, Mode, Pattern, Report, measure};
use outboard_tests::process::Process;
use rustix::thread::{CpuSet, sched_setaffinity};

const SERVER_CPU: usize = 0;
const CLIENT_CPU: usize = 1;
/// Small enough to stay in the page cache, large enough to leave the CPU's.
const SPAN: u64 = 128 << 20;

#[derive(Clone, Copy, PartialEq)]
enum Disk {
    Null,
    Warm,
    Direct,
}

struct Case {
    disk: Disk,
    rw: Pattern,
    mode: Mode,
    depth: u16,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (disk, rw) in [
        (Disk::Null, Pattern::RandRead),
        (Disk::Warm, Pattern::RandRead),
        (Disk::Warm, Pattern::RandWrite),
        (Disk::Direct, Pattern::RandRead),
    ] {
        for mode in [Mode::Event, Mode::Polled] {
            for depth in [1, 32, 128] {
                cases.push(Case {
                    disk,
                    rw,
                    mode,
                    depth,
                });
            }
        }
    }
    cases
}

fn main() {
    // `cargo test --benches` and `cargo bench` pass flags of the standard harness: there is one thing to do.
    let rounds = number("ROUNDS", 3.0) as usize;
    let seconds = number("SECONDS_PER_RUN", 2.0);
    let dir = match std::env::var_os("BENCH_DIR") {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir(),
    }
    .expect("a directory for the images");
    let image = dir.path().join("disk.raw");
    fill(&image);

    println!(
        "| disk | I/O | client | depth | outboard kIOPS | p50 / p99 µs | server CPU µs/IO | kicks, calls, switches per IO | qemu-storage-daemon kIOPS | p50 / p99 µs | server CPU µs/IO | kicks, calls, switches per IO | IOPS ratio | CPU ratio |"
    );
    println!("|-|-|-|-|-|-|-|-|-|-|-|-|-|-|");
    for case in cases() {
        let mut ours = Vec::new();
        let mut theirs = Vec::new();
        for _ in 0..rounds {
            ours.push(run(&case, &outboard(&case, dir.path(), &image), seconds));
            theirs.push(run(&case, &qsd(&case, dir.path(), &image), seconds));
        }
        row(&case, &ours, &theirs);
    }
}

fn number(name: &str, default: f64) -> f64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text}: a number is wanted")),
        Err(_) => default,
    }
}

/// Real blocks and a warm cache: a hole is answered without reading.
fn fill(image: &Path) {
    let mut file = std::fs::File::create(image).expect("the image");
    let block: Vec<u8> = (0..1 << 20).map(|i| ((i * 31) >> 3) as u8).collect();
    for _ in 0..SPAN >> 20 {
        file.write_all(&block).expect("the image");
    }
    file.sync_all().expect("the image");
}

struct Server {
    _process: Process,
    socket: PathBuf,
}

fn start(mut command: Command, socket: PathBuf) -> Server {
    let mut cpus = CpuSet::new();
    cpus.set(SERVER_CPU);
    // SAFETY: sched_setaffinity is a plain system call, allowed between fork and exec.
    unsafe { command.pre_exec(move || Ok(sched_setaffinity(None, &cpus)?)) };
    let mut process = Process::spawn(command);
    process.wait_listening(&socket);
    Server {
        _process: process,
        socket,
    }
}

fn outboard(case: &Case, dir: &Path, image: &Path) -> Server {
    let socket = dir.join("outboard.sock");
    let binary =
        std::env::var_os("OUTBOARD_BIN").unwrap_or_else(|| "target/release/outboard".into());
    let mut command = Command::new(binary);
    command
        .arg("blk")
        .arg("--socket-path")
        .arg(&socket)
        .args(["--num-queues", "1"]);
    match case.disk {
        Disk::Null => command.args(["--disk", "null:1G"]),
        Disk::Warm => command.arg("--blk-file").arg(image),
        Disk::Direct => command
            .arg("--blk-file")
            .arg(image)
            .args(["--cache", "none"]),
    };
    start(command, socket)
}

fn qsd(case: &Case, dir: &Path, image: &Path) -> Server {
    let socket = dir.join("qsd.sock");
    let file = format!(
        "driver=raw,node-name=n,file.driver=file,file.aio=io_uring,file.filename={}",
        image.display()
    );
    let node = match case.disk {
        Disk::Null => "driver=null-co,node-name=n,size=1073741824".to_owned(),
        Disk::Warm => file,
        Disk::Direct => format!("{file},cache.direct=on,file.cache.direct=on"),
    };
    let mut command = Command::new("qemu-storage-daemon");
    command.args(["--blockdev", &node]);
    command.arg("--export").arg(format!(
        "type=vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={},writable=on,num-queues=1",
        socket.display()
    ));
    start(command, socket)
}

fn run(case: &Case, server: &Server, seconds: f64) -> Report {
    let args = BenchArgs {
        rw: case.rw,
        mode: case.mode,
        depth: case.depth,
        span: Some(SPAN),
        cpu: vec![CLIENT_CPU],
        seconds,
        ..BenchArgs::new(&server.socket)
    };
    let report = measure(&args).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(
        (report.errors, report.lost_calls),
        (0, 0),
        "errors or lost calls"
    );
    report
}

fn median(reports: &[Report], value: impl Fn(&Report) -> f64) -> f64 {
    let mut values: Vec<f64> = reports.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn row(case: &Case, ours: &[Report], theirs: &[Report]) {
    let disk = match case.disk {
        Disk::Null => "null",
        Disk::Warm => "file, warm",
        Disk::Direct => "file, O_DIRECT",
    };
    let rw = if case.rw == Pattern::RandRead {
        "read"
    } else {
        "write"
    };
    let mode = if case.mode == Mode::Event {
        "event"
    } else {
        "polled"
    };
    print!("| {disk} | {rw} | {mode} | {} |", case.depth);
    for side in [ours, theirs] {
        print!(
            " {:.1} | {:.0} / {:.0} | {:.2} | {:.2}, {:.2}, {:.2} |",
            median(side, |r| r.iops) / 1000.0,
            median(side, |r| r.latency_us.p50),
            median(side, |r| r.latency_us.p99),
            median(side, |r| r.server_cpu_us_per_io),
            median(side, |r| r.kicks_per_io),
            median(side, |r| r.calls_per_io),
            median(side, |r| r.server_switches_per_io),
        );
    }
    let ratio = |value: fn(&Report) -> f64| median(ours, value) / median(theirs, value);
    println!(
        " **{:.2}** | {:.2} |",
        ratio(|r| r.iops),
        ratio(|r| r.server_cpu_us_per_io)
    );
}
