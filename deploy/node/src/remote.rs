//! Hands a subcommand over to `caisson-remote`, the program with the clients for the cluster's API
//! server and for sources of skills.

use std::{ffi::OsString, os::unix::process::CommandExt, path::PathBuf, process::Command};

use anyhow::{anyhow, Error};
use clap::Args;

/// The program's name. It lies beside this one.
const PROGRAM: &str = "caisson-remote";

/// Arguments that `caisson-remote` parses, `--help` among them.
#[derive(Args)]
pub struct Arguments {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    all: Vec<OsString>,
}

/// Executes `caisson-remote` instead of this program. Returns only if that fails.
pub fn execute(subcommand: &[&str], arguments: &Arguments) -> Error {
    let program = program();
    let error = Command::new(&program)
        .args(subcommand)
        .args(&arguments.all)
        .exec();
    anyhow!(
        "execute {}: {error}; install it beside `caisson`",
        program.display()
    )
}

/// Returns the path of the program beside this one, or else its name, to be found in `PATH`.
fn program() -> PathBuf {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|this| Some(this.parent()?.join(PROGRAM)));
    beside
        .filter(|path| path.exists())
        .unwrap_or_else(|| PROGRAM.into())
}
