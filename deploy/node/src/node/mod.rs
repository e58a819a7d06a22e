//! `caisson node`: installs a release of Caisson on a node, from its files to the runtime handler
//! in containerd.
//!
//! ```text
//! install --> payload (versions) --> settings --> self_test
//!         --> switch (containerd_config, containerd) --> old versions go
//! record: what was done, before it is done; uninstall: takes it back from there
//! serve: both of them on each node of a cluster, for the chart
//! ```

mod containerd;
mod containerd_config;
mod files;
mod install;
mod payload;
mod program;
mod record;
mod self_test;
mod serve;
mod settings;
mod status;
mod switch;
mod uninstall;

use anyhow::Result;
use clap::Subcommand;

#[derive(Subcommand)]
pub enum Command {
    /// Puts a release in place, tries it in a VM and adds its runtime handler to containerd
    Install(install::Arguments),
    /// Takes back what install did; skills and homes stay
    Uninstall(uninstall::Arguments),
    /// Shows what is installed, whether containerd has it, and which version each pod runs with
    Status(status::Arguments),
    #[command(flatten)]
    Cluster(serve::Command),
    /// Says which kernel it sees: what the self-test runs in its VM
    #[command(hide = true)]
    Hello,
}

/// Runs the command. It reads the configuration itself, since containerd's environment may name it.
pub fn run(command: &Command) -> Result<()> {
    match command {
        Command::Install(arguments) => install::run(arguments),
        Command::Uninstall(arguments) => uninstall::run(arguments),
        Command::Status(arguments) => status::run(arguments),
        Command::Cluster(command) => serve::run(command),
        Command::Hello => self_test::hello(),
    }
}
