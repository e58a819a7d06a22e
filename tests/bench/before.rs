//! Another build of Caisson that is measured in turns with this one: `CAISSON_BENCH_BEFORE` names
//! its `target/dist`. It has a containerd of its own.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use caisson_tests::{
    command,
    cri::CriNode,
    node::{Node, LIMIT},
};
use serde_json::{json, Value};

/// The keys of the configuration that every build knows.
const KEYS: [&str; 5] = ["state_dir", "store_dir", "hypervisor", "guest", "vm"];
/// What an older build does not know of those.
const NEWER: [(&str, &str); 1] = [("/vm", "scratch")];
/// The keys of the configuration that name a file of the build, each with that file.
const FILES: [(&str, &str); 5] = [
    ("/hypervisor/virtiofsd", "libexec/virtiofsd"),
    ("/hypervisor/vsock_daemon", "libexec/vhost-device-vsock"),
    ("/guest/kernel", "guest/vmlinux"),
    ("/guest/initramfs", "guest/initramfs.cpio"),
    ("/guest/modules", "guest/modules.squashfs"),
];

/// Starts a node of the other build, if there is one.
pub fn node() -> Result<Option<Node>> {
    let Some(dist) = dist()? else { return Ok(None) };
    let node = Node::start_with(|config| configure(&dist, config))?;
    put_programs(&node, &dist)?;
    build_template(&node, &dist)?;
    start_once(&node)?;
    Ok(Some(node))
}

/// Starts a node of the other build that serves CRI, if there is one.
pub fn cri_node() -> Result<Option<CriNode>> {
    let Some(dist) = dist()? else { return Ok(None) };
    let node = CriNode::start_with(|config| configure(&dist, config))?;
    put_programs(&node, &dist)?;
    build_template(&node, &dist)?;
    node.image("busybox")?;
    start_once(&node)?;
    Ok(Some(node))
}

fn dist() -> Result<Option<PathBuf>> {
    let Some(named) = env::var_os("CAISSON_BENCH_BEFORE") else {
        return Ok(None);
    };
    let dist = fs::canonicalize(&named);
    let dist = dist.with_context(|| format!("CAISSON_BENCH_BEFORE: {}", named.display()))?;
    Ok(Some(dist))
}

fn configure(dist: &Path, config: &mut Value) {
    if let Some(config) = config.as_object_mut() {
        config.retain(|key, _| KEYS.contains(&key.as_str()));
    }
    for (table, key) in NEWER {
        if let Some(table) = config.pointer_mut(table).and_then(Value::as_object_mut) {
            table.remove(key);
        }
    }
    for (key, file) in FILES {
        if let Some(value) = config.pointer_mut(key) {
            *value = json!(dist.join(file));
        }
    }
}

fn put_programs(node: &Node, dist: &Path) -> Result<()> {
    let link = || {
        fs::remove_dir_all(node.programs())?;
        symlink(dist.join("bin"), node.programs())
    };
    link().context("link the programs of the build before")
}

/// Makes the template of that build, since no pod waits for one.
fn build_template(node: &Node, dist: &Path) -> Result<()> {
    let mut build = Command::new(dist.join("bin/caisson"));
    build.env("CAISSON_CONFIG", node.config_file());
    command::run(build.args(["template", "build"]), None, LIMIT)?
        .ok()
        .map(drop)
}

/// Starts a container, since the first start of a node finds out about KVM, which takes time.
fn start_once(node: &Node) -> Result<()> {
    node.image("busybox")?;
    let first = node.container("busybox").args(["true"]);
    first.run()?.ok().map(drop)
}
