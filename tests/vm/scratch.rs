//! Tests roots on disks (`caisson.dev/scratch`) of containers that are started again: containerd
//! keeps the snapshot of a container when its task has ended.

use std::time::Duration;

use anyhow::{ensure, Result};
use caisson_tests::{proc, Container, Node, Runtime};
use rstest::rstest;

const SCRATCH: &str = "caisson.dev/scratch";
/// The time within which a task has to end after its VM was killed.
const SOON: Duration = Duration::from_secs(10);

/// How a container keeps what it writes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Runc,
    Shared,
    Disk,
}
use Kind::{Disk, Runc, Shared};

#[rstest]
fn files_of_the_root_are_there_when_the_container_starts_again(
    #[values(Runc, Shared, Disk)] kind: Kind,
) -> Result<()> {
    let container = sleeping(kind)?;
    container.sh("echo kept > /file; rm /etc/group; chmod 711 /")?;
    container.kill("KILL")?;
    container.wait_within(SOON)?;
    start_again(&container)?;
    let line = "cat /file; ls /etc/group; stat -c %a /";
    assert_eq!(container.exec(["sh", "-c", line])?.text(), "kept\n711\n");
    Ok(())
}

#[rstest]
fn files_of_the_root_that_were_synced_outlive_a_killed_vm(
    #[values(Shared, Disk)] kind: Kind,
) -> Result<()> {
    let container = sleeping(kind)?;
    let line = "mkdir /d; i=0; while [ $i -lt 200 ]; do echo $i > /d/$i; i=$((i+1)); done; sync; \
                (while :; do echo more >> /more; done) >/dev/null 2>&1 &";
    container.sh(line)?;
    proc::kill(container.vm_process("qemu")?, libc::SIGKILL);
    container.wait_within(SOON)?;
    start_again(&container)?;
    assert_eq!(container.sh("cat /d/* | sort -n | uniq | wc -l")?, "200");
    Ok(())
}

fn sleeping(kind: Kind) -> Result<Container<'static>> {
    let container = Node::shared().container("busybox");
    let container = container.args(["sleep", "1000"]);
    let container = match kind {
        Runc => container.runtime(Runtime::Runc),
        Shared => container.annotation(SCRATCH, "shared"),
        Disk => container.annotation(SCRATCH, "disk"),
    };
    container.start()
}

/// Starts a container whose task has ended.
fn start_again(container: &Container) -> Result<()> {
    let node = container.node();
    node.ctr(["tasks", "delete", container.id()])?;
    let started = node.ctr(["tasks", "start", "--detach", "--null-io", container.id()])?;
    ensure!(started.code == 0, "{}", started.errors());
    Ok(())
}
