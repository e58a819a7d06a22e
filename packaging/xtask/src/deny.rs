//! `cargo xtask deny`: checks licences, bans and sources of the dependencies with cargo-deny and
//! `deny.toml`.

use std::process::Command;

use anyhow::{bail, Context, Result};

use crate::{
    dirs::Dirs,
    helpers::{self, Build},
    inputs::Inputs,
};

/// Checks the tree. Builds cargo-deny first if the cache does not have it.
pub fn check(dirs: &Dirs) -> Result<()> {
    let inputs = Inputs::read(&dirs.inputs())?;
    let version = &inputs.checks.cargo_deny;
    // A debug build takes a third of the time to make, and the check still takes only a second.
    let cargo_deny = helpers::installed(dirs, "cargo-deny", version, Build::Debug)?;
    // Advisories are left out: their database is on the internet.
    let status = Command::new(cargo_deny)
        .args(["--log-level", "error", "check"])
        .args(["licenses", "bans", "sources"])
        .current_dir(&dirs.root)
        .status()
        .context("start cargo-deny")?;
    if !status.success() {
        bail!("cargo-deny: {status}");
    }
    Ok(())
}
