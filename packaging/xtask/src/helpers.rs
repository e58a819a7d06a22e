//! `cargo xtask helpers`: builds the daemons that run beside QEMU from their crates, so that no
//! user has to install them by hand.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::{dirs::Dirs, files, inputs::Inputs, profile::Profile, step};

/// The crates through which a daemon's data goes. [`Build::Quick`] optimises these and the daemon
/// itself.
const RUST_VMM: [&str; 4] = ["vhost", "vhost-user-backend", "virtio-queue", "vm-memory"];

/// How a crate's binary is built.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Build {
    /// As its authors release it.
    Release,
    /// What takes the least time and moves data at a good pace nonetheless.
    Quick,
    Debug,
}

/// Installs the pinned crates into the cache, unless they are there, and puts their binaries into
/// `libexec`.
pub fn build(dirs: &Dirs, profile: Profile) -> Result<()> {
    let inputs = Inputs::read(&dirs.inputs())?;
    let build = match profile {
        Profile::Dev => Build::Quick,
        Profile::Release => Build::Release,
    };
    for (name, version) in &inputs.helpers {
        let binary = installed(dirs, name, version, build)?;
        files::copy(&binary, &dirs.dist.join("libexec").join(name))?;
    }
    Ok(())
}

/// Returns the binary of a crate from the cache, and installs it there first if needed.
pub fn installed(dirs: &Dirs, name: &str, version: &str, build: Build) -> Result<PathBuf> {
    let crates = dirs.cache.join("crates");
    let suffix = if build == Build::Quick { "-quick" } else { "" };
    let root = crates.join(format!("{name}-{version}{suffix}"));
    let binary = root.join("bin").join(name);
    // cargo puts the binary there last, so an interrupted build is not taken for a finished one.
    if binary.exists() {
        return Ok(binary);
    }
    let target_dir = crates.join("build");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["install", "--locked", "--version", version, "--root"])
        .arg(&root)
        .arg("--target-dir")
        .arg(&target_dir)
        .current_dir(&dirs.root);
    match build {
        Build::Release => {}
        Build::Quick => {
            cargo.args(["--debug", "--config", "profile.dev.debug=false"]);
            for krate in [&[name], &RUST_VMM[..]].concat() {
                for setting in ["opt-level=1", "codegen-units=1"] {
                    let config = format!("profile.dev.package.{krate}.{setting}");
                    cargo.args(["--config", &config]);
                }
            }
        }
        Build::Debug => {
            cargo.arg("--debug");
        }
    }
    step::run(&dirs.log, name, cargo.arg(name))?;
    std::fs::remove_dir_all(&target_dir)
        .with_context(|| format!("remove {}", target_dir.display()))?;
    Ok(binary)
}
