//! Tests pods with their own users (`hostUsers: false`) on containerd 2.x. containerd 1.7 maps
//! roots but not volumes, and fails if two pods map the same image at the same time.

use std::{
    fs,
    os::unix::fs::{chown, symlink, MetadataExt},
    path::Path,
};

use anyhow::Result;
use caisson_tests::{
    cri::{Container, ContainerBuilder, CriNode, PodBuilder},
    Runtime,
};
use nix::mount::{mount, umount2, MntFlags, MsFlags};
use rstest::rstest;

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn users_of_a_pod_are_mapped_for_init_and_exec(#[case] runtime: Runtime) -> Result<()> {
    let pod = own_users(runtime).start()?;
    let show = "xargs < /proc/self/uid_map; xargs < /proc/self/gid_map";
    let container = pod.container("busybox");
    let container = container.sh(&format!("{show}; echo done; exec sleep 1000"));
    let container = container.start()?;
    container.wait_for_output("done")?;
    let maps = "0 100000 65536\n0 100000 65536";
    assert_eq!(container.stdout()?, format!("{maps}\ndone\n"));
    assert_eq!(container.sh(show)?, maps);
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn files_of_the_image_have_the_owners_that_it_says(#[case] runtime: Runtime) -> Result<()> {
    let pod = own_users(runtime).start()?;
    let container = sleeping(pod.container("busybox"))?;
    let line = "stat -c '%u %g' /bin/busybox /root /home/app /home/app/.profile";
    assert_eq!(container.sh(line)?, "0 0\n0 0\n1000 1000\n1000 1000");
    let line = "touch /root/new; chown 1000:2000 /root/new; echo x >> /home/app/.profile; stat -c '%u %g' /root/new";
    assert_eq!(container.sh(line)?, "1000 2000");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn containers_of_a_pod_share_their_users(#[case] runtime: Runtime) -> Result<()> {
    let pod = own_users(runtime).start()?;
    let containers = [
        sleeping(pod.container("busybox"))?,
        sleeping(pod.container("busybox"))?,
    ];
    let [first, second] = containers
        .each_ref()
        .map(|container| container.sh("readlink /proc/1/ns/user; readlink /proc/self/ns/user"));
    let first = first?;
    assert!(first.starts_with("user:["), "{first}");
    assert_eq!(first, second?);
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn user_without_root_reads_writes_and_opens_its_output(#[case] runtime: Runtime) -> Result<()> {
    let pod = own_users(runtime).start()?;
    let container = pod.container("busybox").user(1000, Some(2000));
    let line = "id -u; id -g; touch /tmp/new; stat -c '%u %g' /tmp/new; echo opened > /dev/stdout";
    let container = container.sh(&format!("{line}; exec sleep 1000")).start()?;
    container.wait_for_output("opened")?;
    assert_eq!(container.stdout()?, "1000\n2000\n1000 2000\nopened\n");
    assert_eq!(container.sh("id -u; id -g")?, "1000\n2000");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn terminal_works_for_init_and_exec(#[case] runtime: Runtime) -> Result<()> {
    let pod = own_users(runtime).start()?;
    let container = pod.container("busybox").tty();
    let container = container.sh("tty; exec sleep 1000").start()?;
    container.wait_for_output("/dev/")?;
    let mut session = container.exec_streams(["sh", "-c", "stat -c '%u' $(tty)"], true)?;
    session.wait_for("0")?;
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn volume_with_mappings_has_the_nodes_owners_inside(#[case] runtime: Runtime) -> Result<()> {
    let pod = own_users(runtime).start()?;
    let volume = pod.folder("mapped")?;
    fs::write(volume.join("roots"), "x")?;
    fs::write(volume.join("apps"), "x")?;
    chown(volume.join("apps"), Some(1000), Some(2000))?;
    let container = pod.container("busybox").mount_mapped(&volume, "/data");
    let container = sleeping(container)?;
    let line = "touch /data/new; stat -c '%u %g' /data /data/roots /data/apps /data/new";
    assert_eq!(container.sh(line)?, "0 0\n0 0\n1000 2000\n0 0");
    let made = fs::metadata(volume.join("new"))?;
    assert_eq!((made.uid(), made.gid()), (0, 0));
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn volume_without_mappings_is_nobodys_inside(#[case] runtime: Runtime) -> Result<()> {
    let pod = own_users(runtime).start()?;
    let volume = pod.folder("plain")?;
    fs::write(volume.join("file"), "readable")?;
    let container = sleeping(pod.container("busybox").mount(&volume, "/data"))?;
    assert_eq!(
        container.sh("stat -c '%u %g' /data/file; cat /data/file")?,
        "65534 65534\nreadable"
    );
    let output = container.exec(["touch", "/data/new"])?;
    assert!(output.errors().contains("Permission denied"), "{output:?}");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn memory_medium_with_mappings_is_its_owners(#[case] runtime: Runtime) -> Result<()> {
    let pod = own_users(runtime).start()?;
    let folder = pod.folder("pods/u1/volumes/kubernetes.io~empty-dir/memory")?;
    let volume = Tmpfs::mount(&folder)?;
    let container = pod.container("busybox").mount_mapped(&volume.0, "/data");
    let container = sleeping(container)?;
    let line = "touch /data/new && stat -c '%u %g' /data /data/new && echo x > /dev/shm/new";
    assert_eq!(container.sh(line)?, "0 0\n0 0");
    drop(container);
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn config_map_with_mappings_is_readable(#[case] runtime: Runtime) -> Result<()> {
    let pod = own_users(runtime).start()?;
    let volume = pod.folder("config")?;
    fs::create_dir(volume.join("..version1"))?;
    fs::write(volume.join("..version1/key"), "value")?;
    symlink("..version1", volume.join("..data"))?;
    symlink("..data/key", volume.join("key"))?;
    let container = pod
        .container("busybox")
        .mount_mapped(&volume, "/config")
        .configure(|config| config.mounts[0].readonly = true);
    let line = "cat /config/key; stat -L -c ' %u %g' /config /config/key";
    let output = sleeping(container)?.sh(line)?;
    assert_eq!(output, "value 0 0\n 0 0");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn shared_pid_namespace_shows_the_other_container(#[case] runtime: Runtime) -> Result<()> {
    let pod = own_users(runtime).share_processes().start()?;
    let _other = pod.container("busybox").args(["sleep", "4321"]).start()?;
    let container = sleeping(pod.container("busybox"))?;
    let processes = container.sh("ps")?;
    assert!(processes.contains("sleep 4321"), "{processes}");
    Ok(())
}

/// The container has its rights only over what is its own, and the devices that it sees are the
/// guest's.
#[test]
fn privileged_container_is_root_of_its_own_users() -> Result<()> {
    let pod = own_users(Runtime::Caisson).privileged().start()?;
    let container = sleeping(pod.container("busybox").privileged())?;
    let line = "xargs < /proc/1/uid_map; mount -t tmpfs none /mnt && touch /mnt/file && ls /mnt";
    assert_eq!(container.sh(line)?, "0 100000 65536\nfile");
    container.sh("head -c 1 /dev/urandom > /dev/null")?;
    Ok(())
}

fn own_users(runtime: Runtime) -> PodBuilder<'static> {
    CriNode::shared().pod().runtime(runtime).own_users()
}

fn sleeping(container: ContainerBuilder<'_>) -> Result<Container<'_>> {
    container.args(["sleep", "1000"]).start()
}

/// A file system in the node's memory.
struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    fn mount(path: &Path) -> Result<Self> {
        let options = Some("mode=755,size=1m");
        mount(
            Some("tmpfs"),
            path,
            Some("tmpfs"),
            MsFlags::empty(),
            options,
        )?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
