//! gVisor beside Caisson, to compare the two. It is there after `cargo xtask test-tools --gvisor`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::json;

use crate::paths;

/// Whether gVisor is there.
pub fn is_there() -> bool {
    bin().join("containerd-shim-runsc-v1").exists()
}

/// Returns the folder of its programs.
pub fn bin() -> PathBuf {
    paths::target().join("cache/tools/gvisor/bin")
}

/// Returns the path of its shim's configuration, in a node's folder.
pub fn config_file(dir: &Path) -> PathBuf {
    dir.join("runsc.toml")
}

/// Writes that configuration. runsc sets up no cgroups, which it can't on a host with cgroup
/// version 1.
pub fn configure(dir: &Path) -> Result<()> {
    let config = json!({
        "binary_name": bin().join("runsc"),
        "runsc_config": { "platform": "systrap", "ignore-cgroups": "true" },
    });
    fs::write(config_file(dir), toml::to_string(&config)?)
        .context("write the configuration of gVisor's shim")
}
