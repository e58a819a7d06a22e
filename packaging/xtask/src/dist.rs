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
    // Few instances of `caisson` run at once.
    for (package, profile, binary) in [
        ("caisson-shim", profile, "containerd-shim-caisson-v2"),
        ("caisson", Profile::Release, "caisson"),
    ] {
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
        files::copy(&built, &dirs.dist.join("bin").join(binary))?;
    }
    image::build(dirs, pins, profile)?;
    helpers::build(dirs)
}
