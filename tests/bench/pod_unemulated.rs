//! Measures what the shim and the agent do for a container of a pod, on this host without a VM. A
//! guest would take this time if nothing were emulated. containerd's own part is not included.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use caisson_oci::NodeConfig;
use caisson_shim::{
    events::Events,
    pod::{CreateRequest, Pod},
    streams::Stdio,
};
use caisson_tests::paths;
use caisson_vmm::fake::FakeVmm;
use nix::{sys::stat::Mode, unistd::mkfifo};
use serde_json::{json, Value};
use tokio::io::AsyncReadExt;

use crate::table::Series;

const SANDBOX: &str = "bench";
const LIMIT: Duration = Duration::from_secs(30);

/// Measures the times from a create to the first byte.
#[tokio::main]
pub async fn measure(rounds: usize) -> Result<Series> {
    let dir = tempfile::tempdir()?;
    let accelerator = "[hypervisor]\naccelerator = 'tcg'".to_owned();
    let mut config = NodeConfig::parse(&[("bench".to_owned(), accelerator)])?;
    config.state_dir = dir.path().join("state");
    config.store_dir = dir.path().join("store");
    let vmm = Arc::new(FakeVmm::new(paths::agent()));
    // Nothing listens at this address, so events are queued.
    let nowhere = dir.path().join("none").display().to_string();
    let events = Events::new(nowhere, SANDBOX.to_owned());
    let pod = Pod::new(SANDBOX.to_owned(), SANDBOX.to_owned(), config, vmm, events);
    let measured = containers(&pod, dir.path(), rounds).await;
    pod.shutdown().await;
    measured
}

async fn containers(pod: &Arc<Pod>, dir: &Path, rounds: usize) -> Result<Series> {
    let sandbox = request(dir, SANDBOX, "sandbox", Stdio::default())?;
    pod.create(sandbox).await.map_err(told)?;
    pod.start(SANDBOX, "").await.map_err(told)?;
    let mut times = Series::new("Caisson without containerd, not emulated");
    for round in 0..=rounds {
        let id = format!("c{round}");
        let fifo = dir.join(&id);
        mkfifo(&fifo, Mode::S_IRWXU)?;
        let mut reader = tokio::net::unix::pipe::OpenOptions::new().open_receiver(&fifo)?;
        let stdio = Stdio {
            stdout: fifo.display().to_string(),
            ..Default::default()
        };
        let request = request(dir, &id, "container", stdio)?;
        let start = Instant::now();
        pod.create(request).await.map_err(told)?;
        pod.start(&id, "").await.map_err(told)?;
        tokio::time::timeout(LIMIT, reader.read_u8())
            .await
            .context("no output")??;
        // The first container is left out, since it is the first of the pod.
        if round > 0 {
            times.add(start.elapsed());
        }
        pod.kill(&id, "", libc::SIGKILL as u32, true)
            .await
            .map_err(told)?;
        let (process, ..) = pod.process(&id, "").map_err(told)?;
        tokio::time::timeout(LIMIT, process.exited()).await?;
        pod.delete(&id, "").await.map_err(told)?;
    }
    Ok(times)
}

fn told(error: caisson_shim::Error) -> anyhow::Error {
    anyhow::Error::msg(error.chain())
}

fn request(dir: &Path, id: &str, role: &str, stdio: Stdio) -> Result<CreateRequest> {
    let bundle = dir.join("bundles").join(id);
    let root = bundle.join("rootfs");
    for folder in ["bin", "proc", "dev", "sys"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    std::os::unix::fs::symlink("busybox", root.join("bin/sh"))?;
    fs::write(bundle.join("config.json"), spec(role).to_string())?;
    Ok(CreateRequest {
        id: id.to_owned(),
        bundle,
        rootfs: Vec::new(),
        stdio,
    })
}

/// Returns a spec with the mounts that containerd asks for.
fn spec(role: &str) -> Value {
    let mount = |destination: &str, fs_type: &str, options: &[&str]| json!({"destination": destination, "type": fs_type, "source": fs_type, "options": options});
    json!({
        "ociVersion": "1.0.2",
        "annotations": {
            "io.kubernetes.cri.container-type": role,
            "io.kubernetes.cri.sandbox-id": SANDBOX,
        },
        "process": {
            "cwd": "/",
            "args": ["/bin/sh", "-c", "echo ready; exec busybox sleep 1000"],
            "env": ["PATH=/bin"],
            "user": {"uid": 0, "gid": 0},
        },
        "root": {"path": "rootfs"},
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {"namespaces": [
            {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"},
        ]},
    })
}
