//! What a bench run is asked for. With the feature `cli` these are the options of `outboard bench`.

use std::path::PathBuf;

/// Kind and order of the I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "cli", value(rename_all = "lower"))]
pub enum Pattern {
    /// Reads at random places.
    RandRead,
    /// Writes at random places.
    RandWrite,
    /// Reads and writes at random places.
    RandRw,
    /// Reads, one block after the other.
    Read,
    /// Writes, one block after the other.
    Write,
    /// Reads and writes, one block after the other.
    Rw,
}

impl Pattern {
    /// Places are drawn at random.
    #[must_use]
    pub fn is_random(self) -> bool {
        matches!(self, Self::RandRead | Self::RandWrite | Self::RandRw)
    }

    /// The share of reads in percent, where `mixed` is that of the mixed patterns.
    #[must_use]
    pub fn read_percent(self, mixed: u8) -> u8 {
        match self {
            Self::RandRead | Self::Read => 100,
            Self::RandWrite | Self::Write => 0,
            Self::RandRw | Self::Rw => mixed,
        }
    }
}

/// How the client learns of completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Sleeps on the call eventfd, like a guest with interrupts.
    Event,
    /// Spins on the used index, like a guest that polls.
    Polled,
}

/// Drives a vhost-user-blk back end and measures it: no guest, one thread per queue.
#[derive(Clone, Debug, serde::Serialize)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct BenchArgs {
    /// Socket of the back end (any vhost-user-blk back end)
    #[cfg_attr(feature = "cli", arg(long, value_name = "PATH"))]
    pub socket_path: PathBuf,
    /// Kind and order of the I/O
    #[cfg_attr(feature = "cli", arg(long, value_enum, default_value = "randread"))]
    pub rw: Pattern,
    /// Reads in percent, for randrw and rw
    #[cfg_attr(feature = "cli", arg(long, value_name = "PERCENT", default_value = "70",
        value_parser = clap::value_parser!(u8).range(0..=100)))]
    pub read_percent: u8,
    /// Requests in flight per queue
    #[cfg_attr(feature = "cli", arg(long, value_name = "N", default_value = "32",
        value_parser = clap::value_parser!(u16).range(1..=4096)))]
    pub depth: u16,
    /// Queues, one thread each
    #[cfg_attr(feature = "cli", arg(long, value_name = "N", default_value = "1",
        value_parser = clap::value_parser!(u16).range(1..=256)))]
    pub queues: u16,
    /// CPUs to pin the threads to, in order of queues
    #[cfg_attr(feature = "cli", arg(long, value_name = "CPU", value_delimiter = ','))]
    pub cpu: Vec<usize>,
    /// Bytes of a request (suffixes k, M, G)
    #[cfg_attr(feature = "cli", arg(long, value_name = "SIZE", default_value = "4k", value_parser = parse_size))]
    pub block_size: u64,
    /// Bytes of the disk to use, from its start [default: all; with --verify up to 256M]
    #[cfg_attr(feature = "cli", arg(long, value_name = "SIZE", value_parser = parse_size))]
    pub span: Option<u64>,
    /// Seconds to measure
    #[cfg_attr(
        feature = "cli",
        arg(long, value_name = "S", default_value = "5", conflicts_with = "ios")
    )]
    pub seconds: f64,
    /// Requests to measure, instead of seconds
    #[cfg_attr(feature = "cli", arg(long, value_name = "N"))]
    pub ios: Option<u64>,
    /// Seconds before the measurement that do not count
    #[cfg_attr(feature = "cli", arg(long, value_name = "S", default_value = "0.5"))]
    pub warmup: f64,
    /// How completions are learned of
    #[cfg_attr(feature = "cli", arg(long, value_enum, default_value = "event"))]
    pub mode: Mode,
    /// Use direct descriptors even if indirect ones are negotiated (Linux guests use indirect ones)
    #[cfg_attr(feature = "cli", arg(long))]
    pub direct: bool,
    /// Write stamped blocks first, check every read, and read everything back at the end: destroys what is on the disk
    #[cfg_attr(feature = "cli", arg(long))]
    pub verify: bool,
    /// Process to charge CPU time to [default: the one that listens on the socket]
    #[cfg_attr(feature = "cli", arg(long, value_name = "PID"))]
    pub server_pid: Option<i32>,
    /// Seed of the random places
    #[cfg_attr(feature = "cli", arg(long, default_value = "1"))]
    pub seed: u64,
    /// Print one JSON object instead of a table
    #[cfg_attr(feature = "cli", arg(long))]
    pub json: bool,
}

impl BenchArgs {
    /// The defaults of the command line.
    pub fn new(socket_path: impl Into<PathBuf>) -> Self {
        Self {
            socket_path: socket_path.into(),
            rw: Pattern::RandRead,
            read_percent: 70,
            depth: 32,
            queues: 1,
            cpu: vec![],
            block_size: 4096,
            span: None,
            seconds: 5.0,
            ios: None,
            warmup: 0.5,
            mode: Mode::Event,
            direct: false,
            verify: false,
            server_pid: None,
            seed: 1,
            json: false,
        }
    }
}

/// Reads `4096`, `4k`, `1M`, `2G`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, suffix) = text.split_at(split);
    let unit = match suffix {
        "" => Some(1),
        "k" | "K" => Some(1_u64 << 10),
        "m" | "M" => Some(1 << 20),
        "g" | "G" => Some(1 << 30),
        "t" | "T" => Some(1 << 40),
        _ => None,
    };
    unit.zip(digits.parse::<u64>().ok())
        .and_then(|(unit, count)| unit.checked_mul(count))
        .ok_or_else(|| format!("{text:?} is not a size: write a number of bytes, or 4k, 16M, 1G"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_or_refused() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("4k"), Ok(4096));
        assert_eq!(parse_size("3G"), Ok(3 << 30));
        for bad in ["", "k", "4kB", "-1", "1.5G", "99999999999T"] {
            assert!(parse_size(bad).unwrap_err().contains("not a size"), "{bad}");
        }
    }
}
