//! `cargo xtask image`: builds the guest image from a kernel and the agent.
//!
//! ```text
//! kernel of Debian or ours --+-- vmlinux            (an ELF with a PVH entry)
//!                            +-- modules.squashfs   (all modules)
//!                            `-- boot modules --+
//!              agent (cargo, static) -----------+-- initramfs.cpio
//! ```
//!
//! The same inputs give the same bytes: no times, no owners, no paths of the building machine.

mod agent;
mod cpio;
mod debian;
mod kernel;
mod modules;
mod origin;
mod vmlinux;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{bail, Context, Result};
use serde::Serialize;

use crate::{
    dirs::Dirs,
    files,
    inputs::{self, Inputs, Kernel},
    machine::{self, Machine},
    pins::Pins,
    profile::Profile,
};
use agent::Agent;
use cpio::Archive;
use kernel::Parts;
use origin::Origin;

/// The content of a guest image, written to `manifest.json` beside it.
#[derive(Serialize)]
struct Manifest {
    kernel_release: String,
    kernel_package: String,
    kernel_version: String,
    caisson_version: &'static str,
    sha256: Digests,
}

#[derive(Serialize)]
struct Digests {
    vmlinux: String,
    #[serde(rename = "initramfs.cpio")]
    initramfs: String,
    #[serde(rename = "modules.squashfs")]
    modules: String,
    agent: String,
    kernel_deb: String,
}

/// Builds the image into `target/dist/guest`.
pub fn build(dirs: &Dirs, machine: Machine, pins: Pins, profile: Profile) -> Result<()> {
    let inputs = Inputs::read(&dirs.inputs())?;
    let origin = Origin::find(dirs, machine, pins)?;
    let parts = Parts::cached(dirs, &origin, &inputs.initramfs.boot_modules)?;
    let built = agent::build(dirs, Agent::Shipped, pins, profile, &dirs.target)?;
    // Tests run it on the host, too, after cargo has built others of the same name.
    let agent = dirs.cache.join("caisson-agent");
    files::copy(&built, &agent)?;
    assemble(&parts, &origin, &agent, &dirs.dist.join("guest"))?;
    Ok(())
}

/// Returns the call of cargo that builds the agent.
pub fn cargo_of_agent(dirs: &Dirs, pins: Pins, profile: Profile) -> Command {
    agent::cargo(dirs, Agent::Shipped, pins, profile, &dirs.target)
}

/// Builds the initramfs with the hostile agent into `target/cache/hostile`. If the image has been
/// built already, only the agent's own crate is built again.
pub fn build_hostile(dirs: &Dirs) -> Result<()> {
    let inputs = Inputs::read(&dirs.inputs())?;
    let origin = Origin::find(dirs, machine::built(dirs)?, Pins::Prefer)?;
    let parts = Parts::cached(dirs, &origin, &inputs.initramfs.boot_modules)?;
    let (agent, profile) = (Agent::Hostile, Profile::Dev);
    let agent = agent::build(dirs, agent, Pins::Prefer, profile, &dirs.target)?;
    let to = dirs.cache.join("hostile");
    files::make_dir(&to)?;
    let initramfs = initramfs(&parts, &agent)?;
    files::write(&to.join("initramfs.cpio"), &initramfs, 0o644)
}

/// Returns the package of Debian's kernel, and its file.
pub fn kernel_package(dirs: &Dirs, inputs: &Inputs, pins: Pins) -> Result<(Kernel, PathBuf)> {
    let package = debian::fetch(dirs, &inputs.kernel, pins)?;
    Ok((package.kernel, package.deb))
}

/// Pins the versions that Debian has now.
pub fn update_pins(dirs: &Dirs) -> Result<()> {
    let path = dirs.inputs();
    let inputs = Inputs::read(&path)?;
    debian::refresh_lists(dirs);
    let now = debian::candidate(&inputs.kernel.meta_package)?;
    if now == inputs.kernel {
        println!("{} {} is still the newest", now.package, now.version);
        return Ok(());
    }
    let text = inputs::replace_kernel(&files::read_text(&path)?, &now);
    files::write(&path, text.as_bytes(), 0o644)?;
    println!("pinned {} {}", now.package, now.version);
    Ok(())
}

/// Builds everything again from nothing in another folder, and fails unless that gives the bytes of
/// `target/dist/guest`.
pub fn check_reproducible(dirs: &Dirs) -> Result<()> {
    let machine = machine::built(dirs)?;
    build(dirs, machine, Pins::Require, Profile::Dev)?;
    let first = files::read_text(&dirs.dist.join("guest/manifest.json"))?;

    let inputs = Inputs::read(&dirs.inputs())?;
    let origin = Origin::find(dirs, machine, Pins::Require)?;
    // Use another path, so that a path in the bytes would be noticed.
    let temp = tempfile::tempdir_in(&dirs.cache).context("make a folder in the cache")?;
    let at = |name: &str| temp.path().join(name);
    let parts = Parts::make(dirs, &origin, &inputs.initramfs.boot_modules, &at("parts"))?;
    let agent = agent::build(
        dirs,
        Agent::Shipped,
        Pins::Require,
        Profile::Dev,
        &at("target"),
    )?;
    let second = assemble(&parts, &origin, &agent, &at("guest"))?;
    if first != second {
        bail!("two builds of the same inputs differ:\n{first}{second}");
    }
    print!("built twice, the same bytes:\n{first}");
    Ok(())
}

/// Puts the image together in `to`; returns its manifest.
fn assemble(parts: &Parts, origin: &Origin, agent: &Path, to: &Path) -> Result<String> {
    files::copy(&parts.vmlinux(), &to.join("vmlinux"))?;
    files::copy(&parts.squashfs(), &to.join("modules.squashfs"))?;
    let initramfs = initramfs(parts, agent)?;
    files::write(&to.join("initramfs.cpio"), &initramfs, 0o644)?;

    let package = origin.package();
    let manifest = Manifest {
        kernel_release: parts.release()?,
        kernel_package: package.package,
        kernel_version: package.version,
        caisson_version: env!("CARGO_PKG_VERSION"),
        sha256: Digests {
            vmlinux: files::sha256(&to.join("vmlinux"))?,
            initramfs: files::sha256(&to.join("initramfs.cpio"))?,
            modules: files::sha256(&to.join("modules.squashfs"))?,
            agent: files::sha256(agent)?,
            kernel_deb: package.sha256,
        },
    };
    let mut text = serde_json::to_string_pretty(&manifest)?;
    text.push('\n');
    files::write(&to.join("manifest.json"), text.as_bytes(), 0o644)?;
    Ok(text)
}

fn initramfs(parts: &Parts, agent: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for name in ["proc", "sys", "dev", "run", "tmp", "etc"] {
        archive.dir(name);
    }
    // The kernel opens it as init's stdin, stdout and stderr before init can mount anything.
    archive.char_device("dev/console", 0o600, (5, 1));
    archive.file("init", 0o755, files::read(agent)?);
    // The kernel's default for /proc/sys/kernel/modprobe. Called by this name, the agent mounts the
    // modules.
    archive.symlink("sbin/modprobe", "/init");
    for (name, content) in parts.boot_files()? {
        archive.file(&format!("lib/modules/{name}"), 0o644, content);
    }
    Ok(archive.into_bytes())
}
