//! Tests pods whose VM or shim is killed: CRI shows the end with a reason, the pod can be stopped
//! and removed, and nothing is left. The tests run one at a time, since they count what is left on
//! the whole node.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use caisson_tests::{
    command,
    cri::{api::ContainerState, Container, CriNode, Pod, NAMESPACE},
    leftovers::alone,
    proc, Leftovers, Runtime,
};
use rstest::rstest;

/// The time within which CRI has to show the end.
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

/// QEMU is stopped, so the guest answers nothing and its processes do not end. With runc, a stopped
/// container serves as the control.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn stopped_vm_is_removed_within_ten_seconds(#[case] runtime: Runtime) -> Result<()> {
    let _alone = alone();
    let node = CriNode::shared();
    node.image("busybox")?;
    let before = Leftovers::count(node);
    let pod = node.pod().runtime(runtime).start()?;
    let container = pod.container("busybox").args(["sleep", "1000"]).start()?;
    let stopped = match runtime {
        Runtime::Caisson => pod.vmm()?,
        Runtime::Runc | Runtime::Gvisor => init(&container)?,
    };
    proc::kill(stopped, libc::SIGSTOP);
    let started = Instant::now();
    pod.stop()?;
    let stop = started.elapsed();
    let status = container.status()?;
    let started = Instant::now();
    pod.remove()?;
    let remove = started.elapsed();
    println!("{runtime:?}: stop {stop:?}, remove {remove:?}");
    assert!(stop < SOON && remove < SOON, "{stop:?} {remove:?}");
    assert_eq!(status.exit_code, 137, "{status:?}");
    Leftovers::none_since(node, &before)
}

/// The pod has nothing but its sandbox.
#[test]
fn stopped_vm_without_containers_is_removed_within_ten_seconds() -> Result<()> {
    let _alone = alone();
    let node = CriNode::shared();
    let before = Leftovers::count(node);
    let pod = node.pod().start()?;
    proc::kill(pod.vmm()?, libc::SIGSTOP);
    let started = Instant::now();
    pod.stop()?;
    pod.remove()?;
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    Leftovers::none_since(node, &before)
}

/// The VM's kernel panics, as it does when its PID 1 ends.
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

/// Returns the host pid of the init of a runc container.
fn init(container: &Container<'_>) -> Result<u32> {
    let mut ctr = container.pod().node().ctr_in(NAMESPACE);
    let listed = command::run(ctr.args(["tasks", "list"]), None, SOON)?.ok()?;
    let text = listed.text();
    let line = text.lines().find(|line| line.starts_with(container.id()));
    let pid = line.and_then(|line| line.split_whitespace().nth(1));
    pid.context("no task")?.parse().context("pid")
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
    // A killed runc shim leaves its containers running, and their cgroups.
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
