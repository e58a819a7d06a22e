//! The two configuration files of a test node: containerd's and Caisson's.

use std::path::Path;

use serde_json::{json, Value};

use crate::paths;

/// containerd's config.toml: everything below `dir`, no CRI, no plugin that would look at the host's own places.
///
/// Version 2 of the format is read by 1.6 and by 2.x alike.
pub fn containerd(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"version = 2
root = "{dir}/root"
state = "{dir}/run"
oom_score = 0
disabled_plugins = [
  "io.containerd.grpc.v1.cri",
  "io.containerd.cri.v1.images",
  "io.containerd.cri.v1.runtime",
  "io.containerd.nri.v1.nri",
  "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.internal.v1.restart",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
address = "{dir}/c.sock"

[debug]
level = "info"

[plugins."io.containerd.internal.v1.opt"]
path = "{dir}/opt"
"#
    )
}

/// Caisson's configuration as a value, so that a test can change a key before it is written as TOML.
pub fn caisson(dir: &Path) -> Value {
    let dist = paths::dist();
    json!({
        "state_dir": dir.join("state"),
        "store_dir": dir.join("store"),
        "hypervisor": {
            "qemu": "/usr/bin/qemu-system-x86_64",
            "virtiofsd": dist.join("libexec/virtiofsd"),
            "vsock_daemon": dist.join("libexec/vhost-device-vsock"),
            "accelerator": std::env::var("CAISSON_TEST_ACCELERATOR").unwrap_or_else(|_| "auto".into()),
        },
        "guest": {
            "kernel": dist.join("guest/vmlinux"),
            "initramfs": dist.join("guest/initramfs.cpio"),
            "modules": dist.join("guest/modules.squashfs"),
        },
        "vm": { "default_cpus": 1, "default_memory_mib": 256 },
        "log": { "level": "debug" },
    })
}
