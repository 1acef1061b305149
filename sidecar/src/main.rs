//! The sidecar's command line.

#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser as _;
use sidewinder_linux::signals;
use sidewinder_sidecar::args::{Cli, Command};
use sidewinder_sidecar::{agent, hand, relay};

fn main() -> ExitCode {
    sidewinder_linux::hardening::map_large_memory();
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("sidewinder-sidecar: {error:#}");
            ExitCode::from(6)
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Agent { idle_seconds } => {
            agent::run(Path::new(agent::SOCKET), Duration::from_secs(idle_seconds))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Relay => {
            relay::run(Path::new(agent::SOCKET))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Hold => {
            // The first process of a container is ended only by signals that it waits for.
            let signals = signals::block().context("failed to block the signals that end it")?;
            let _ = signals.wait();
            Ok(ExitCode::SUCCESS)
        }
        Command::Carrier { args } => Ok(sidewinder_linux::carrier::carrier_main(&args)),
        command => {
            sidewinder_linux::hardening::be_first_to_go();
            sidewinder_linux::hardening::allow_descriptors();
            hand::run(command)
        }
    }
}
