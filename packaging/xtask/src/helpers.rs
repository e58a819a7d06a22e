//! `cargo xtask helpers`: the daemons beside QEMU, from their crates, so that no user installs them by hand.

use std::process::Command;

use anyhow::{Context, Result};

use crate::{dirs::Dirs, files, inputs::Inputs, step};

/// Installs the pinned crates into the cache, where they are not yet, and puts their binaries into `libexec`.
pub fn build(dirs: &Dirs) -> Result<()> {
    let inputs = Inputs::read(&dirs.inputs())?;
    for (name, version) in &inputs.helpers {
        let root = dirs.cache.join(format!("helpers/{name}-{version}"));
        let binary = root.join("bin").join(name);
        if !binary.exists() {
            install(dirs, name, version, &root)?;
        }
        files::copy(&binary, &dirs.dist.join("libexec").join(name))?;
    }
    Ok(())
}

/// cargo puts the binary there last, so a build that was cut short is not taken for a finished one.
fn install(dirs: &Dirs, name: &str, version: &str, root: &std::path::Path) -> Result<()> {
    let target_dir = dirs.cache.join("helpers/build");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["install", "--locked", "--version", version, "--root"])
        .arg(root)
        .arg("--target-dir")
        .arg(&target_dir)
        .arg(name)
        .current_dir(&dirs.root);
    step::run(&dirs.log, name, &mut cargo)?;
    std::fs::remove_dir_all(&target_dir).with_context(|| format!("remove {}", target_dir.display()))
}
