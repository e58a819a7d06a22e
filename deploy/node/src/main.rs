//! `caisson`, the operator's command. One file a subcommand.

mod list;
mod skill;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Looks after a node that runs containers in VMs of their own.
///
/// Reads /etc/caisson/config.toml, or the file that CAISSON_CONFIG names.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists the pods of this node that run in VMs
    List,
    /// Packs, adds and lists skills: tool folders that pods plug in as read-only disks
    #[command(subcommand)]
    Skill(skill::Command),
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("caisson: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let config = caisson_shim::config::load()?;
    match command {
        Command::List => list::run(&config)?,
        Command::Skill(command) => skill::run(command, &config)?,
    }
    Ok(ExitCode::SUCCESS)
}
