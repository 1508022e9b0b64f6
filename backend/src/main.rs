//! The daemon: the only place where devices meet sessions.
//!
//! `main` decides which command runs and turns every failure into one line on stderr and a
//! status other than 0: 2 for a command line that makes no sense, 1 for everything else.

mod capabilities;
mod cli;
mod config;
mod daemon;
mod endpoint;
mod logging;
mod options;

use std::io::{Write, stderr};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use cli::{Cli, Command};

const USAGE: u8 = 2;

fn main() -> ExitCode {
    let args = cli::arguments(std::env::args_os());
    // The conventions want this answered whatever else is on the command line.
    if args.iter().any(|arg| arg == "--print-capabilities") {
        return report(capabilities::print());
    }
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    report(run(cli))
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Blk(args) => {
            logging::start(&args.log)?;
            daemon::run(vec![args.device()?], args.workers)
        }
        Command::Serve(args) => {
            let config = config::read(&args.config)?;
            if args.check {
                return Ok(());
            }
            logging::start(&args.log)?;
            daemon::run(config.devices, config.workers)
        }
        Command::Bench(args) => Ok(outboard_frontend::bench::run(&args)?),
    }
}

fn report(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Help and version go out as clap lays them out; an error becomes one line.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        let wanted = error.exit_code() == 0;
        let printed = error.print();
        return match (wanted, printed) {
            (true, Ok(())) => ExitCode::SUCCESS,
            _ => ExitCode::from(USAGE),
        };
    }
    complain(&cli::one_line(error));
    ExitCode::from(USAGE)
}

/// One line on stderr, whatever names are in it. If stderr is gone too, the status has to say it.
fn complain(error: &str) {
    let mut line = String::with_capacity(error.len());
    for c in error.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    let _ = writeln!(stderr(), "outboard: {line}");
}
