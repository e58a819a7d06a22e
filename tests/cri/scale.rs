//! Many containers, many pods, and nothing left of them. One test at a time: what is left is counted on the whole node.

use std::{thread, time::Duration};

use anyhow::Result;
use caisson_tests::{cri::CriNode, leftovers::alone, Leftovers, Runtime};
use rstest::rstest;

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn removed_pod_leaves_nothing(#[case] runtime: Runtime) -> Result<()> {
    let _alone = alone();
    let node = warm()?;
    let before = Leftovers::count(node);
    let pod = node.pod().runtime(runtime).start()?;
    let volume = pod.folder("volume")?;
    let running = pod.container("busybox").mount(&volume, "/volume");
    let running = running.args(["sleep", "1000"]).start()?;
    running.sh("touch /volume/file")?;
    let _ended = pod.container("busybox").args(["true"]).start()?;
    let _created = pod.container("busybox").args(["true"]).create()?;
    pod.stop()?;
    pod.remove()?;
    Leftovers::none_since(node, &before)
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn removed_pod_with_users_of_its_own_leaves_nothing(#[case] runtime: Runtime) -> Result<()> {
    let _alone = alone();
    let node = warm()?;
    let pod = || node.pod().runtime(runtime).own_users().start();
    // The first makes what the snapshotter keeps.
    pod()?.container("busybox").args(["true"]).run()?.ok()?;
    let before = Leftovers::count(node);
    let pod = pod()?;
    let volume = pod.folder("volume")?;
    let mut container = pod.container("busybox").args(["sleep", "1000"]);
    // containerd maps the owners of volumes from 2.0 on.
    if !node.containerd_version()?.starts_with("1.") {
        container = container.mount_mapped(&volume, "/volume");
    }
    container.start()?.sh("touch /tmp/file")?;
    pod.stop()?;
    pod.remove()?;
    Leftovers::none_since(node, &before)
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn removed_container_leaves_nothing_in_a_pod_that_goes_on(#[case] runtime: Runtime) -> Result<()> {
    let _alone = alone();
    let node = warm()?;
    let pod = node.pod().runtime(runtime).start()?;
    let before = Leftovers::count(node);
    let container = pod.container("busybox").args(["sleep", "1000"]).start()?;
    container.exec(["true"])?;
    container.stop(Duration::ZERO)?;
    container.remove()?;
    Leftovers::none_since(node, &before)
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn pod_that_cannot_start_leaves_nothing(#[case] runtime: Runtime) -> Result<()> {
    let _alone = alone();
    let node = warm()?;
    let before = Leftovers::count(node);
    let pod = node.pod().runtime(runtime).sysctl("no.such.sysctl", "1");
    assert!(pod.start().is_err());
    Leftovers::none_since(node, &before)
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn pod_of_twenty_containers_runs_each_of_them(#[case] runtime: Runtime) -> Result<()> {
    let _alone = alone();
    let node = warm()?;
    let before = Leftovers::count(node);
    let pod = node.pod().runtime(runtime).start()?;
    let containers: Vec<_> = (0..20)
        .map(|n| {
            let container = pod.container("busybox").env("NUMBER", &n.to_string());
            container.sh("echo number $NUMBER; exec sleep 1000").start()
        })
        .collect::<Result<_>>()?;
    for (n, container) in containers.iter().enumerate() {
        container.wait_for_output(&format!("number {n}\n"))?;
    }
    drop(containers);
    drop(pod);
    Leftovers::none_since(node, &before)
}

/// Four at a time, as two cpus can.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn twenty_pods_run_beside_each_other(#[case] runtime: Runtime) -> Result<()> {
    let _alone = alone();
    let node = warm()?;
    let before = Leftovers::count(node);
    let mut pods = Vec::new();
    for _ in 0..5 {
        let started = thread::scope(|scope| {
            let starts: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| node.pod().runtime(runtime).start()))
                .collect();
            let joined = starts.into_iter().map(|start| start.join());
            joined
                .map(|pod| pod.map_err(|_| anyhow::anyhow!("a start panicked"))?)
                .collect::<Result<Vec<_>>>()
        })?;
        pods.extend(started);
    }
    let mut addresses = pods
        .iter()
        .map(|pod| pod.ipv4())
        .collect::<Result<Vec<_>>>()?;
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 20);
    for pod in &pods {
        let output = pod.container("busybox").args(["hostname"]).run()?.ok()?;
        assert_eq!(output.line(), pod.hostname());
    }
    thread::scope(|scope| {
        for pod in pods {
            scope.spawn(move || drop(pod));
        }
    });
    Leftovers::none_since(node, &before)
}

/// The node with its image imported, so that no test sees the import's traces.
fn warm() -> Result<&'static CriNode> {
    let node = CriNode::shared();
    node.image("busybox")?;
    Ok(node)
}
