//! `cargo xtask helpers`: the daemons beside QEMU, from their crates, so that no user installs them by hand.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::{dirs::Dirs, files, inputs::Inputs, step};

/// How a crate's binary is built.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Build {
    Release,
    Debug,
}

/// Installs the pinned crates into the cache, where they are not yet, and puts their binaries into `libexec`.
pub fn build(dirs: &Dirs) -> Result<()> {
    let inputs = Inputs::read(&dirs.inputs())?;
    for (name, version) in &inputs.helpers {
        let binary = installed(dirs, name, version, Build::Release)?;
        files::copy(&binary, &dirs.dist.join("libexec").join(name))?;
    }
    Ok(())
}

/// The binary of a crate, from the cache or installed there.
pub fn installed(dirs: &Dirs, name: &str, version: &str, build: Build) -> Result<PathBuf> {
    let crates = dirs.cache.join("crates");
    let root = crates.join(format!("{name}-{version}"));
    let binary = root.join("bin").join(name);
    // cargo puts it there last, so a build that was cut short is not taken for a finished one.
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
    if build == Build::Debug {
        cargo.arg("--debug");
    }
    step::run(&dirs.log, name, cargo.arg(name))?;
    std::fs::remove_dir_all(&target_dir)
        .with_context(|| format!("remove {}", target_dir.display()))?;
    Ok(binary)
}
