//! `caisson node`: installs a release of Caisson on a node, from its files to the runtime handler
//! in containerd.
//!
//! ```text
//! install --> payload (versions) --> settings --> self_test
//!         --> switch (containerd_config, containerd) --> old versions go
//! record: what was done, before it is done; uninstall: takes it back from there
//! `caisson-remote` runs both of them on each node of a cluster, for the chart
//! ```

mod containerd;
mod containerd_config;
mod files;
mod install;
mod layout;
mod payload;
mod program;
mod record;
mod self_test;
mod settings;
mod status;
mod switch;
mod uninstall;

use anyhow::Result;
use clap::Subcommand;

use crate::remote;

#[derive(Subcommand)]
pub enum Command {
    /// Puts a release in place, tries it in a VM and adds its runtime handler to containerd
    Install(install::Arguments),
    /// Takes back what install did; skills and homes stay
    Uninstall(uninstall::Arguments),
    /// Shows what is installed, whether containerd has it, and which version each pod runs with
    Status(status::Arguments),
    /// Sets the node up that this pod is on, labels it, and gives it back when the chart is removed
    #[command(disable_help_flag = true)]
    Serve(remote::Arguments),
    /// Says by its exit code whether `serve` in the same container has made the node ready
    #[command(disable_help_flag = true)]
    Ready(remote::Arguments),
    /// Tells the pods of a DaemonSet to give their nodes back, and waits until they have
    #[command(disable_help_flag = true)]
    Drain(remote::Arguments),
    /// Waits until the pods of a DaemonSet have set their nodes up
    #[command(disable_help_flag = true)]
    Await(remote::Arguments),
    /// Fails where this pod has the same kernel as its node, the one that NODE_NAME names
    #[command(disable_help_flag = true)]
    CompareKernels(remote::Arguments),
    /// Says which kernel it sees: what the self-test runs in its VM
    #[command(hide = true)]
    Hello,
}

/// Runs the command. It reads the configuration itself, since containerd's environment may name it.
pub fn run(command: &Command) -> Result<()> {
    let hand_over = |name, arguments| Err(remote::execute(&["node", name], arguments));
    match command {
        Command::Install(arguments) => install::run(arguments),
        Command::Uninstall(arguments) => uninstall::run(arguments),
        Command::Status(arguments) => status::run(arguments),
        Command::Serve(arguments) => hand_over("serve", arguments),
        Command::Ready(arguments) => hand_over("ready", arguments),
        Command::Drain(arguments) => hand_over("drain", arguments),
        Command::Await(arguments) => hand_over("await", arguments),
        Command::CompareKernels(arguments) => hand_over("compare-kernels", arguments),
        Command::Hello => self_test::hello(),
    }
}
