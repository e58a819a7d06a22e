//! `cargo xtask dist`: everything that a node gets, in `target/dist`.

use std::process::Command;

use anyhow::Result;

use crate::{
    dirs::Dirs,
    files, helpers,
    image::{self, Pins},
    step,
};

const BINARIES: [&str; 2] = ["containerd-shim-caisson-v2", "caisson"];

/// Builds the binaries, the guest image and the daemons.
pub fn build(dirs: &Dirs, pins: Pins) -> Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["build", "--release", "-p", "caisson-shim", "-p", "caisson"])
        .arg("--target-dir")
        .arg(&dirs.target)
        .current_dir(&dirs.root);
    for binary in BINARIES {
        cargo.args(["--bin", binary]);
    }
    if pins == Pins::Require {
        cargo.arg("--locked");
    }
    step::run(&dirs.log, "shim", &mut cargo)?;
    for binary in BINARIES {
        let built = dirs.target.join("release").join(binary);
        files::copy(&built, &dirs.dist.join("bin").join(binary))?;
    }
    image::build(dirs, pins)?;
    helpers::build(dirs)
}
