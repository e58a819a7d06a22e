//! Writes the configurations of the cluster's containerd and of Caisson.

use std::fs;

use anyhow::{Context, Result};

use crate::{components::PAUSE, layout::Layout, programs::CNI_PLUGINS};

/// Writes both. The chart adds Caisson's runtime ([`crate::caisson`]).
pub fn write(layout: &Layout) -> Result<()> {
    let dir = layout.dir().display();
    let mark = layout.mark();
    let config = format!(
        r#"version = 3
root = "{dir}/root"
state = "{dir}/run"
oom_score = 0
disabled_plugins = [
  "io.containerd.nri.v1.nri",
  "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.internal.v1.restart",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
address = "{dir}/c.sock"

[plugins."io.containerd.internal.v1.opt"]
path = "{dir}/containerd-opt"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE}"

[plugins."io.containerd.cri.v1.images".registry]
config_path = "{dir}/hosts"

[plugins."io.containerd.cri.v1.runtime"]
# Without CAP_SYS_RESOURCE it can't be lowered.
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
drain_exec_sync_io_timeout = "10s"

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{CNI_PLUGINS}"]
conf_dir = "{dir}/cni"

[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "runc"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"#
    );
    let path = layout.containerd_config();
    fs::write(&path, config).with_context(|| path.display().to_string())?;

    let caisson = format!(
        r#"# {mark}
state_dir = "{dir}/state"
store_dir = "{dir}/store"

[vm]
default_cpus = 1
default_memory_mib = 256
"#
    );
    let path = layout.caisson_config();
    fs::write(&path, caisson).with_context(|| path.display().to_string())
}
