//! `caisson node`: makes this machine one whose pods can have VMs of their own.

mod serve;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

#[derive(Subcommand)]
pub enum Command {
    #[command(flatten)]
    Cluster(serve::Command),
}

/// Does what `command` says.
pub fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Cluster(command) => serve::run(command),
    }
}
