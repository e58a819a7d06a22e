//! Runs gVisor beside Caisson, to compare the two. It is there after `cargo xtask test-tools
//! --gvisor`.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::paths;

/// The runtime handler of a node with CRI.
pub const HANDLER: &str = "gvisor";

/// Returns the path of the program that containerd runs as the OCI runtime, in a node's folder.
pub fn wrapper(dir: &Path) -> PathBuf {
    dir.join("runsc")
}

/// Whether gVisor is there.
pub fn is_there() -> bool {
    runsc().exists()
}

fn runsc() -> PathBuf {
    paths::target().join("cache/tools/gvisor/bin/runsc")
}

/// Makes that program, if gVisor is there. It runs runsc without setting up cgroups, which runsc
/// does not do on a host with cgroup version 1. Returns whether it did.
pub fn install(dir: &Path) -> Result<bool> {
    if !is_there() {
        return Ok(false);
    }
    let wrapper = wrapper(dir);
    let script = format!(
        "#!/bin/sh\nexec {} --ignore-cgroups --platform=systrap \"$@\"\n",
        runsc().display()
    );
    fs::write(&wrapper, script).context("write the wrapper of runsc")?;
    fs::set_permissions(&wrapper, Permissions::from_mode(0o755))?;
    Ok(true)
}
