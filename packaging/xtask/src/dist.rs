//! `cargo xtask dist`: builds everything that a node gets into `target/dist`.

use std::process::Command;

use anyhow::Result;

use crate::{
    dirs::Dirs,
    files, helpers,
    image::{self, Pins},
    profile::Profile,
    step,
};

const SHIM: Program = ("caisson-shim", "containerd-shim-caisson-v2");
const COMMAND: Program = ("caisson", "caisson");
const REMOTE: Program = ("caisson-remote", "caisson-remote");

/// A package and its binary.
type Program = (&'static str, &'static str);

/// Builds the binaries, the guest image and the daemons.
pub fn build(dirs: &Dirs, pins: Pins, profile: Profile) -> Result<()> {
    build_programs(dirs, pins, profile, &[COMMAND, REMOTE])
}

/// Builds what a node needs that is in no cluster and has no sources of skills. What is left out
/// takes as long to build as the rest.
pub fn build_without_remote(dirs: &Dirs, pins: Pins, profile: Profile) -> Result<()> {
    build_programs(dirs, pins, profile, &[COMMAND])
}

fn build_programs(dirs: &Dirs, pins: Pins, profile: Profile, commands: &[Program]) -> Result<()> {
    match profile {
        // One call builds each dependency once, with the features that all of them need.
        Profile::Release => cargo(dirs, pins, profile, &[&[SHIM], commands].concat())?,
        // Few instances of the commands run at once, so they need not be small.
        Profile::Shipped => {
            cargo(dirs, pins, profile, &[SHIM])?;
            cargo(dirs, pins, Profile::Release, commands)?;
        }
    }
    image::build(dirs, pins, profile)?;
    helpers::build(dirs)
}

fn cargo(dirs: &Dirs, pins: Pins, profile: Profile, programs: &[Program]) -> Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["build", "--profile", profile.name(), "--target-dir"])
        .arg(&dirs.target)
        .current_dir(&dirs.root);
    for (package, binary) in programs {
        cargo.args(["-p", package, "--bin", binary]);
    }
    if pins == Pins::Require {
        cargo.arg("--locked");
    }
    let names: Vec<_> = programs.iter().map(|(package, _)| *package).collect();
    step::run(&dirs.log, &names.join("+"), &mut cargo)?;
    for (_, binary) in programs {
        let built = dirs.target.join(profile.name()).join(binary);
        files::copy(&built, &dirs.dist.join("bin").join(binary))?;
    }
    Ok(())
}
