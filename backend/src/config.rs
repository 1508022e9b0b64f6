//! The configuration file of `outboard serve`: TOML, one `[[device]]` table per device.
//!
//! ```toml
//! workers = 2
//!
//! [[device]]
//! name = "vm1-root"
//! type = "blk"
//! socket = "/run/outboard/vm1-root.sock"
//! disk = "file:/srv/vm1.img"
//! cache = "none"
//! ```

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Deserialize;
use toml::de::{DeTable, DeValue};

use crate::daemon::DeviceSpec;
use crate::endpoint::EndpointSpec;
use crate::options::{self, BlkSettings};

const TOP_KEYS: [&str; 2] = ["device", "workers"];
const DEVICE_KEYS: [&str; 3] = ["name", "socket", "type"];

/// What a checked file asks for.
#[derive(Debug)]
pub struct Config {
    /// In the file's order; at least one.
    pub devices: Vec<DeviceSpec>,
    /// Threads of the shared worker pool; `None`: one per usable CPU.
    pub workers: Option<u16>,
}

#[derive(Deserialize)]
struct File {
    workers: Option<u16>,
    device: Vec<Device>,
}

#[derive(Deserialize)]
struct Device {
    name: String,
    #[serde(rename = "type")]
    kind: Kind,
    socket: PathBuf,
    #[serde(flatten)]
    blk: BlkSettings,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Blk,
}

/// Reads and checks the file. Every error is one line that names the file and, where one is at fault, its line.
pub fn read(path: &Path) -> anyhow::Result<Config> {
    let file = path.display();
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read the configuration {file}"))?;
    parse(&text).with_context(|| format!("configuration {file}"))
}

fn parse(text: &str) -> anyhow::Result<Config> {
    check_keys(text)?;
    let file: File =
        toml::from_str(text).map_err(|error| located(text, error.span(), error.message()))?;
    if file.workers.is_some_and(|n| !(1..=256).contains(&n)) {
        bail!("workers: 1 to 256 threads");
    }
    if file.device.is_empty() {
        bail!("no [[device]]: there is nothing to serve");
    }
    let mut devices: Vec<DeviceSpec> = Vec::with_capacity(file.device.len());
    for Device {
        name,
        kind: Kind::Blk,
        socket,
        blk,
    } in file.device
    {
        let endpoint = EndpointSpec::Path(socket);
        if name.is_empty() || name.contains(char::is_control) {
            bail!("the device name {name:?} is empty or not printable");
        }
        if devices.iter().any(|other| other.name == name) {
            bail!("two devices are named {name:?}: names must differ");
        }
        if let Some(other) = devices.iter().find(|other| other.endpoint == endpoint) {
            bail!("devices {:?} and {name:?} have the same socket", other.name);
        }
        let blk = blk
            .into_spec()
            .with_context(|| format!("device {name:?}"))?;
        devices.push(DeviceSpec {
            name,
            endpoint,
            blk,
        });
    }
    Ok(Config {
        devices,
        workers: file.workers,
    })
}

/// Refuses unknown keys by name, with the nearest known one, before anything else is looked at.
fn check_keys(text: &str) -> anyhow::Result<()> {
    let root =
        DeTable::parse(text).map_err(|error| located(text, error.span(), error.message()))?;
    let root = root.get_ref();
    check_table(text, root, &TOP_KEYS)?;
    let known: Vec<&str> = DEVICE_KEYS.iter().chain(&options::KEYS).copied().collect();
    let Some(devices) = root.get("device") else {
        return Ok(());
    };
    let DeValue::Array(devices) = devices.get_ref() else {
        bail!("device is a list of tables: write [[device]]");
    };
    for device in devices.iter() {
        if let DeValue::Table(device) = device.get_ref() {
            check_table(text, device, &known)?;
        }
    }
    Ok(())
}

fn check_table(text: &str, table: &DeTable<'_>, known: &[&str]) -> anyhow::Result<()> {
    for key in table.keys() {
        let name: &str = key.get_ref();
        if known.contains(&name) {
            continue;
        }
        let nearest = known
            .iter()
            .map(|k| (strsim::jaro_winkler(k, name), *k))
            .max_by(|a, b| a.0.total_cmp(&b.0));
        let hint = match nearest {
            Some((likeness, nearest)) if likeness > 0.7 => format!("did you mean {nearest:?}?"),
            _ => format!("known keys: {}", known.join(", ")),
        };
        return Err(located(
            text,
            Some(key.span()),
            &format!("unknown key {name:?}; {hint}"),
        ));
    }
    Ok(())
}

fn located(text: &str, span: Option<Range<usize>>, message: &str) -> anyhow::Error {
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    match span.and_then(|span| text.get(..span.start)) {
        Some(before) => anyhow::anyhow!("line {}: {message}", before.matches('\n').count() + 1),
        None => anyhow::anyhow!(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: &str =
        "[[device]]\nname = \"a\"\ntype = \"blk\"\nsocket = \"/a\"\ndisk = \"ram:1M\"\n";

    fn refusal(text: &str) -> String {
        let line = format!("{:#}", parse(text).expect_err(text));
        assert!(!line.contains('\n'), "{line:?}");
        line
    }

    #[test]
    fn options_are_keys_of_a_device() {
        let text = format!(
            "workers = 3\n{DISK}read-only = true\nnum-queues = 4\nserial = \"s\"\ncache = \"none\"\nblock-size = 4096\n"
        );
        let config = parse(&text).unwrap();
        assert_eq!(config.workers, Some(3));
        let blk = &config.devices[0].blk;
        assert_eq!(
            (blk.num_queues, blk.open.block_size, blk.serial.as_str()),
            (4, Some(4096), "s")
        );
        assert!(blk.open.read_only && blk.writeback);
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_the_nearest_name() {
        assert_eq!(
            refusal(&format!("{DISK}readonly = true\n")),
            "line 6: unknown key \"readonly\"; did you mean \"read-only\"?"
        );
        assert!(refusal(&format!("worker = 1\n{DISK}")).contains("did you mean \"workers\"?"));
        assert!(refusal(&format!("{DISK}zzz = 1\n")).contains("known keys: name, socket"));
    }

    #[test]
    fn values_out_of_bounds_are_refused_as_on_the_command_line() {
        for wrong in [
            "num-queues = 0",
            "queue-size = 100",
            "block-size = 1000",
            "cache = \"on\"",
            "serial = 3",
            "blk-file = \"/x\"",
        ] {
            refusal(&format!("{DISK}{wrong}\n"));
        }
        refusal(&format!("workers = 0\n{DISK}"));
    }

    #[test]
    fn names_and_sockets_are_unique() {
        assert!(refusal(&format!("{DISK}{DISK}")).contains("two devices"));
        for name in ["", r"a\u0000", r"a\n"] {
            let bad = DISK.replace("name = \"a\"", &format!("name = \"{name}\""));
            assert!(refusal(&bad).contains("name"), "{name}");
        }
        let twin = DISK.replace("name = \"a\"", "name = \"b\"");
        assert!(refusal(&format!("{DISK}{twin}")).contains("same socket"));
        assert!(refusal("").contains("device"));
        refusal("device = []");
        refusal("[device]\nname = \"a\"");
    }
}
