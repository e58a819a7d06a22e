//! Tests what a kubelet mounts into containers. By then every kind of volume is a folder, a file or
//! a device of the node.

use std::{
    fs,
    os::unix::fs::{chown, symlink, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use caisson_tests::{
    command,
    cri::{
        api::{Device, MountPropagation},
        Container, ContainerBuilder, CriNode, Pod,
    },
    leftovers, Runtime,
};
use nix::mount::{mount, umount2, MntFlags, MsFlags};
use rstest::rstest;

const LIMIT: Duration = Duration::from_secs(10);

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn folder_is_read_and_written_by_both_sides(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let volume = pod.folder("both")?;
    fs::write(volume.join("hosts"), "from the node")?;
    let container = sleeping(pod.container("busybox").mount(&volume, "/data"))?;
    assert_eq!(container.sh("cat /data/hosts")?, "from the node");
    container.sh("echo from the pod > /data/pods")?;
    assert_eq!(fs::read_to_string(volume.join("pods"))?, "from the pod\n");
    fs::write(volume.join("later"), "and later")?;
    assert_eq!(container.sh("cat /data/later")?, "and later");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn read_only_folder_cannot_be_written(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let volume = pod.folder("read-only")?;
    fs::write(volume.join("file"), "kept")?;
    let container = pod.container("busybox").mount_read_only(&volume, "/data");
    let container = sleeping(container)?;
    let output = container.exec(["sh", "-c", "echo x > /data/file"])?;
    assert!(
        output.errors().contains("Read-only file system"),
        "{}",
        output.errors()
    );
    assert_eq!(container.sh("cat /data/file")?, "kept");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn folder_is_shared_by_containers_with_rights_of_their_own(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let volume = pod.folder("shared")?;
    let writer = sleeping(pod.container("busybox").mount(&volume, "/out"))?;
    let reader = pod.container("busybox").mount_read_only(&volume, "/in");
    let reader = sleeping(reader)?;
    writer.sh("echo hello > /out/file")?;
    assert_eq!(reader.sh("cat /in/file")?, "hello");
    assert_ne!(reader.exec(["touch", "/in/new"])?.code, 0);
    Ok(())
}

/// subPath of a configMap mounts one file over one of the image's.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn single_file_is_mounted_over_the_images(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let file = pod.folder("single")?.join("group");
    fs::write(&file, "root:x:0:\nmounted:x:77:\n")?;
    let container = pod
        .container("busybox")
        .mount_read_only(&file, "/etc/group");
    let container = sleeping(container)?;
    assert_eq!(
        container.sh("tail -n 1 /etc/group; wc -l < /etc/passwd")?,
        "mounted:x:77:\n2"
    );
    Ok(())
}

/// A volume can be below another one's folder, for example a subPath or a secret within an
/// emptyDir.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn volume_within_a_volume_is_seen(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let (outer, inner) = (pod.folder("outer")?, pod.folder("inner")?);
    fs::write(outer.join("file"), "outer")?;
    fs::write(inner.join("file"), "inner")?;
    let container = pod
        .container("busybox")
        .mount(&outer, "/data")
        .mount(&inner, "/data/deep/inner");
    let container = sleeping(container)?;
    assert_eq!(
        container.sh("cat /data/file /data/deep/inner/file")?,
        "outerinner"
    );
    Ok(())
}

/// A configMap, secret or projected volume has this structure: the file is a link through `..data`,
/// which is swapped for a new folder.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn swapped_link_of_a_config_map_is_seen(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let volume = pod.folder("config-map")?;
    config_map(&volume, 1, "first")?;
    symlink("..data/key", volume.join("key"))?;
    let container = pod.container("busybox").mount_read_only(&volume, "/config");
    let container = sleeping(container)?;
    assert_eq!(container.sh("cat /config/key")?, "first");
    config_map(&volume, 2, "second")?;
    command::poll("the second", Duration::from_secs(2), || {
        (container.sh("cat /config/key").ok()? == "second").then_some(())
    })
}

/// A program that watches the volume's folder is notified of the swap.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn swapped_link_of_a_config_map_is_told_to_who_watches(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let volume = pod.folder("watched")?;
    config_map(&volume, 1, "first")?;
    let container = pod.container("busybox").mount_read_only(&volume, "/config");
    let container = container.args(["probe", "watch", "/config"]).start()?;
    container.wait_for_output("watching")?;
    config_map(&volume, 2, "second")?;
    command::poll("the event", Duration::from_secs(2), || {
        container
            .stdout()
            .ok()?
            .contains("moved ..data")
            .then_some(())
    })
    .with_context(|| container.stdout().unwrap_or_default())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn memory_medium_keeps_its_size_limit(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let volume = Mounted::tmpfs(&pod.folder("memory")?, "size=2m")?;
    let container = sleeping(pod.container("busybox").mount(&volume.0, "/memory"))?;
    container.sh("dd if=/dev/zero of=/memory/fits bs=1M count=1")?;
    let output = container.exec(["dd", "if=/dev/zero", "of=/memory/not", "bs=1M", "count=4"])?;
    assert!(
        output.errors().contains("No space left"),
        "{}",
        output.errors()
    );
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn unix_socket_in_a_volume_connects_two_containers(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let volume = pod.folder("socket")?;
    let server = pod.container("busybox").mount(&volume, "/run/app");
    let server = server
        .args(["probe", "echo-unix", "/run/app/socket"])
        .start()?;
    server.wait_for_output("listening")?;
    let client = pod.container("busybox").mount(&volume, "/run/app");
    let args = ["probe", "ask-unix", "/run/app/socket", "hello"];
    assert_eq!(client.args(args).run()?.ok()?.line(), "hello");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn owners_and_modes_are_the_same_on_both_sides(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let volume = pod.folder("owners")?;
    fs::set_permissions(&volume, fs::Permissions::from_mode(0o777))?;
    fs::write(volume.join("theirs"), "")?;
    chown(volume.join("theirs"), Some(4321), Some(5432))?;
    let container = pod.container("busybox").user(1234, Some(2345));
    let container = sleeping(container.mount(&volume, "/data"))?;
    assert_eq!(container.sh("stat -c '%u %g' /data/theirs")?, "4321 5432");
    container.sh("umask 027; touch /data/ours")?;
    let ours = fs::metadata(volume.join("ours"))?;
    assert_eq!(
        (ours.uid(), ours.gid(), ours.mode() & 0o777),
        (1234, 2345, 0o640)
    );
    Ok(())
}

/// With fsGroup, the kubelet gives the folder to the group and sets its setgid bit, and the runtime
/// gives the process the group.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn fs_group_may_write_and_owns_what_is_made(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let volume = pod.folder("fs-group")?;
    chown(&volume, Some(0), Some(7777))?;
    fs::set_permissions(&volume, fs::Permissions::from_mode(0o2770))?;
    let container = pod.container("busybox").user(1234, Some(1234));
    let container = container.security(|security| security.supplemental_groups = vec![7777]);
    sleeping(container.mount(&volume, "/data"))?.sh("touch /data/made")?;
    let made = fs::metadata(volume.join("made"))?;
    assert_eq!((made.uid(), made.gid()), (1234, 7777));
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn mount_of_the_node_is_seen_where_it_is_propagated(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let volume = Mounted::shared(&pod.folder("propagated")?)?;
    fs::create_dir(volume.0.join("later"))?;
    let container = pod
        .container("busybox")
        .mount_with(&volume.0, "/data", |mount| {
            mount.set_propagation(MountPropagation::PropagationHostToContainer);
        });
    let container = sleeping(container)?;
    let later = Mounted::tmpfs(&volume.0.join("later"), "size=1m")?;
    fs::write(later.0.join("file"), "mounted later")?;
    command::poll("the mount in the pod", LIMIT, || {
        let shown = container.sh("cat /data/later/file").ok()?;
        (shown == "mounted later").then_some(())
    })
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn file_system_below_a_volume_goes_with_it(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let volume = pod.folder("recursive")?;
    fs::create_dir_all(volume.join("below"))?;
    let below = Mounted::tmpfs(&volume.join("below"), "size=1m")?;
    fs::write(below.0.join("file"), "below")?;
    let container = sleeping(pod.container("busybox").mount(&volume, "/data"))?;
    assert_eq!(container.sh("cat /data/below/file")?, "below");
    Ok(())
}

/// containerd supports this since 2.0. Before that, what is mounted below stays as it is.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn recursive_read_only_goes_for_what_is_mounted_below(#[case] runtime: Runtime) -> Result<()> {
    let node = CriNode::shared();
    let pod = pod(runtime)?;
    let volume = pod.folder("recursive-read-only")?;
    fs::create_dir_all(volume.join("below"))?;
    let _below = Mounted::tmpfs(&volume.join("below"), "size=1m")?;
    let container = pod
        .container("busybox")
        .mount_with(&volume, "/data", |mount| {
            mount.readonly = true;
            mount.recursive_read_only = true;
        });
    let container = sleeping(container)?;
    let mut read_only = vec!["/data/new"];
    if !node.containerd_version()?.starts_with("1.") {
        read_only.push("/data/below/new");
    }
    for path in read_only {
        let output = container.exec(["touch", path])?;
        let error = output.errors();
        assert!(error.contains("Read-only file system"), "{path}: {error}");
    }
    Ok(())
}

/// A PersistentVolumeClaim with `volumeMode: Block`.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn block_device_is_read_and_written(#[case] runtime: Runtime) -> Result<()> {
    let pod = CriNode::shared().pod().runtime(runtime).start()?;
    let image = pod.folder("block")?.join("image");
    fs::write(
        &image,
        [b"from the node\n".as_slice(), &[0; 1 << 20]].concat(),
    )?;
    let device = LoopDevice::of(&image)?;
    let container = pod.container("busybox").configure(|config| {
        config.devices.push(Device {
            host_path: device.0.clone(),
            container_path: "/dev/claim".into(),
            permissions: "rwm".into(),
        });
    });
    let container = sleeping(container)?;
    assert_eq!(
        container.sh("test -b /dev/claim; head -n 1 /dev/claim")?,
        "from the node"
    );
    container.sh("echo from the pod | dd of=/dev/claim conv=fsync,notrunc")?;
    drop(container);
    pod.stop()?;
    assert!(fs::read(&image)?.starts_with(b"from the pod\n"));
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn pod_of_thirty_volumes_has_each_of_them(#[case] runtime: Runtime) -> Result<()> {
    let pod = CriNode::shared().pod().runtime(runtime).start()?;
    let mut container = pod.container("busybox");
    let mut wanted = String::new();
    for n in 0..30 {
        let volume = pod.folder(&format!("thirty/{n}"))?;
        fs::write(volume.join("number"), format!("{n}\n"))?;
        container = container.mount(&volume, &format!("/volumes/{n}"));
        wanted.push_str(&format!("{n}\n"));
    }
    let container = sleeping(container)?;
    let shown = container.sh("for n in $(seq 0 29); do cat /volumes/$n/number; done")?;
    assert_eq!(shown, wanted.trim_end());
    let daemons = leftovers::processes(pod.id());
    let daemons = daemons.iter().filter(|p| p.command.contains("virtiofsd"));
    // One for the pod, and possibly one for what has to be kept apart. runc has none.
    assert!(daemons.count() <= 4);
    Ok(())
}

/// Both runtimes have to make the folder of the mount in the volume first.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn mount_that_has_no_place_in_a_read_only_volume_is_named(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let (volume, other) = (pod.folder("no-place")?, pod.folder("placed")?);
    fs::write(other.join("file"), "placed")?;
    let container = pod
        .container("busybox")
        .mount_read_only(&volume, "/data")
        .mount(&other.join("file"), "/data/sub/file");
    let error = format!("{:#}", sleeping(container).err().context("it has started")?);
    for part in ["/data/sub", "read-only file system"] {
        assert!(error.to_lowercase().contains(part), "{error}");
    }
    Ok(())
}

/// A guest would find its files empty.
#[rstest]
fn what_the_kernel_of_the_host_makes_up_is_refused_with_a_reason(
    #[values(("/proc", "proc"), ("/sys", "sysfs"), ("/sys/kernel/mm", "sysfs"))] volume: (
        &str,
        &str,
    ),
) -> Result<()> {
    let (source, file_system) = volume;
    let container = pod(Runtime::Caisson)?.container("busybox");
    let container = container.mount_read_only(Path::new(source), "/host");
    let error = sleeping(container).err().context("it has started")?;
    let error = format!("{error:#}");
    assert!(
        error.contains(&format!("is in the {file_system} of the host")),
        "{error}"
    );
    Ok(())
}

#[test]
fn proc_of_the_host_is_read_with_runc() -> Result<()> {
    let container = pod(Runtime::Runc)?.container("busybox");
    let container = sleeping(container.mount_read_only(Path::new("/proc"), "/host"))?;
    assert!(container.sh("cat /host/version")?.contains("Linux"));
    Ok(())
}

fn pod(runtime: Runtime) -> Result<&'static Pod<'static>> {
    CriNode::shared().shared_pod(runtime)
}

fn sleeping(container: ContainerBuilder<'_>) -> Result<Container<'_>> {
    container.args(["sleep", "1000"]).start()
}

/// A file as a block device of the node. Dropping it removes the device.
struct LoopDevice(String);

impl LoopDevice {
    fn of(file: &Path) -> Result<Self> {
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show"]).arg(file);
        Ok(Self(command::run(&mut losetup, None, LIMIT)?.ok()?.line()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let mut losetup = Command::new("losetup");
        let _ = command::run(losetup.args(["--detach", &self.0]), None, LIMIT);
    }
}

/// Writes a version of a configMap and swaps the link, as the kubelet's atomic writer does.
fn config_map(volume: &Path, version: u32, text: &str) -> Result<()> {
    let folder = format!("..version-{version}");
    fs::create_dir(volume.join(&folder))?;
    fs::write(volume.join(&folder).join("key"), text)?;
    symlink(&folder, volume.join("..data_tmp"))?;
    Ok(fs::rename(
        volume.join("..data_tmp"),
        volume.join("..data"),
    )?)
}

/// A mount of the node. Dropping it unmounts it.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(path: &Path, options: &str) -> Result<Self> {
        mount(
            Some("tmpfs"),
            path,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options),
        )?;
        Ok(Self(path.to_owned()))
    }

    /// Makes a folder a mount of its own whose mounts are propagated.
    fn shared(path: &Path) -> Result<Self> {
        let none = None::<&str>;
        mount(Some(path), path, none, MsFlags::MS_BIND, none)?;
        let mounted = Self(path.to_owned());
        mount(none, path, none, MsFlags::MS_SHARED, none)?;
        Ok(mounted)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
