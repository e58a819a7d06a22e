//! Measures a container's cold start, from the request to containerd to start its shim to the first
//! byte of the container's output.

use std::{
    fs::File,
    io::Read,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{ensure, Context, Result};
use caisson_tests::{Container, Node, Runtime};
use containerd_client::{
    services::v1::{snapshots::MountsRequest, CreateTaskRequest, StartRequest},
    tonic::Request,
    with_namespace,
};
use nix::{sys::stat::Mode, unistd::mkfifo};

/// Measures one start. The time does not include what containerd does before (snapshot, container)
/// and after (remove).
pub fn time(node: &Node) -> Result<Duration> {
    let image = node.image("busybox")?;
    let id = node.next_id();
    let runtime = Runtime::Caisson.name();
    let command = ["sh", "-c", "echo ready; exec sleep 1000"];
    let create = ["containers", "create", "--runtime", runtime, &image, &id];
    node.ctr(create.iter().chain(&command))?
        .ok()
        .context("ctr containers create")?;
    let _removed = Container::adopt(node, &id);
    let output = node.dir().join(format!("{id}.stdout"));
    mkfifo(&output, Mode::S_IRWXU).context("mkfifo")?;
    // Opening for both reading and writing does not block.
    let mut reader = File::options().read(true).write(true).open(&output)?;

    let start = Instant::now();
    start_task(node, &id, &output)?;
    let mut first = [0];
    reader.read_exact(&mut first)?;
    let time = start.elapsed();
    ensure!(first == *b"r", "the first byte is {first:?}");
    Ok(time)
}

fn start_task(node: &Node, id: &str, output: &Path) -> Result<()> {
    let namespace = node.tag();
    let mounts = MountsRequest {
        snapshotter: "overlayfs".into(),
        key: id.into(),
    };
    node.call(|client| async move {
        let mounts = client
            .snapshots()
            .mounts(with_namespace!(mounts, namespace))
            .await?;
        let create = CreateTaskRequest {
            container_id: id.into(),
            rootfs: mounts.into_inner().mounts,
            stdout: output.display().to_string(),
            ..Default::default()
        };
        let mut tasks = client.tasks();
        tasks.create(with_namespace!(create, namespace)).await?;
        let start = StartRequest {
            container_id: id.into(),
            exec_id: String::new(),
        };
        tasks.start(with_namespace!(start, namespace)).await?;
        Ok(())
    })
}
