//! `cargo xtask helpers`: builds the daemons that run beside QEMU from their crates, so that no
//! user has to install them by hand.
//!
//! What is changed in a crate's source is in `packaging/helpers/<name>.patch`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{cache, dirs::Dirs, files, inputs::Inputs, machine, profile::Profile, step};

/// The crates through which a daemon's data goes. [`Build::Quick`] optimises these and the daemon
/// itself.
const RUST_VMM: [&str; 4] = ["vhost", "vhost-user-backend", "virtio-queue", "vm-memory"];

/// What is changed in the sources of crates. They are shipped beside the binaries.
pub const PATCHES: [&str; 1] = ["virtiofsd.patch"];

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
    let patch = patch(dirs, name);
    let folder = format!("{name}-{version}{suffix}");
    let root = match &patch {
        None => crates.join(folder),
        Some(patch) => cache::entry(&crates, &folder, &files::read_text(patch)?)?,
    };
    let binary = root.join("bin").join(name);
    // cargo puts the binary there last, so an interrupted build is not taken for a finished one.
    if binary.exists() {
        return Ok(binary);
    }
    let target_dir = crates.join("build");
    // The binary depends on where its source is, so that is always the same folder.
    let source_dir = crates.join("source");
    let mut cargo = step::cargo();
    cargo
        .args(["install", "--locked", "--root"])
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
    match &patch {
        None => cargo.args(["--version", version, name]),
        Some(patch) => {
            patched_source(dirs, name, version, patch, &source_dir)?;
            cargo.arg("--path").arg(&source_dir)
        }
    };
    step::run(&dirs.log, name, &mut cargo)?;
    files::remove_dir(&target_dir)?;
    files::remove_dir(&source_dir)?;
    Ok(binary)
}

/// Returns what is changed in a crate's source, if anything is.
fn patch(dirs: &Dirs, name: &str) -> Option<PathBuf> {
    let file = format!("{name}.patch");
    let known = PATCHES.contains(&file.as_str());
    known.then(|| patches(dirs).join(file))
}

/// Returns the folder with the [`PATCHES`].
pub fn patches(dirs: &Dirs) -> PathBuf {
    dirs.root.join("packaging/helpers")
}

/// Puts the source of a crate into `to` and changes it.
fn patched_source(dirs: &Dirs, name: &str, version: &str, patch: &Path, to: &Path) -> Result<()> {
    files::remove_dir(to)?;
    let from = source(dirs, name, version)?;
    for path in files::below(&from)? {
        files::copy(&from.join(&path), &to.join(&path))?;
    }
    machine::apply(dirs, &format!("{name}-patch"), patch, to)?;
    // It is below the checkout, but no part of its workspace.
    let manifest = to.join("Cargo.toml");
    let text = files::read_text(&manifest)? + "\n[workspace]\n";
    files::write(&manifest, text.as_bytes(), 0o644)
}

/// Returns the folder with a crate's source, which cargo gets and checks first if needed.
pub fn source(dirs: &Dirs, name: &str, version: &str) -> Result<PathBuf> {
    if let Some(found) = unpacked(name, version)? {
        return Ok(found);
    }
    // It unpacks the crate to read its manifest.
    let mut info = step::cargo();
    info.args(["info", "--quiet", &format!("{name}@{version}")])
        .current_dir(&dirs.root);
    step::run(&dirs.log, &format!("{name}-source"), &mut info)?;
    unpacked(name, version)?.with_context(|| format!("cargo did not unpack {name} {version}"))
}

/// Returns where cargo has unpacked a crate.
fn unpacked(name: &str, version: &str) -> Result<Option<PathBuf>> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let sources = home.context("neither CARGO_HOME nor HOME is set")?;
    let Ok(registries) = fs::read_dir(sources.join("registry/src")) else {
        return Ok(None);
    };
    let folder = format!("{name}-{version}");
    // cargo writes the file last.
    let mut found = registries.filter_map(|registry| Some(registry.ok()?.path().join(&folder)));
    Ok(found.find(|path| path.join(".cargo-ok").exists()))
}
