//! The command line. Options of a device are declared once, in [`crate::options`].

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, Parser, Subcommand};

use crate::daemon::DeviceSpec;
use crate::endpoint::EndpointSpec;
use crate::logging::LogArgs;
use crate::options::BlkSettings;

/// Serves virtio devices to virtual machines from outside the VMM, over vhost-user.
#[derive(Debug, Parser)]
#[command(name = "outboard", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve one virtio-blk disk
    Blk(Box<BlkArgs>),
    /// Serve the devices of a configuration file in one process
    Serve(ServeArgs),
    /// Measure a vhost-user-blk back end (any, not only this one), with no guest
    Bench(Box<outboard_frontend::bench::BenchArgs>),
}

/// `outboard blk`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("endpoint").required(true))]
pub struct BlkArgs {
    /// Listen on this unix socket; a stale one is replaced
    #[arg(long, value_name = "PATH", group = "endpoint")]
    pub socket_path: Option<PathBuf>,
    /// Serve on this inherited descriptor: a listening or a connected unix socket
    #[arg(long, value_name = "FDNUM", group = "endpoint")]
    pub fd: Option<i32>,
    /// Device name in logs [default: the socket's file name]
    #[arg(long)]
    pub name: Option<String>,
    /// Print the vhost-user capabilities as JSON and exit; other options are ignored
    #[arg(long)]
    pub print_capabilities: bool,
    /// What the disk is and how the guest sees it.
    #[command(flatten)]
    pub settings: BlkSettings,
    /// Worker threads [default: one per usable CPU, no more than queues]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,
    /// Logging.
    #[command(flatten)]
    pub log: LogArgs,
}

impl BlkArgs {
    /// The one device that the command line describes.
    pub fn device(&self) -> anyhow::Result<DeviceSpec> {
        let (endpoint, default_name) = match (&self.socket_path, self.fd) {
            (Some(path), None) => (EndpointSpec::Path(path.clone()), file_name(path)),
            (None, Some(fd)) => (EndpointSpec::Fd(fd), format!("fd{fd}")),
            // clap has refused both and neither.
            _ => anyhow::bail!("give either --socket-path or --fd"),
        };
        Ok(DeviceSpec {
            name: self.name.clone().unwrap_or(default_name),
            endpoint,
            blk: self.settings.clone().into_spec()?,
        })
    }
}

/// `outboard serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// TOML file: one `[[device]]` table per device
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Read the file, report what is wrong in it, and exit; no disk and no socket is opened
    #[arg(long)]
    pub check: bool,
    /// Logging.
    #[command(flatten)]
    pub log: LogArgs,
}

/// The arguments, with the name `outboard-blk` meaning `outboard blk`.
pub fn arguments(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.collect();
    if args
        .first()
        .is_some_and(|name| file_name(Path::new(name)) == "outboard-blk")
    {
        args.insert(1, "blk".into());
    }
    args
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// The first paragraph of clap's report, without its layout.
pub fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let words: Vec<&str> = text
        .lines()
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .flat_map(str::split_whitespace)
        .collect();
    let line = words.join(" ");
    format!(
        "{} (see --help)",
        line.strip_prefix("error: ").unwrap_or(&line)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(arguments(line.split(' ').map(OsString::from)))
    }

    fn blk(line: &str) -> DeviceSpec {
        match parse(line).unwrap().command {
            Command::Blk(args) => args.device().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_name_outboard_blk_takes_the_same_options() {
        let long = blk("outboard blk --socket-path /s --blk-file /d --read-only");
        let short = blk("/usr/bin/outboard-blk --socket-path /s --blk-file /d --read-only");
        assert_eq!(long, short);
        assert!(short.blk.open.read_only);
        assert_eq!(short.name, "s");
    }

    #[test]
    fn a_blk_file_may_hold_a_colon() {
        // A path is never taken apart as a URI.
        assert_eq!(
            blk("outboard blk --fd 3 --blk-file ram:x").blk.disk,
            "file:ram:x"
        );
    }

    #[test]
    fn contradictions_are_refused_in_one_line() {
        for line in [
            "outboard blk --socket-path /s --fd 3 --blk-file /d",
            "outboard blk --socket-path /s --blk-file /d --disk ram:1M",
            "outboard blk --blk-file /d",
            "outboard blk --socket-path /s",
            "outboard blk --socket-path /s --blk-file /d --num-queues 0",
            "outboard blk --socket-path /s --blk-file /d --queue-size 100",
            "outboard blk --socket-path /s --blk-file /d --block-size 1000",
            "outboard blk --socket-path /s --blk-file /d --serial aaaaaaaaaaaaaaaaaaaaa",
            "outboard blk --socket-path /s --blk-file /d --cache write-back",
        ] {
            let error = parse(line).expect_err(line);
            let text = one_line(&error);
            assert!(
                !text.contains('\n') && !text.starts_with("error:"),
                "{text:?}"
            );
        }
    }
    #[test]
    fn what_is_missing_is_named_with_all_ways_to_give_it() {
        for (line, ways) in [
            ("outboard blk --blk-file /d", ["--socket-path", "--fd"]),
            ("outboard blk --socket-path /s", ["--blk-file", "--disk"]),
        ] {
            let text = one_line(&parse(line).expect_err(line));
            assert!(ways.iter().all(|way| text.contains(way)), "{text:?}");
        }
    }
}
