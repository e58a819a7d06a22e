//! Tests what pod specs ask of the guest: devices, disks, shared memory, namespaces.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{ensure, Context, Result};
use caisson_tests::{
    cri::{api::Device, Container, ContainerBuilder, CriNode},
    Node, Runtime,
};
use rstest::rstest;

/// A PVC with volumeMode Block: the container writes to the host's device through the device node
/// that it asked for.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn block_volume_is_the_device_that_it_is_on_the_host(#[case] runtime: Runtime) -> Result<()> {
    let pod = CriNode::shared().pod().runtime(runtime).start()?;
    let disk = Loop::of(&pod.folder("block")?.join("image"))?;
    let container = pod
        .container("busybox")
        .configure(device(&disk.node, "/dev/xvda", "mrw"));
    let container = sleeping(container)?;
    assert_eq!(container.sh("head -c 3 /dev/xvda")?, "xxx");
    container.sh("printf pod | dd of=/dev/xvda conv=notrunc,fsync 2>/dev/null")?;
    ensure!(
        container.exec(["test", "-b", "/dev/xvda"])?.code == 0,
        "a block device"
    );
    // A second container of the pod has the same device.
    let second = pod.container("busybox").named("second", 0);
    let second = sleeping(second.configure(device(&disk.node, "/dev/data", "mrw")))?;
    assert_eq!(second.sh("head -c 3 /dev/data")?, "pod");
    container.stop(Duration::ZERO)?;
    second.stop(Duration::ZERO)?;
    pod.stop()?;
    assert_eq!(&fs::read(&disk.node)?[..3], b"pod");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn block_volume_that_is_read_only_refuses_writes(#[case] runtime: Runtime) -> Result<()> {
    let pod = CriNode::shared().pod().runtime(runtime).start()?;
    let disk = Loop::of(&pod.folder("block-ro")?.join("image"))?;
    let container = pod
        .container("busybox")
        .configure(device(&disk.node, "/dev/xvda", "r"));
    let container = sleeping(container)?;
    container.sh("head -c 3 /dev/xvda")?;
    assert_ne!(container.exec(["sh", "-c", "echo x > /dev/xvda"])?.code, 0);
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn fuse_that_is_asked_for_can_be_opened(#[case] runtime: Runtime) -> Result<()> {
    let pod = CriNode::shared().shared_pod(runtime)?;
    let with =
        pod.container("busybox")
            .configure(device(Path::new("/dev/fuse"), "/dev/fuse", "rwm"));
    let with = sleeping(with)?;
    with.sh("true 3<>/dev/fuse")?;
    let without = sleeping(pod.container("busybox"))?;
    assert_ne!(without.exec(["test", "-e", "/dev/fuse"])?.code, 0);
    Ok(())
}

#[test]
fn privileged_container_has_the_devices_of_the_guest() -> Result<()> {
    let pod = CriNode::shared().pod().privileged().start()?;
    let container = sleeping(pod.container("busybox").privileged())?;
    for device in [
        "/dev/net/tun",
        "/dev/fuse",
        "/dev/kmsg",
        "/dev/loop-control",
    ] {
        container
            .sh(&format!("true 3<>{device}"))
            .with_context(|| device.to_owned())?;
    }
    container.sh("echo 1 > /proc/sys/vm/drop_caches && mkdir /sys/fs/cgroup/mine")?;
    Ok(())
}

#[test]
fn hosts_dev_as_a_volume_is_the_guests() -> Result<()> {
    let pod = CriNode::shared().pod().privileged().start()?;
    let container = pod.container("busybox").privileged();
    let container = container
        .mount(Path::new("/dev"), "/dev")
        .mount(Path::new("/dev"), "/host/dev");
    let container = sleeping(container)?;
    container.sh("true 3<>/dev/net/tun; test -b /host/dev/vda; test -c /dev/pts/ptmx")?;
    let hosts = fs::read_dir("/dev")?
        .flatten()
        .map(|entry| entry.file_name());
    let hosts: Vec<_> = hosts
        .filter(|name| name.to_string_lossy().starts_with("loop"))
        .collect();
    ensure!(
        !hosts.is_empty(),
        "the host has something that the guest has not"
    );
    assert_ne!(container.exec(["test", "-e", "/host/dev/loop0"])?.code, 0);
    Ok(())
}

/// `ctr run --privileged` lists all devices of the host.
#[test]
fn privileged_container_of_ctr_starts_without_the_hosts_devices() -> Result<()> {
    let node = Node::shared();
    node.image("busybox")?;
    let line = "test ! -e /dev/loop0 && exec 3<>/dev/net/tun && mount -t tmpfs none /mnt && echo in the VM";
    let container = node.container("busybox").args(["sh", "-c", line]);
    assert_eq!(
        container.switch("--privileged").run()?.ok()?.line(),
        "in the VM"
    );
    Ok(())
}

/// An emptyDir with medium Memory, as the kubelet makes it. It is in the guest's own memory, and
/// the pod's containers share one.
#[test]
fn empty_dir_in_memory_is_shared_and_not_the_hosts() -> Result<()> {
    let uid = "6d0f2a5e-0001";
    let pod = CriNode::shared().pod().configure(|config| {
        config.metadata.get_or_insert_default().uid = uid.into();
    });
    let pod = pod.start()?;
    let path = pod.folder(&format!("pods/{uid}/volumes/kubernetes.io~empty-dir/work"))?;
    let volume = Tmpfs::at(path, "size=4m,mode=0777")?;
    let first = sleeping(pod.container("busybox").mount(&volume.0, "/work"))?;
    first.sh("echo shared > /work/file")?;
    let second = pod.container("busybox").named("second", 0);
    let second = sleeping(second.mount_read_only(&volume.0, "/work"))?;
    assert_eq!(
        second.sh("cat /work/file; stat -f -c %T /work")?,
        "shared\ntmpfs"
    );
    assert_eq!(first.sh("df -k /work | awk 'END {print $2}'")?, "4096");
    ensure!(
        fs::read_dir(&volume.0)?.next().is_none(),
        "the host has nothing of it"
    );
    Ok(())
}

fn sleeping(container: ContainerBuilder<'_>) -> Result<Container<'_>> {
    container.args(["sleep", "1000"]).start()
}

fn device<'a>(
    host: &'a Path,
    path: &'a str,
    permissions: &'a str,
) -> impl FnOnce(&mut caisson_tests::cri::api::ContainerConfig) + 'a {
    move |config| {
        config.devices.push(Device {
            host_path: host.display().to_string(),
            container_path: path.to_owned(),
            permissions: permissions.to_owned(),
        });
    }
}

/// A block device of the host, backed by a file.
struct Loop {
    node: PathBuf,
}

impl Loop {
    fn of(image: &Path) -> Result<Self> {
        fs::write(image, vec![b'x'; 1 << 20])?;
        let output = Command::new("losetup")
            .args(["-f", "--show"])
            .arg(image)
            .output()?;
        ensure!(output.status.success(), "losetup: {output:?}");
        let node = String::from_utf8(output.stdout)?.trim().into();
        Ok(Self { node })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.node).status();
    }
}

struct Tmpfs(PathBuf);

impl Tmpfs {
    fn at(path: PathBuf, options: &str) -> Result<Self> {
        use nix::mount::{mount, MsFlags};
        mount(
            Some("tmpfs"),
            &path,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options),
        )?;
        Ok(Self(path))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}
