//! Hands a subcommand over to `caisson-remote`, the program with the clients for the cluster's API
//! server and for sources of skills.

use std::{ffi::OsString, os::unix::process::CommandExt, process::Command};

use anyhow::{anyhow, Error};
use caisson_node::host::program;
use clap::Args;

/// The program's name. It lies beside this one.
const PROGRAM: &str = "caisson-remote";

/// Arguments that `caisson-remote` parses, `--help` among them.
#[derive(Args)]
pub struct Arguments {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    all: Vec<OsString>,
}

/// Returns the command that runs `caisson-remote`.
pub fn program() -> Command {
    Command::new(program::beside(PROGRAM))
}

/// Executes `caisson-remote` instead of this program. Returns only if that fails.
pub fn execute(subcommand: &[&str], arguments: &Arguments) -> Error {
    let mut command = program();
    let error = command.args(subcommand).args(&arguments.all).exec();
    anyhow!(
        "execute {}: {error}; install it beside `caisson`",
        command.get_program().display()
    )
}
