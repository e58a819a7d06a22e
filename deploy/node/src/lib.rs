//! Implements `caisson`, the operator's command, with one module for each subcommand.
//!
//! It is a library too, so that tests can drive a shim through [`shim`] as `caisson run` does.

mod ask;
mod check;
mod claim;
mod egress;
mod gc;
mod home;
mod list;
mod metrics;
mod node;
mod remote;
mod run;
pub mod shim;
mod skill;
mod template;
mod trace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use nix::sys::signal::{signal, SigHandler, Signal};

/// Looks after a node that runs containers in VMs of their own.
///
/// Reads /etc/caisson/config.toml, or the file that CAISSON_CONFIG names.
#[derive(Parser)]
#[command(name = "caisson", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a command of an image in a VM of its own, without containerd
    Run(run::Arguments),
    /// Lists the pods of this node that run in VMs
    List {
        /// Prints an array in JSON
        #[arg(long)]
        json: bool,
    },
    /// Gives a running pod skills, a home, variables and secrets, once
    Claim(claim::Arguments),
    /// Prints the metrics of this node's pods, VMs and stores in Prometheus' text format
    Metrics,
    /// Prints what the start of a running pod was spent on
    Trace {
        /// Its NAMESPACE/NAME or its id
        pod: String,
    },
    /// Prints what a running pod may open connections to, and how many frames were dropped
    Egress {
        /// Its NAMESPACE/NAME or its id
        pod: String,
    },
    /// Packs, adds and lists skills: tool folders that pods plug in as read-only disks
    #[command(subcommand)]
    Skill(skill::Command),
    /// Lists, archives and removes the persistent homes of this node
    #[command(subcommand)]
    Home(home::Command),
    /// Makes, lists and removes the templates from which this node's VMs start instead of booting
    #[command(subcommand)]
    Template(template::Action),
    /// Shows what this node has for running VMs, and what to do where it falls short
    Check(check::Arguments),
    /// Puts Caisson on a node and takes it off again
    #[command(subcommand)]
    Node(node::Command),
    /// Removes what dead shims and killed runs left
    Gc,
}

impl Command {
    /// Whether it changes nothing, so that it can end at any moment.
    fn only_shows(&self) -> bool {
        match self {
            Self::List { .. }
            | Self::Metrics
            | Self::Trace { .. }
            | Self::Egress { .. }
            | Self::Check(_) => true,
            Self::Skill(command) => matches!(command, skill::Command::List),
            Self::Home(command) => matches!(command, home::Command::List),
            Self::Template(action) => matches!(action, template::Action::List),
            Self::Node(command) => matches!(command, node::Command::Status(_)),
            Self::Run(_) | Self::Claim(_) | Self::Gc => false,
        }
    }
}

/// Parses the arguments and runs the subcommand that they name.
pub fn main() -> ExitCode {
    let command = Arguments::parse().command;
    if command.only_shows() {
        end_with_the_reader();
    }
    match run(command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("caisson: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// From now on, the process ends where nobody reads its output any more, as in `caisson list |
/// head` (signal(7), SIGPIPE). Rust's own start ignores that signal.
fn end_with_the_reader() {
    // SAFETY: no handler is installed.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
}

fn run(command: Command) -> Result<ExitCode> {
    if let Command::Node(command) = &command {
        node::run(command)?;
        return Ok(ExitCode::SUCCESS);
    }
    let config = caisson_node::config::load();
    if let Command::Check(arguments) = command {
        return check::run(&arguments, config);
    }
    let config = config?;
    match command {
        Command::Run(arguments) => return Ok(run::run(arguments, &config)),
        Command::List { json } => list::run(&config, json)?,
        Command::Claim(arguments) => claim::run(&config, &arguments)?,
        Command::Metrics => metrics::run(&config)?,
        Command::Trace { pod } => trace::run(&config, &pod)?,
        Command::Egress { pod } => egress::run(&config, &pod)?,
        Command::Skill(command) => skill::run(command, &config)?,
        Command::Home(command) => home::run(command, &config)?,
        Command::Template(action) => template::run(action, &config)?,
        Command::Gc => gc::run(&config)?,
        Command::Check(_) | Command::Node(_) => {}
    }
    Ok(ExitCode::SUCCESS)
}
