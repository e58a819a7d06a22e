//! `cargo xtask dist`: builds everything that a node gets into `target/dist`.

use std::process::Command;

use anyhow::Result;

use crate::{
    dirs::Dirs,
    files, helpers, image,
    machine::{self, Machine},
    pins::Pins,
    profile::Profile,
    step,
};

const SHIM: Program = ("caisson-shim", "containerd-shim-caisson-v2");
const COMMAND: Program = ("caisson", "caisson");
const REMOTE: Program = ("caisson-remote", "caisson-remote");

/// A package and its binary.
type Program = (&'static str, &'static str);

/// Builds the binaries, the machine, the guest image and the daemons.
pub fn build(dirs: &Dirs, machine: Machine, pins: Pins, profile: Profile) -> Result<()> {
    build_programs(dirs, pins, profile, &[SHIM, COMMAND, REMOTE])?;
    build_rest(dirs, machine, pins, profile)
}

/// Builds what a node needs that is in no cluster, has no sources of skills and has Debian's QEMU.
/// What is left out takes several times as long to build as the rest.
pub fn build_for_demo(dirs: &Dirs, pins: Pins, profile: Profile) -> Result<()> {
    build_programs(dirs, pins, profile, &[SHIM, COMMAND])?;
    build_rest(dirs, Machine::Debian, pins, profile)
}

/// Returns the call of cargo that builds the programs of [`build_for_demo`].
pub fn cargo_for_demo(dirs: &Dirs, pins: Pins, profile: Profile) -> Command {
    cargo(dirs, pins, profile, &[SHIM, COMMAND])
}

fn build_programs(dirs: &Dirs, pins: Pins, profile: Profile, programs: &[Program]) -> Result<()> {
    let names: Vec<_> = programs.iter().map(|(package, _)| *package).collect();
    let mut cargo = cargo(dirs, pins, profile, programs);
    step::run(&dirs.log, &names.join("+"), &mut cargo)?;
    for (_, binary) in programs {
        let built = dirs.target.join(profile.folder()).join(binary);
        files::copy(&built, &dirs.dist.join("bin").join(binary))?;
    }
    Ok(())
}

fn build_rest(dirs: &Dirs, machine: Machine, pins: Pins, profile: Profile) -> Result<()> {
    machine::install(dirs, machine, pins)?;
    image::build(dirs, machine, pins, profile)?;
    helpers::build(dirs, profile)
}

/// Builds programs by one call, so that each dependency is built once, with the features that all
/// of them need.
fn cargo(dirs: &Dirs, pins: Pins, profile: Profile, programs: &[Program]) -> Command {
    let mut cargo = step::cargo();
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
    cargo
}
