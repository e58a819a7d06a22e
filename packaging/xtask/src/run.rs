//! `cargo xtask run NAME`: builds a program of the tests' crate (bench, conformance), showing the
//! progress, and then runs it in place of xtask.

use std::{os::unix::process::CommandExt, process::Command};

use anyhow::{Error, Result};

use crate::{dirs::Dirs, step};

/// Returns only when the program can't be built or started.
pub fn run(dirs: &Dirs, program: &str, args: &[&str]) -> Result<()> {
    let mut cargo = step::cargo();
    cargo
        .args(["build", "-p", "caisson-tests", "--bins"])
        .arg("--target-dir")
        .arg(&dirs.target)
        .current_dir(&dirs.root);
    step::run(&dirs.log, program, &mut cargo)?;
    let path = dirs.target.join("debug").join(program);
    let error = Command::new(&path).args(args).exec();
    Err(Error::new(error).context(format!("start {}", path.display())))
}
