//! Builds the agent: one static binary, with the same bytes wherever the checkout lies.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::{
    dirs::Dirs,
    pins::Pins,
    profile::Profile,
    static_build::{self, TARGET},
    step,
};

/// What is changed of [`Profile::Dev`]. Most guests of such a build are emulated, where an agent
/// that is not optimised at all takes a fifth of a start's time. With one unit a crate, that takes
/// the least CPU time to build.
const DEV: [&str; 2] = ["profile.dev.opt-level=\"s\"", "profile.dev.codegen-units=1"];

/// Which agent is built: the shipped one, or one with additions.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Agent {
    Shipped,
    /// Lies to the host, for tests.
    Hostile,
}

/// Builds into `target_dir` and returns the binary, which the next build replaces. With
/// [`Pins::Require`] an outdated Cargo.lock is an error.
pub fn build(
    dirs: &Dirs,
    agent: Agent,
    pins: Pins,
    profile: Profile,
    target_dir: &Path,
) -> Result<PathBuf> {
    let mut cargo = cargo(dirs, agent, pins, profile, target_dir);
    step::run(&dirs.log, "agent", &mut cargo)?;
    let built = target_dir.join(TARGET).join(profile.folder());
    Ok(built.join("caisson-agent"))
}

/// Returns the call of cargo that builds it.
pub fn cargo(
    dirs: &Dirs,
    agent: Agent,
    pins: Pins,
    profile: Profile,
    target_dir: &Path,
) -> Command {
    // A panic of PID 1 has to end the guest. The address is fixed because the relocations of a
    // position-independent binary are done at each exec, and every container needs two. Measured
    // under emulation: 90 ms of 1775 from the shim's start to a container's first byte.
    let mut flags = format!(
        "-C relocation-model=static -C panic=abort -C strip=symbols \
         --remap-path-prefix={}=/caisson",
        dirs.root.display()
    );
    if let Some(home) = cargo_home() {
        flags.push_str(&format!(" --remap-path-prefix={}=/cargo", home.display()));
    }
    // Generated code lies in that folder; the last prefix that matches counts.
    flags.push_str(&format!(
        " --remap-path-prefix={}=/target",
        target_dir.display()
    ));
    let mut cargo = static_build::cargo(&flags);
    cargo
        .args(["--package", "caisson-guest"])
        .args(["--profile", profile.name(), "--target-dir"])
        .arg(target_dir)
        .current_dir(&dirs.root)
        // Incremental builds of the same sources may differ in bytes.
        .env("CARGO_INCREMENTAL", "0")
        .env("LIBSECCOMP_LINK_TYPE", "static")
        .env("LIBSECCOMP_LIB_PATH", "/usr/lib/x86_64-linux-gnu");
    if profile == Profile::Dev {
        for setting in DEV {
            cargo.args(["--config", setting]);
        }
    }
    if pins == Pins::Require {
        cargo.arg("--locked");
    }
    if agent == Agent::Hostile {
        cargo.args(["--features", "hostile"]);
    }
    cargo
}

fn cargo_home() -> Option<PathBuf> {
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo"));
    std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(home)
}
