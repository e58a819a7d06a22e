//! `cargo xtask dist`: builds everything that a node gets into `target/dist`.

use std::{path::Path, process::Command};

use anyhow::Result;

use crate::{
    dirs::Dirs,
    files, helpers, image,
    machine::{self, Machine},
    pins::Pins,
    profile::Profile,
    static_build::{self, TARGET},
    step,
};

/// What runs beside every pod, or looks after those. Linked statically, it has no pages of a libc
/// of its own, and runs on any node.
const STATIC: [Program; 2] = [
    ("caisson-shim", "containerd-shim-caisson-v2"),
    ("caisson", "caisson"),
];
const REMOTE: Program = ("caisson-remote", "caisson-remote");

/// What the linker does for these: it packs their relocations, so that a start reads kilobytes of
/// them in place of hundreds. A dynamic program would need glibc 2.36 for that.
const PACKED: &str = "-C link-arg=-Wl,-z,pack-relative-relocs";

/// A package and its binary.
type Program = (&'static str, &'static str);

/// Builds the binaries, the machine, the guest image and the daemons.
pub fn build(dirs: &Dirs, machine: Machine, pins: Pins, profile: Profile) -> Result<()> {
    build_static_programs(dirs, pins, profile)?;
    // It resolves names, for which a static glibc loads the node's libraries.
    let mut cargo = step::cargo();
    cargo.arg("build");
    let remote = add_programs(cargo, dirs, pins, profile, &[REMOTE]);
    run(dirs, remote, &[REMOTE], profile.folder().as_ref())?;
    build_rest(dirs, machine, pins, profile)
}

/// Builds what a node needs that is in no cluster, has no sources of skills and has Debian's QEMU.
/// What is left out takes several times as long to build as the rest.
pub fn build_for_demo(dirs: &Dirs, pins: Pins, profile: Profile) -> Result<()> {
    build_static_programs(dirs, pins, profile)?;
    build_rest(dirs, Machine::Debian, pins, profile)
}

/// Returns the call of cargo that builds the programs of [`build_for_demo`].
pub fn cargo_for_demo(dirs: &Dirs, pins: Pins, profile: Profile) -> Command {
    let cargo = static_build::cargo(PACKED);
    add_programs(cargo, dirs, pins, profile, &STATIC)
}

fn build_static_programs(dirs: &Dirs, pins: Pins, profile: Profile) -> Result<()> {
    let cargo = cargo_for_demo(dirs, pins, profile);
    let below = Path::new(TARGET).join(profile.folder());
    run(dirs, cargo, &STATIC, &below)
}

/// Runs cargo, which puts the binaries of `programs` `below` its target folder.
fn run(dirs: &Dirs, mut cargo: Command, programs: &[Program], below: &Path) -> Result<()> {
    let names: Vec<_> = programs.iter().map(|(package, _)| *package).collect();
    step::run(&dirs.log, &names.join("+"), &mut cargo)?;
    for (_, binary) in programs {
        let built = dirs.target.join(below).join(binary);
        files::copy(&built, &dirs.dist.join("bin").join(binary))?;
    }
    Ok(())
}

fn build_rest(dirs: &Dirs, machine: Machine, pins: Pins, profile: Profile) -> Result<()> {
    machine::install(dirs, machine, pins)?;
    image::build(dirs, machine, pins, profile)?;
    helpers::build(dirs, profile)
}

/// Has one call of cargo build `programs`, so that each dependency is built once, with the features
/// that all of them need.
fn add_programs(
    mut cargo: Command,
    dirs: &Dirs,
    pins: Pins,
    profile: Profile,
    programs: &[Program],
) -> Command {
    cargo
        .args(["--profile", profile.name(), "--target-dir"])
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
