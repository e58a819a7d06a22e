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

/// Builds the binaries, the guest image and the daemons.
pub fn build(dirs: &Dirs, pins: Pins, profile: Profile) -> Result<()> {
    build_without_remote(dirs, pins, profile)?;
    build_program(
        dirs,
        pins,
        Profile::Release,
        "caisson-remote",
        "caisson-remote",
    )
}

/// Builds what a node needs that is in no cluster and has no sources of skills. What is left out
/// takes as long to build as the rest.
pub fn build_without_remote(dirs: &Dirs, pins: Pins, profile: Profile) -> Result<()> {
    let shim = "containerd-shim-caisson-v2";
    build_program(dirs, pins, profile, "caisson-shim", shim)?;
    // Few instances of `caisson` run at once.
    build_program(dirs, pins, Profile::Release, "caisson", "caisson")?;
    image::build(dirs, pins, profile)?;
    helpers::build(dirs)
}

fn build_program(
    dirs: &Dirs,
    pins: Pins,
    profile: Profile,
    package: &str,
    binary: &str,
) -> Result<()> {
    let profile = profile.name();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["build", "-p", package, "--bin", binary])
        .args(["--profile", profile, "--target-dir"])
        .arg(&dirs.target)
        .current_dir(&dirs.root);
    if pins == Pins::Require {
        cargo.arg("--locked");
    }
    step::run(&dirs.log, package, &mut cargo)?;
    let built = dirs.target.join(profile).join(binary);
    files::copy(&built, &dirs.dist.join("bin").join(binary))
}
