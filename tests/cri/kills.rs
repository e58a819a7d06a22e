//! A pod whose VM or shim is killed: CRI shows its end with a reason, it can be stopped and removed, and nothing is left.
//! One test at a time: what is left is counted on the whole node.

use std::time::Duration;

use anyhow::{Context, Result};
use caisson_tests::{
    command,
    cri::{api::ContainerState, Container, CriNode, Pod},
    leftovers::alone,
    proc, Leftovers, Runtime,
};
use rstest::rstest;

/// Until then CRI has to know it.
const SOON: Duration = Duration::from_secs(10);

#[rstest]
#[case::qemu("qemu")]
#[case::vsock("vsock")]
#[case::virtiofsd("virtiofsd")]
fn process_of_the_vm_killed_ends_the_pod(#[case] role: &str) -> Result<()> {
    killed(Runtime::Caisson, |pod| pod.vm_process(role))
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn shim_killed_ends_the_pod(#[case] runtime: Runtime) -> Result<()> {
    killed(runtime, |pod| pod.shim())
}

/// The kernel of the VM panics, as it does when its PID 1 ends.
#[test]
fn panic_of_the_guest_ends_the_pod() -> Result<()> {
    let _alone = alone();
    let node = CriNode::shared();
    node.image("busybox")?;
    let before = Leftovers::count(node);
    let pod = node.pod().privileged().start()?;
    let container = pod.container("busybox").privileged();
    let container = container.args(["sleep", "1000"]).start()?;
    let _ = container.exec_within(["sh", "-c", "echo c > /proc/sysrq-trigger"], SOON);
    ended(&pod, &container)?;
    pod.stop()?;
    pod.remove()?;
    Leftovers::none_since(node, &before)
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn pod_goes_on_when_containerd_restarts(#[case] runtime: Runtime) -> Result<()> {
    let _alone = alone();
    let node = CriNode::start()?;
    let pod = node.pod().runtime(runtime).start()?;
    let container = pod.container("busybox").args(["sleep", "1000"]).start()?;
    for hard in [false, true] {
        node.stop_containerd(hard)?;
        node.start_containerd()?;
        command::poll("the pod to be ready", SOON, || {
            pod.is_ready().ok()?.then_some(())
        })?;
        assert_eq!(container.sh("echo still here")?, "still here");
    }
    let second = pod.container("busybox").args(["echo", "second"]);
    assert_eq!(second.run()?.ok()?.line(), "second");
    Ok(())
}

fn killed(runtime: Runtime, who: impl FnOnce(&Pod) -> Result<u32>) -> Result<()> {
    let _alone = alone();
    let node = CriNode::shared();
    node.image("busybox")?;
    let before = Leftovers::count(node);
    let pod = node.pod().runtime(runtime).start()?;
    let container = pod.container("busybox").args(["sleep", "1000"]).start()?;
    proc::kill(who(&pod)?, libc::SIGKILL);
    ended(&pod, &container)?;
    pod.stop()?;
    pod.remove()?;
    // runc's shim, once killed, leaves its containers running and their cgroups.
    if runtime == Runtime::Caisson {
        Leftovers::none_since(node, &before)?;
    }
    Ok(())
}

fn ended(pod: &Pod<'_>, container: &Container<'_>) -> Result<()> {
    let mut last = None;
    command::poll("pod and container to have ended", SOON, || {
        let status = container.status().ok()?;
        let exited = status.state() == ContainerState::ContainerExited && !status.reason.is_empty();
        let ready = pod.is_ready().ok()?;
        last = Some(status);
        (exited && !ready).then_some(())
    })
    .with_context(|| format!("{:?} {last:?}", pod.status()))
}
