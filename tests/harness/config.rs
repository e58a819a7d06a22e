//! Writes the configuration files of a test node: containerd's, with and without its CRI plugin,
//! and Caisson's.

use std::path::{Path, PathBuf};

use caisson_node::config::program_of;
use serde_json::{json, Value};

use crate::{
    cri::{network, registry},
    fixture, gvisor,
    paths::{self, Containerd, Start},
    Runtime,
};

/// The name of the shim's program.
pub const SHIM: &str = "containerd-shim-caisson-v2";

/// Returns the folder of a test node that comes first in its search for programs, and has its shim.
pub fn programs(dir: &Path) -> PathBuf {
    dir.join("programs")
}

/// Returns containerd's config.toml with all paths below `dir`, without CRI and without any plugin
/// that would look at the host's own paths.
///
/// Both 1.6 and 2.x read version 2 of the format.
pub fn containerd(dir: &Path) -> String {
    let cri = r#"
  "io.containerd.grpc.v1.cri",
  "io.containerd.cri.v1.images",
  "io.containerd.cri.v1.runtime","#;
    base(dir, 2, cri)
}

/// Like [`containerd`], with the CRI plugin: the runtime classes `runc` and `sandbox` (on 2.x also
/// `sandbox-shim`, and `sandbox-PRESET` for each preset), and the node's own network and images.
pub fn containerd_with_cri(dir: &Path, version: Containerd, presets: &[String]) -> String {
    let caisson = Runtime::Caisson.name();
    let runc = Runtime::Runc.name();
    let runsc = Runtime::Gvisor.name();
    let gvisor = gvisor::config_file(dir);
    let gvisor = gvisor.display();
    // As `caisson node install` has them.
    let of_program = |program: &str| {
        let program = programs(dir).join(program);
        let program = program.display();
        match version {
            Containerd::V1_6 => format!("runtime_type = \"{program}\""),
            Containerd::V1_7 | Containerd::V2 => {
                format!("runtime_type = \"{runc}\"\nruntime_path = \"{program}\"")
            }
        }
    };
    let sandbox = match version {
        Containerd::V1_6 => format!("runtime_type = \"{caisson}\""),
        Containerd::V1_7 | Containerd::V2 => of_program(SHIM),
    };
    let pause = fixture::full_name("pause");
    let hosts = registry::hosts_dir(dir);
    let hosts = hosts.display();
    let conf_dir = network::conf_dir(dir);
    let conf_dir = conf_dir.display();
    let bin_dir = network::PLUGINS;
    // The settings for which 2.x has other names.
    let (format, images, runtime, version_only, bin_dirs) = match version {
        Containerd::V1_6 | Containerd::V1_7 => {
            let cri = "io.containerd.grpc.v1.cri";
            let image = format!("sandbox_image = \"{pause}\"");
            (2, cri, cri, image, format!("bin_dir = \"{bin_dir}\""))
        }
        Containerd::V2 => (
            3,
            "io.containerd.cri.v1.images",
            "io.containerd.cri.v1.runtime",
            // Do not wait longer for an exec whose child keeps the streams open.
            "drain_exec_sync_io_timeout = \"10s\"".into(),
            format!("bin_dirs = [\"{bin_dir}\"]"),
        ),
    };
    let mut config = base(dir, format, "");
    config.push_str(&format!(
        r#"
[plugins."{runtime}"]
{version_only}
# Tests may run without CAP_SYS_RESOURCE.
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true

[plugins."{runtime}".cni]
{bin_dirs}
conf_dir = "{conf_dir}"

[plugins."{runtime}".containerd]
default_runtime_name = "runc"

[plugins."{runtime}".containerd.runtimes.runc]
runtime_type = "{runc}"

[plugins."{runtime}".containerd.runtimes.sandbox]
{sandbox}
pod_annotations = ["caisson.dev/*"]
container_annotations = ["caisson.dev/*"]
privileged_without_host_devices = true

[plugins."{runtime}".containerd.runtimes.gvisor]
runtime_type = "{runsc}"
[plugins."{runtime}".containerd.runtimes.gvisor.options]
TypeUrl = "runtimeoptions.v1.Options"
ConfigPath = "{gvisor}"

[plugins."{images}".registry]
config_path = "{hosts}"
"#
    ));
    for preset in presets {
        let program = of_program(&program_of(preset));
        config.push_str(&format!(
            r#"
[plugins."{runtime}".containerd.runtimes.sandbox-{preset}]
{program}
pod_annotations = ["caisson.dev/*"]
container_annotations = ["caisson.dev/*"]
privileged_without_host_devices = true
"#
        ));
    }
    if version == Containerd::V2 {
        config.push_str(&format!(
            r#"
[plugins."{images}".pinned_images]
sandbox = "{pause}"

[plugins."{runtime}".containerd.runtimes.sandbox-shim]
runtime_type = "{caisson}"
sandboxer = "shim"
pod_annotations = ["caisson.dev/*"]
container_annotations = ["caisson.dev/*"]
privileged_without_host_devices = true
"#
        ));
    }
    config
}

fn base(dir: &Path, format: u32, disabled: &str) -> String {
    let dir = dir.display();
    format!(
        r#"version = {format}
root = "{dir}/root"
state = "{dir}/run"
oom_score = 0
disabled_plugins = [{disabled}
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

/// Returns the names of the presets of Caisson's configuration.
pub fn presets(caisson: &Value) -> Vec<String> {
    let presets = caisson["presets"].as_object();
    presets
        .into_iter()
        .flatten()
        .map(|(name, _)| name.clone())
        .collect()
}

/// Returns Caisson's configuration as a value, so that a test can change a key before it is written
/// as TOML.
pub fn caisson(dir: &Path, start: Start) -> Value {
    let dist = paths::dist();
    json!({
        "state_dir": dir.join("state"),
        "store_dir": dir.join("store"),
        "hypervisor": {
            "qemu": paths::qemu(),
            "virtiofsd": dist.join("libexec/virtiofsd"),
            "vsock_daemon": dist.join("libexec/vhost-device-vsock"),
            "accelerator": std::env::var("CAISSON_TEST_ACCELERATOR").unwrap_or_else(|_| "auto".into()),
        },
        "guest": {
            "kernel": dist.join("guest/vmlinux"),
            "initramfs": dist.join("guest/initramfs.cpio"),
            "modules": dist.join("guest/modules.squashfs"),
        },
        "vm": {
            "default_cpus": 1,
            "default_memory_mib": 256,
            "templates": start != Start::Cold,
            "scratch": std::env::var("CAISSON_TEST_SCRATCH").unwrap_or_else(|_| "shared".into()),
        },
        "pool": { "size": u32::from(start == Start::Pool) },
        "skills": { "sources": { "shelf": { "type": "directory", "path": dir.join("shelf") } } },
        // Allows what the tests ask for: pods are in the namespace `tests`, containers of `ctr` in
        // the node's namespace.
        "policy": {
            "annotations": { "caisson.dev/devices=fuse": ["tests", "cst*"] },
            "sources": { "shelf": ["tests", "cst*"] },
        },
        "log": { "level": std::env::var("CAISSON_TEST_LOG").unwrap_or_else(|_| "debug".into()) },
    })
}
