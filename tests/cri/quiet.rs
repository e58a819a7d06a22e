//! Tests the log of a pod that has no problems: it must not have any warnings or errors, among
//! which a real one would be missed.

use std::{thread, time::Duration};

use anyhow::{ensure, Result};
use caisson_tests::{
    command,
    cri::{CriNode, NAMESPACE},
    Runtime,
};
use rstest::rstest;

/// The time within which everything that no start waits for is there.
const SETTLED: Duration = Duration::from_secs(14);
/// The time within which containerd has heard of an end and acted on it.
const HEARD: Duration = Duration::from_secs(2);
/// How long a container has to end by itself.
const GRACE: Duration = Duration::from_secs(10);

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn healthy_pod_life_logs_no_warning_and_no_error(#[case] runtime: Runtime) -> Result<()> {
    let node = CriNode::start()?;
    node.image("busybox")?;
    let before = node.log().len();

    let pod = node.pod().runtime(runtime).start()?;
    let first = pod.container("busybox").named("first", 0);
    first.sh("echo done; exit 3").run()?;
    let ends = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done";
    let second = pod.container("busybox").named("second", 0).sh(ends);
    let second = second.start()?;
    second.wait_for_output("ready")?;
    let third = pod.container("busybox").named("third", 0);
    let third = third.args(["sleep", "1000"]).start()?;
    assert_eq!(second.sh("echo from an exec")?, "from an exec");
    thread::sleep(SETTLED);
    for _ in 0..2 {
        second.stats()?;
        pod.stats()?;
        ensure!(pod.is_in_the_list_of_stats()?);
        for id in [pod.id(), third.id()] {
            let mut metrics = node.ctr_in(NAMESPACE);
            command::run(metrics.args(["tasks", "metrics", id]), None, GRACE)?.ok()?;
        }
    }
    second.stop(GRACE)?;
    second.remove()?;
    third.stop(Duration::ZERO)?;
    pod.stop()?;
    // A kubelet removes a pod later. containerd itself deletes the sandbox's task when it hears of
    // its end.
    thread::sleep(HEARD);
    pod.remove()?;

    let log = node.log();
    let noise: Vec<&str> = log[before..]
        .lines()
        // This message is containerd's own, and comes with runc too: containerd deletes a sandbox's
        // task twice at the same time and closes the connection of one call.
        .filter(|line| {
            !line.contains("failed to stop sandbox: failed to delete task: ttrpc: closed")
        })
        // This message is containerd's own too: runc's shim exits before it has read the answer to
        // its last event. The shim of Caisson waits for the answer.
        .filter(|line| {
            runtime != Runtime::Runc || !line.contains("failed sending message on channel")
        })
        // The first pod of a node without KVM says so for the node.
        .filter(|line| !line.contains("the VMs of this node are emulated"))
        .filter(|line| {
            ["warn", "error", "fatal", "panic"]
                .iter()
                .any(|level| line.contains(&format!("level={level}")))
        })
        .collect();
    assert!(noise.is_empty(), "{}", noise.join("\n"));
    Ok(())
}
