//! The settings of a blk device: the same names on the command line and in the configuration file.

use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueEnum};
use outboard_storage::uri::{CacheMode, OpenOptions};
use serde::Deserialize;

/// Every key below, as a user writes it: for the nearest-name hint.
pub const KEYS: [&str; 8] = [
    "blk-file",
    "block-size",
    "cache",
    "disk",
    "num-queues",
    "queue-size",
    "read-only",
    "serial",
];

/// What the disk is and how the guest sees it.
#[derive(Debug, Clone, Args, Deserialize)]
#[command(group = ArgGroup::new("image").required(true))]
#[serde(rename_all = "kebab-case")]
pub struct BlkSettings {
    /// Raw image file or block device
    #[arg(long, value_name = "PATH", group = "image")]
    pub blk_file: Option<PathBuf>,
    /// Any disk: file:PATH, ram:SIZE, null:SIZE, delay:MIN-MAX:URI (sizes like 1G, times like 5ms)
    #[arg(long, value_name = "URI", group = "image")]
    pub disk: Option<String>,
    /// The guest may only read
    #[arg(long)]
    #[serde(default)]
    pub read_only: bool,
    /// Queues offered; the front end takes as many as it wants
    #[arg(long, value_name = "N", default_value = "16", value_parser = num_queues)]
    #[serde(default = "default_num_queues", deserialize_with = "de::num_queues")]
    pub num_queues: u16,
    /// Largest ring accepted, in descriptors (a power of two)
    #[arg(long, value_name = "N", default_value = "1024", value_parser = queue_size)]
    #[serde(default = "default_queue_size", deserialize_with = "de::queue_size")]
    pub queue_size: u16,
    /// Serial number, at most 20 bytes
    #[arg(long, default_value = "", value_parser = serial)]
    #[serde(default, deserialize_with = "de::serial")]
    pub serial: String,
    /// Logical block size in bytes [default: the disk's own]
    #[arg(long, value_name = "BYTES", value_parser = block_size)]
    #[serde(default, deserialize_with = "de::block_size")]
    pub block_size: Option<u32>,
    /// Cache mode, as QEMU means it
    #[arg(long, value_enum, default_value = "writeback")]
    #[serde(default)]
    pub cache: Cache,
}

/// The five modes and what they ask of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// host page cache; durable when the guest flushes
    #[default]
    Writeback,
    /// O_DIRECT; durable when the guest flushes
    None,
    /// host page cache; every write is durable when it completes
    Writethrough,
    /// O_DIRECT; every write is durable when it completes
    Directsync,
    /// host page cache; flushes are ignored: a host crash loses data
    Unsafe,
}

/// A blk device, checked as far as possible without opening anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlkSpec {
    /// The disk's URI.
    pub disk: String,
    /// How the disk is opened.
    pub open: OpenOptions,
    /// Queues offered.
    pub num_queues: u16,
    /// Largest ring accepted.
    pub queue_size: u16,
    /// At most 20 bytes.
    pub serial: String,
    /// The device starts with a write-back cache.
    pub writeback: bool,
}

impl BlkSettings {
    /// Names the disk by URI and says what the cache mode asks of storage and of the device.
    pub fn into_spec(self) -> anyhow::Result<BlkSpec> {
        let disk = match (self.blk_file, self.disk) {
            (Some(path), None) => match path.into_os_string().into_string() {
                Ok(path) => format!("file:{path}"),
                Err(path) => {
                    anyhow::bail!("the image path {path:?} is not UTF-8: rename the image")
                }
            },
            (None, Some(uri)) => uri,
            (Some(_), Some(_)) => anyhow::bail!("give either blk-file or disk, not both"),
            (None, None) => anyhow::bail!("no disk: give blk-file or disk"),
        };
        let (cache, writeback) = match self.cache {
            Cache::Writeback => (CacheMode::Writeback, true),
            Cache::None => (CacheMode::None, true),
            Cache::Writethrough => (CacheMode::Writethrough, false),
            Cache::Directsync => (CacheMode::Directsync, false),
            Cache::Unsafe => (CacheMode::Unsafe, true),
        };
        Ok(BlkSpec {
            disk,
            open: OpenOptions {
                read_only: self.read_only,
                cache,
                block_size: self.block_size,
                ..OpenOptions::default()
            },
            num_queues: self.num_queues,
            queue_size: self.queue_size,
            serial: self.serial,
            writeback,
        })
    }
}

const fn default_num_queues() -> u16 {
    16
}

const fn default_queue_size() -> u16 {
    1024
}

fn num_queues(text: &str) -> Result<u16, String> {
    check_num_queues(integer(text)?)
}

fn queue_size(text: &str) -> Result<u16, String> {
    check_queue_size(integer(text)?)
}

fn block_size(text: &str) -> Result<u32, String> {
    check_block_size(integer(text)?)
}

fn serial(text: &str) -> Result<String, String> {
    check_serial(text.to_owned())
}

fn integer(text: &str) -> Result<u32, String> {
    text.parse()
        .map_err(|_| "a whole number is wanted".to_owned())
}

fn check_num_queues(n: u32) -> Result<u16, String> {
    match u16::try_from(n) {
        Ok(n @ 1..=256) => Ok(n),
        _ => Err("1 to 256 queues".to_owned()),
    }
}

fn check_queue_size(n: u32) -> Result<u16, String> {
    match u16::try_from(n) {
        Ok(n @ 2..=32768) if n.is_power_of_two() => Ok(n),
        _ => Err("a power of two from 2 to 32768".to_owned()),
    }
}

fn check_block_size(n: u32) -> Result<u32, String> {
    if n.is_power_of_two() && (512..=65536).contains(&n) {
        Ok(n)
    } else {
        Err("a power of two from 512 to 65536 bytes".to_owned())
    }
}

fn check_serial(text: String) -> Result<String, String> {
    if text.len() <= 20 {
        Ok(text)
    } else {
        Err("a serial number has at most 20 bytes".to_owned())
    }
}

/// The same checks for the configuration file.
mod de {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer};

    pub fn num_queues<'de, D: Deserializer<'de>>(from: D) -> Result<u16, D::Error> {
        super::check_num_queues(u32::deserialize(from)?)
            .map_err(|why| D::Error::custom(format!("num-queues: {why}")))
    }

    pub fn queue_size<'de, D: Deserializer<'de>>(from: D) -> Result<u16, D::Error> {
        super::check_queue_size(u32::deserialize(from)?)
            .map_err(|why| D::Error::custom(format!("queue-size: {why}")))
    }

    pub fn block_size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
        super::check_block_size(u32::deserialize(from)?)
            .map(Some)
            .map_err(|why| D::Error::custom(format!("block-size: {why}")))
    }

    pub fn serial<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
        super::check_serial(String::deserialize(from)?)
            .map_err(|why| D::Error::custom(format!("serial: {why}")))
    }
}
