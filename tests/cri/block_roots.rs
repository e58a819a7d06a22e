//! Tests roots on block devices, on containerd 2.x: the snapshotter `blockfile` keeps an ext4 file
//! system in a file for each container.

use std::{fs, io::Write, process::Command, sync::OnceLock, time::Duration};

use anyhow::{ensure, Result};
use caisson_tests::{
    command,
    cri::{Container, CriNode, Pod, NAMESPACE},
    node::LIMIT,
    Node, Runtime,
};
use rstest::rstest;

const SNAPSHOTTER: &str = "blockfile";
/// The size of every snapshot in bytes.
const SIZE: u64 = 64 << 20;

#[test]
fn root_is_a_disk_of_the_vm_and_not_shared() -> Result<()> {
    let pod = pod(Runtime::Caisson)?;
    let container = sleeping(&pod)?;
    let root = container.sh("awk '$2 == \"/\" { print $1, $3 }' /proc/mounts")?;
    let (device, fs_type) = root.split_once(' ').unwrap_or_default();
    assert!(device.starts_with("/dev/vd"), "{root}");
    assert_eq!(fs_type, "ext4");
    let shared = pod.node().state_dir().join(pod.id()).join("shared");
    assert!(!shared.join(container.id()).exists());
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn kinds_of_files_are_as_in_the_image(#[case] runtime: Runtime) -> Result<()> {
    let line = "cd /zoo; stat -c '%n|%F|%a|%u|%g|%h|%t,%T' file owned setuid fifo null; readlink dangling; \
                test file -ef second-name && echo same; probe getxattr attribute user.colour";
    let pod = pod(runtime)?;
    let output = pod.container("files").sh(line).run()?.ok()?;
    let expected = "file|regular file|640|0|0|2|0,0
owned|regular file|604|1000|2000|1|0,0
setuid|regular file|4755|0|0|1|0,0
fifo|fifo|622|0|0|1|0,0
null|character special file|666|0|0|1|1,3
nowhere
same
blue";
    assert_eq!(output.line(), expected);
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn set_uid_program_runs_as_its_owner(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let container = sleeping(&pod)?;
    container.sh("echo user:x:1000:1000::/:/bin/sh >> /etc/passwd")?;
    container.sh("cp $(which probe) /bin/probe-of-root && chmod 4755 /bin/probe-of-root")?;
    let line = "su user -c 'probe-of-root write-at /root/file 0 text'; stat -c %u /root/file";
    assert_eq!(container.sh(line)?, "written\n0");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn full_root_is_no_space_left(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let container = sleeping(&pod)?;
    let line = "dd if=/dev/zero of=/fill bs=1M count=100 2>&1 | grep -o 'No space left on device'; rm /fill";
    assert_eq!(container.sh(line)?, "No space left on device");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn read_only_root_takes_no_writes(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let container = pod.container("busybox").read_only_root();
    let output = container.sh("touch /file").run()?;
    assert!(output.errors().contains("Read-only file system"));
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn written_files_are_in_the_snapshot_and_in_no_other(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let (first, second) = (sleeping(&pod)?, sleeping(&pod)?);
    first.sh("echo mine > /note")?;
    assert_eq!(second.sh("ls / | grep -c note; true")?, "0");
    first.stop(Duration::ZERO)?;
    assert_eq!(in_snapshot(&first, "note")?, "mine\n");
    Ok(())
}

#[test]
fn disks_of_removed_containers_are_gone_from_the_pod() -> Result<()> {
    let pod = pod(Runtime::Caisson)?;
    let first = sleeping(&pod)?;
    let disks = "grep -l '^r-' /sys/block/vd*/serial | wc -l";
    for _ in 0..3 {
        let next = sleeping(&pod)?;
        assert_eq!(first.sh(disks)?, "2");
        next.stop(Duration::ZERO)?;
        next.remove()?;
    }
    assert_eq!(first.sh(disks)?, "1");
    Ok(())
}

/// The shim does not look into a file system that a guest may have written.
#[test]
fn home_needs_its_path_where_the_host_does_not_see_the_users() -> Result<()> {
    let node = node();
    let home = |path: Option<&str>| {
        let pod = node.pod().annotation("caisson.dev/home", "ephemeral");
        match path {
            Some(path) => pod.annotation("caisson.dev/home-path", path).start(),
            None => pod.start(),
        }
    };
    let with_path = home(Some("/root"))?;
    let output = with_path
        .container("busybox")
        .sh("touch /root/x && ls /root");
    assert_eq!(output.run()?.ok()?.line(), "x");
    let without = home(None)?;
    let refused = sleeping(&without).err();
    let error = format!("{:#}", refused.expect("nobody knows where the home is"));
    assert!(error.contains("caisson.dev/home-path"), "{error}");
    Ok(())
}

/// Returns the contents of a file in the container's snapshot, which is no longer mounted.
fn in_snapshot(container: &Container, file: &str) -> Result<String> {
    let dir = container.pod().folder("snapshot")?;
    let mut ctr = node().ctr_in(NAMESPACE);
    ctr.args(["snapshots", "--snapshotter", SNAPSHOTTER, "mounts"]);
    ctr.arg(&dir).arg(container.id());
    let mount = command::run(&mut ctr, None, LIMIT)?.ok()?;
    let line = format!(
        "{} && cat {dir}/{file}; umount {dir}",
        mount.line(),
        dir = dir.display()
    );
    let output = command::run(Command::new("sh").args(["-c", &line]), None, LIMIT)?;
    Ok(output.ok()?.text().to_owned())
}

fn pod(runtime: Runtime) -> Result<Pod<'static>> {
    node().pod().runtime(runtime).start()
}

fn sleeping<'p>(pod: &'p Pod) -> Result<Container<'p>> {
    pod.container("busybox").args(["sleep", "1000"]).start()
}

/// Returns a node whose images and containers are on block files.
fn node() -> &'static CriNode {
    static NODE: OnceLock<CriNode> = OnceLock::new();
    let mut first = false;
    let node = NODE.get_or_init(|| {
        first = true;
        start().unwrap_or_else(|error| panic!("no test node: {error:#}"))
    });
    if first {
        Node::end_at_exit(node);
    }
    node
}

fn start() -> Result<CriNode> {
    let node = CriNode::start()?;
    node.stop_containerd(false)?;
    let mut config = fs::File::options()
        .append(true)
        .open(node.dir().join("containerd.toml"))?;
    let section = "[plugins.\"io.containerd.cri.v1.images\"]";
    write!(config, "\n{section}\nsnapshotter = \"{SNAPSHOTTER}\"\n")?;
    // The file that the snapshotter copies. If it exists, no configuration is needed.
    let name = format!("root/io.containerd.snapshotter.v1.{SNAPSHOTTER}/scratch");
    let scratch = node.dir().join(name);
    fs::create_dir_all(scratch.with_file_name(""))?;
    fs::File::create(&scratch)?.set_len(SIZE)?;
    let made = Command::new("mkfs.ext4").arg("-q").arg(&scratch).status()?;
    ensure!(made.success(), "mkfs.ext4 {}", scratch.display());
    node.start_containerd()?;
    Ok(node)
}
