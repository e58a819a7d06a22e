//! Tests that a kill ends the task with an error, soon, and leaves nothing behind.
//!
//! The tests of this file count what is on the host, so they run one at a time.

use std::time::{Duration, Instant};

use anyhow::{ensure, Result};
use caisson_tests::{
    command, leftovers::alone, node::LIMIT, proc, task, Container, Leftovers, Node, Runtime,
};
use containerd_client::types::v1::Status;
use rstest::rstest;

/// The time within which a task has to end after one of its parts was killed.
const SOON: Duration = Duration::from_secs(10);

#[rstest]
#[case("qemu")]
#[case("virtiofsd-")]
#[case("vsock")]
fn process_of_the_vm_killed_ends_the_task_with_an_error(#[case] role: &str) -> Result<()> {
    let _alone = alone();
    let node = Node::shared();
    let before = settled(node)?;
    let container = running(node)?;
    proc::kill(container.vm_process(role)?, libc::SIGKILL);
    assert_ne!(container.wait_within(SOON)?, 0, "after kill -9 of {role}");
    container.delete()?;
    Leftovers::none_since(node, &before)
}

#[test]
fn virtiofsd_of_a_home_killed_ends_the_task_with_an_error() -> Result<()> {
    let _alone = alone();
    let node = Node::shared();
    let before = settled(node)?;
    let container = node
        .container("busybox")
        .annotation("caisson.dev/home", "persistent/one");
    let container = container.args(["sleep", "1000"]).start()?;
    let mut daemons = container.vm_processes()?;
    daemons.retain(|(role, _)| role.starts_with("virtiofsd-"));
    let (role, pid) = daemons.pop().unwrap_or_default();
    proc::kill(pid, libc::SIGKILL);
    assert_ne!(container.wait_within(SOON)?, 0, "after kill -9 of {role}");
    container.delete()?;
    Leftovers::none_since(node, &before)
}

/// The agent is the guest's init, so a panic of the guest's kernel kills it.
#[test]
fn guest_that_panics_ends_the_task_with_an_error() -> Result<()> {
    let _alone = alone();
    let node = Node::shared();
    let before = settled(node)?;
    let container = node
        .container("busybox")
        .flag("--cap-add", "CAP_SYS_ADMIN")
        .args(["sleep", "1000"])
        .start()?;
    let exec = container
        .process([
            "sh",
            "-c",
            "mount -t proc proc /mnt && echo c > /mnt/sysrq-trigger",
        ])
        .spawn()?;
    assert_ne!(container.wait_within(SOON)?, 0);
    assert_ne!(
        exec.finish(SOON)?.code,
        0,
        "the exec that did it ended well"
    );
    container.delete()?;
    Leftovers::none_since(node, &before)
}

/// The guest's kernel executes no instructions, so none of its processes ends.
#[test]
fn task_in_a_vm_that_stands_still_is_killed_within_ten_seconds() -> Result<()> {
    let _alone = alone();
    let node = Node::shared();
    let before = settled(node)?;
    let container = running(node)?;
    proc::kill(container.vmm()?, libc::SIGSTOP);
    let started = Instant::now();
    container.kill("SIGKILL")?;
    assert_eq!(container.wait_within(SOON)?, 137);
    ensure!(started.elapsed() < SOON, "{:?}", started.elapsed());
    container.delete()?;
    let told = "after SIGKILL: stopping the pod's VM";
    ensure!(node.log().contains(told), "the log does not say why");
    Leftovers::none_since(node, &before)
}

/// Nothing kills the VM or calls it. Its agent no longer answers.
#[test]
fn vm_that_stands_still_is_found_and_its_task_ends_with_an_error() -> Result<()> {
    let _alone = alone();
    let node = Node::shared();
    let before = settled(node)?;
    let container = running(node)?;
    proc::kill(container.vmm()?, libc::SIGSTOP);
    assert_eq!(container.wait_within(LIMIT)?, 255);
    container.delete()?;
    let told = "its agent has not answered 3 pings in a row";
    ensure!(node.log().contains(told), "the log does not say why");
    Leftovers::none_since(node, &before)
}

#[test]
fn shim_killed_ends_the_task_and_delete_removes_the_vm() -> Result<()> {
    let _alone = alone();
    let node = Node::shared();
    let before = settled(node)?;
    let container = running(node)?;
    let start = Instant::now();
    proc::kill(container.shim()?, libc::SIGKILL);
    // containerd calls the shim's `delete` by itself and then either forgets the task or reports it
    // as stopped.
    command::poll("the task's end", SOON, || {
        let state = task::state(node, container.id(), "");
        state.map_or(Some(()), |process| {
            (process.status() == Status::Stopped).then_some(())
        })
    })?;
    ensure!(start.elapsed() < SOON);
    let _ = node.ctr(["tasks", "delete", "--force", container.id()])?;
    container.remove()?;
    Leftovers::none_since(node, &before)
}

#[test]
fn everything_killed_at_once_is_removed_by_delete() -> Result<()> {
    let _alone = alone();
    let node = Node::shared();
    let before = settled(node)?;
    let container = running(node)?;
    let mut pids = vec![container.shim()?];
    pids.extend(container.vm_processes()?.iter().map(|(_, pid)| pid));
    pids.iter().for_each(|&pid| proc::kill(pid, libc::SIGKILL));
    command::poll("the task's end", SOON, || {
        (!task::is_running(node, container.id())).then_some(())
    })?;
    let _ = node.ctr(["tasks", "delete", "--force", container.id()])?;
    container.remove()?;
    Leftovers::none_since(node, &before)
}

/// The shim is killed before it has answered `create`.
#[test]
fn shim_killed_while_the_vm_boots_leaves_nothing() -> Result<()> {
    let _alone = alone();
    let node = Node::shared();
    let before = settled(node)?;
    let builder = node.container("busybox").args(["true"]);
    let container = Container::adopt(node, builder.id());
    let starting = builder.spawn()?;
    let qemu = command::poll("QEMU", Duration::from_secs(10), || container.vmm().ok())?;
    proc::kill(container.shim()?, libc::SIGKILL);
    assert_ne!(starting.finish(LIMIT)?.code, 0);
    command::poll("QEMU's end", SOON, || {
        (!proc::is_running(qemu)).then_some(())
    })?;
    let _ = node.ctr(["containers", "delete", container.id()])?;
    Leftovers::none_since(node, &before)
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn container_that_ended_leaves_nothing(#[case] runtime: Runtime) -> Result<()> {
    let _alone = alone();
    let node = Node::shared();
    let before = settled(node)?;
    assert_eq!(
        node.container("busybox")
            .runtime(runtime)
            .sh("sleep 1000 & exit 3")
            .run()?
            .code,
        3
    );
    Leftovers::none_since(node, &before)
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn container_that_could_not_start_leaves_nothing(#[case] runtime: Runtime) -> Result<()> {
    let _alone = alone();
    let node = Node::shared();
    let before = settled(node)?;
    assert_ne!(
        node.container("busybox")
            .runtime(runtime)
            .args(["no-such-command"])
            .run()?
            .code,
        0
    );
    Leftovers::none_since(node, &before)
}

#[rstest]
#[case::runc(Runtime::Runc, false)]
#[case::runc_killed(Runtime::Runc, true)]
#[case::caisson(Runtime::Caisson, false)]
#[case::caisson_killed(Runtime::Caisson, true)]
fn containerd_restarted_finds_its_tasks_usable(
    #[case] runtime: Runtime,
    #[case] killed: bool,
) -> Result<()> {
    let _alone = alone();
    let node = Node::shared();
    let before = settled(node)?;
    let container = node
        .container("busybox")
        .runtime(runtime)
        .args(["sleep", "1000"])
        .start()?;
    container.sh("echo before > /note")?;
    node.stop_containerd(killed)?;
    node.start_containerd()?;
    assert_eq!(container.state()?.status(), Status::Running);
    assert_eq!(container.sh("cat /note; echo after")?, "before\nafter");
    container.kill("SIGKILL")?;
    assert_eq!(container.wait()?, 137);
    container.delete()?;
    Leftovers::none_since(node, &before)
}

#[test]
fn task_that_ended_while_containerd_was_away_is_known_to_have_ended() -> Result<()> {
    let _alone = alone();
    let node = Node::shared();
    let before = settled(node)?;
    let container = running(node)?;
    node.stop_containerd(false)?;
    proc::kill(container.vmm()?, libc::SIGKILL);
    std::thread::sleep(Duration::from_secs(1));
    node.start_containerd()?;
    command::poll("the task's end", SOON, || {
        (!task::is_running(node, container.id())).then_some(())
    })?;
    let _ = node.ctr(["tasks", "delete", "--force", container.id()])?;
    container.remove()?;
    Leftovers::none_since(node, &before)
}

fn running(node: &Node) -> Result<Container<'_>> {
    node.container("busybox").args(["sleep", "1000"]).start()
}

/// Returns what exists once the image is imported and nothing of an earlier test remains.
fn settled(node: &Node) -> Result<Leftovers> {
    node.image("busybox")?;
    let _ = command::poll("quiet", Duration::from_secs(5), || {
        Leftovers::count(node).is_empty().then_some(())
    });
    Ok(Leftovers::count(node))
}
