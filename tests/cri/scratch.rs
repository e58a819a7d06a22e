//! Tests `caisson.dev/scratch`: roots and emptyDirs on disks of the VM, beside shared ones and
//! beside runc's.

use std::{
    fs,
    os::unix::fs::{chown, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result};
use caisson_tests::{
    command,
    cri::{Container, ContainerBuilder, CriNode, Pod, NAMESPACE},
    node::LIMIT,
    proc, Leftovers, Runtime,
};
use nix::mount::{mount, umount2, MntFlags, MsFlags};
use rstest::rstest;

const SCRATCH: &str = "caisson.dev/scratch";
/// The name of the file that a disk is.
const IMAGE: &str = ".caisson-disk.ext4";
const MIB: u64 = 1 << 20;
/// Mounts an overlay in the working directory.
const OVERLAY: &str = "mkdir low up work all && echo low > low/file && \
                       mount -t overlay -o lowerdir=low,upperdir=up,workdir=work overlay all";

/// How a pod keeps what it writes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Runc,
    Shared,
    Disk,
}
use Kind::{Disk, Runc, Shared};

#[test]
fn root_on_a_disk_shows_the_host_one_file() -> Result<()> {
    let pod = Scratch::start(Disk)?;
    let container = sleeping(pod.container())?;
    container.sh("echo x > /file; rm /etc/group")?;
    assert_eq!(names(&upper(&container)?)?, [IMAGE]);
    Ok(())
}

#[test]
fn empty_dir_on_a_disk_shows_the_host_one_file() -> Result<()> {
    let pod = Scratch::start(Disk)?;
    let container = sleeping(pod.container())?;
    container.sh("echo x > /data/file")?;
    assert_eq!(names(&pod.volume)?, [IMAGE]);
    Ok(())
}

#[rstest]
fn empty_dir_is_empty(#[values(Runc, Shared, Disk)] kind: Kind) -> Result<()> {
    let pod = Scratch::start(kind)?;
    assert_eq!(sleeping(pod.container())?.sh("ls -A /data")?, "");
    Ok(())
}

#[rstest]
fn image_is_changed_in_the_root(#[values(Runc, Shared, Disk)] kind: Kind) -> Result<()> {
    let pod = Scratch::start(kind)?;
    let container = sleeping(pod.container())?;
    let line = "echo more >> /etc/passwd && tail -n 1 /etc/passwd && rm /etc/group && \
                rm -r /root && mkdir /root && ls -A /etc /root | grep -c group; stat -c %a,%u,%g /";
    assert_eq!(container.sh(line)?, "more\n0\n755,0,0");
    Ok(())
}

#[rstest]
fn set_uid_program_in_root_and_empty_dir_runs_as_its_owner(
    #[values(Runc, Shared, Disk)] kind: Kind,
) -> Result<()> {
    let pod = Scratch::start(kind)?;
    let container = sleeping(pod.container())?;
    container.sh("echo user:x:1000:1000::/:/bin/sh >> /etc/passwd; chmod 755 /data")?;
    for folder in ["/bin", "/data"] {
        let program = format!("{folder}/probe-of-root");
        let line = format!(
            "cp $(which probe) {program} && chmod 4755 {program} && touch /root/file && \
             su user -c '{program} write-at /root/file 0 text'"
        );
        assert_eq!(container.sh(&line)?, "written", "{folder}");
    }
    Ok(())
}

#[rstest]
fn files_of_an_empty_dir_are_there_after_a_restart(
    #[values(Runc, Shared, Disk)] kind: Kind,
) -> Result<()> {
    let pod = Scratch::start(kind)?;
    let first = pod.container().named("app", 0);
    first.sh("echo kept > /data/file").run()?.ok()?;
    let second = pod.container().named("app", 1);
    assert_eq!(second.sh("cat /data/file").run()?.ok()?.line(), "kept");
    Ok(())
}

#[rstest]
fn files_of_an_empty_dir_are_seen_by_the_other_container(
    #[values(Runc, Shared, Disk)] kind: Kind,
) -> Result<()> {
    let pod = Scratch::start(kind)?;
    let (writer, reader) = (sleeping(pod.container())?, pod.bare_container());
    let reader = sleeping(reader.mount_read_only(&pod.volume, "/in"))?;
    writer.sh("echo shared > /data/file")?;
    assert_eq!(reader.sh("cat /in/file")?, "shared");
    assert_ne!(reader.exec(["touch", "/in/new"])?.code, 0);
    Ok(())
}

#[rstest]
fn sub_path_of_an_empty_dir_is_in_the_whole(
    #[values(Runc, Shared, Disk)] kind: Kind,
) -> Result<()> {
    let pod = Scratch::start(kind)?;
    let part = pod.sub_path("logs")?;
    let part = sleeping(pod.bare_container().mount(&part, "/part"))?;
    let whole = sleeping(pod.container())?;
    part.sh("echo logged > /part/log")?;
    assert_eq!(whole.sh("cat /data/logs/log; ls -A /data")?, "logged\nlogs");
    Ok(())
}

#[rstest]
fn unix_socket_in_an_empty_dir_connects_two_containers(
    #[values(Runc, Shared, Disk)] kind: Kind,
) -> Result<()> {
    let pod = Scratch::start(kind)?;
    let server = pod.container().args(["probe", "echo-unix", "/data/socket"]);
    let server = server.start()?;
    server.wait_for_output("listening")?;
    let client = pod.container();
    let client = client.args(["probe", "ask-unix", "/data/socket", "hello"]);
    assert_eq!(client.run()?.ok()?.line(), "hello");
    Ok(())
}

/// The kubelet gives the volume's folder to the `fsGroup` before the first container starts.
#[rstest]
fn group_and_mode_of_an_empty_dir_are_those_of_its_folder(
    #[values(Runc, Shared, Disk)] kind: Kind,
) -> Result<()> {
    let pod = Scratch::start(kind)?;
    chown(&pod.volume, None, Some(2000))?;
    fs::set_permissions(&pod.volume, fs::Permissions::from_mode(0o2775))?;
    let container = sleeping(pod.container())?;
    let line = "touch /data/file; stat -c %a,%u,%g /data; stat -c %g /data/file";
    assert_eq!(container.sh(line)?, "2775,0,2000\n2000");
    Ok(())
}

#[rstest]
fn mode_that_a_container_gives_an_empty_dir_is_kept(
    #[values(Runc, Shared, Disk)] kind: Kind,
) -> Result<()> {
    let pod = Scratch::start(kind)?;
    pod.container().sh("chmod 700 /data").run()?.ok()?;
    let second = pod.container().sh("stat -c %a /data").run()?.ok()?;
    assert_eq!(second.line(), "700");
    Ok(())
}

#[rstest]
fn overlay_is_mounted_on_an_empty_dir(#[values(Runc, Shared, Disk)] kind: Kind) -> Result<()> {
    let pod = Scratch::start_on(kind, None, true)?;
    let container = sleeping(pod.container().privileged())?;
    let line = format!("{OVERLAY} && echo up >> all/file && cat up/file");
    assert_eq!(container.sh(&format!("cd /data && {line}"))?, "low\nup");
    Ok(())
}

/// The root is an overlay itself, on which the kernel puts no upper layer.
#[rstest]
fn overlay_on_a_root_is_refused_by_the_kernel(#[values(Runc, Disk)] kind: Kind) -> Result<()> {
    let pod = Scratch::start_on(kind, None, true)?;
    let container = sleeping(pod.container().privileged())?;
    let line = format!("mkdir /inner && cd /inner && {OVERLAY}");
    let refused = container.exec(["sh", "-c", &line])?;
    assert!(refused.errors().contains("Invalid argument"), "{refused:?}");
    Ok(())
}

/// The volume's folder is on a small file system of the host.
#[rstest]
fn full_empty_dir_is_no_space_left(#[values(Runc, Shared, Disk)] kind: Kind) -> Result<()> {
    let pod = Scratch::start_on(kind, Some("size=100m"), false)?;
    let container = sleeping(pod.container())?;
    let line =
        "dd if=/dev/zero of=/data/fill bs=1M count=200 2>&1 | grep -o 'No space left on device'; \
                rm /data/fill; echo fits > /data/file; cat /data/file";
    assert_eq!(container.sh(line)?, "No space left on device\nfits");
    Ok(())
}

#[rstest]
fn space_of_an_empty_dir_is_counted_and_given_back(
    #[values(Runc, Shared, Disk)] kind: Kind,
) -> Result<()> {
    let pod = Scratch::start(kind)?;
    let container = sleeping(pod.container())?;
    container.sh("dd if=/dev/urandom of=/data/file bs=1M count=48; sync")?;
    let full = used(&pod.volume)?;
    assert!((48 * MIB..70 * MIB).contains(&full), "{full}");
    container.sh("rm /data/file; sync")?;
    command::poll("the space to be given back", LIMIT, || {
        container.sh("sync").ok()?;
        (used(&pod.volume).ok()? < 24 * MIB).then_some(())
    })
}

#[rstest]
fn space_of_a_root_is_counted_by_the_snapshot(
    #[values(Runc, Shared, Disk)] kind: Kind,
) -> Result<()> {
    let pod = Scratch::start(kind)?;
    let container = sleeping(pod.container())?;
    container.sh("dd if=/dev/urandom of=/file bs=1M count=48; sync")?;
    let mut ctr = pod.pod.node().ctr_in(NAMESPACE);
    ctr.args(["snapshots", "usage", "-b", container.id()]);
    let usage = command::run(&mut ctr, None, LIMIT)?.ok()?.text();
    let line = usage.lines().find(|line| line.contains(container.id()));
    let size = line.and_then(|line| line.split_whitespace().nth(1));
    let size: u64 = size.with_context(|| usage.clone())?.parse()?;
    assert!((48 * MIB..70 * MIB).contains(&size), "{size}");
    Ok(())
}

/// The next pod is the same pod of Kubernetes, whose sandbox has ended.
#[rstest]
fn files_that_were_synced_outlive_a_killed_vm(#[values(Shared, Disk)] kind: Kind) -> Result<()> {
    let pod = Scratch::start(kind)?;
    let container = sleeping(pod.container())?;
    let line = "i=0; while [ $i -lt 200 ]; do echo $i > /data/$i; i=$((i+1)); done; sync; \
                (while :; do echo more >> /data/more; done) >/dev/null 2>&1 &";
    container.sh(line)?;
    proc::kill(pod.pod.vm_process("qemu")?, libc::SIGKILL);
    pod.pod.stop()?;
    let next = pod.next()?;
    let container = next.container("busybox").mount(&pod.volume, "/data");
    let line = "cat /data/[0-9]* | sort -n | uniq | wc -l; echo on > /data/on; cat /data/on";
    assert_eq!(container.sh(line).run()?.ok()?.text().trim(), "200\non");
    Ok(())
}

#[test]
fn nothing_is_left_of_a_pod_on_disks() -> Result<()> {
    // The pods of the other tests are on another node.
    let node = CriNode::start()?;
    node.image("busybox")?;
    let before = Leftovers::count(&node);
    let uid = "5c4a7c11-left";
    let pod = pod(&node, Disk, uid, false)?;
    let volume = pod.folder(&format!("pods/{uid}/volumes/kubernetes.io~empty-dir/work"))?;
    let container = sleeping(pod.container("busybox").mount(&volume, "/data"))?;
    let disks = "grep -l '^[rs]-' /sys/block/vd*/serial | wc -l";
    assert_eq!(container.sh(disks)?, "2");
    container.sh("echo x > /file; echo x > /data/file")?;
    pod.stop()?;
    pod.remove()?;
    Leftovers::none_since(&node, &before)
}

#[test]
fn disks_of_removed_roots_are_gone_from_the_pod() -> Result<()> {
    let pod = Scratch::start(Disk)?;
    let first = sleeping(pod.container())?;
    let disks = "grep -l '^[rs]-' /sys/block/vd*/serial | wc -l";
    for _ in 0..2 {
        let next = sleeping(pod.container())?;
        // Two roots, and the emptyDir of both.
        assert_eq!(first.sh(disks)?, "3");
        next.stop(std::time::Duration::ZERO)?;
        next.remove()?;
    }
    assert_eq!(first.sh(disks)?, "2");
    Ok(())
}

#[test]
fn read_only_root_is_shared_also_if_the_pod_asks_for_disks() -> Result<()> {
    let pod = Scratch::start(Disk)?;
    let container = sleeping(pod.container().read_only_root())?;
    assert_ne!(container.exec(["touch", "/file"])?.code, 0);
    assert_eq!(
        container.sh("grep -l '^r-' /sys/block/vd*/serial | wc -l")?,
        "0"
    );
    Ok(())
}

#[test]
fn empty_dir_with_files_of_the_host_is_refused_a_disk() -> Result<()> {
    let pod = Scratch::start(Disk)?;
    fs::write(pod.volume.join("file"), "of the host")?;
    let error = sleeping(pod.container()).err().context("it has started")?;
    let error = format!("{error:#}");
    let reason = "can't be on a disk: it has files on the host already";
    assert!(error.contains(SCRATCH) && error.contains(reason), "{error}");
    Ok(())
}

/// A VM has room for twelve of them.
#[test]
fn thirteenth_disk_of_a_pod_is_refused() -> Result<()> {
    let pod = Scratch::start(Disk)?;
    let mut container = pod.bare_container();
    for number in 0..12 {
        let volume = pod.volume.with_file_name(format!("v{number:02}"));
        fs::create_dir(&volume)?;
        container = container.mount(&volume, &format!("/v{number}"));
    }
    let error = sleeping(container).err().context("it has started")?;
    let error = format!("{error:#}");
    // The first disk is that of the root.
    let reason = "empty-dir/v11 can't be on a disk: it would be more than the 12th disk of its VM";
    assert!(error.contains(reason), "{error}");
    Ok(())
}

/// A pod can plant it while it shares the volume.
#[test]
fn link_in_place_of_a_disk_is_refused() -> Result<()> {
    let pod = Scratch::start(Disk)?;
    std::os::unix::fs::symlink("/etc/passwd", pod.volume.join(IMAGE))?;
    let error = sleeping(pod.container()).err().context("it has started")?;
    let reason = "can't be on a disk";
    assert!(format!("{error:#}").contains(reason), "{error:#}");
    Ok(())
}

/// A pod with an emptyDir, which the node has as a kubelet makes it.
struct Scratch {
    pod: Pod<'static>,
    kind: Kind,
    uid: String,
    volume: PathBuf,
    mounts: std::cell::RefCell<Vec<PathBuf>>,
}

impl Scratch {
    fn start(kind: Kind) -> Result<Self> {
        Self::start_on(kind, None, false)
    }

    /// `host` has the options of a tmpfs in which the folders of the pod's volumes are.
    fn start_on(kind: Kind, host: Option<&str>, privileged: bool) -> Result<Self> {
        static PODS: AtomicU32 = AtomicU32::new(0);
        let number = PODS.fetch_add(1, Ordering::Relaxed);
        let uid = format!("5c4a7c11-{number:04}");
        let pod = pod(CriNode::shared(), kind, &uid, privileged)?;
        let volumes = pod.folder(&format!("pods/{uid}/volumes"))?;
        let mut mounts = Vec::new();
        if host.is_some() {
            let tmpfs = Some("tmpfs");
            mount(tmpfs, &volumes, tmpfs, MsFlags::empty(), host)?;
            mounts.push(volumes.clone());
        }
        let volume = volumes.join("kubernetes.io~empty-dir/work");
        fs::create_dir_all(&volume)?;
        fs::set_permissions(&volume, fs::Permissions::from_mode(0o777))?;
        Ok(Self {
            pod,
            kind,
            uid,
            volume,
            mounts: mounts.into(),
        })
    }

    /// Begins building a container without the volume.
    fn bare_container(&self) -> ContainerBuilder<'_> {
        self.pod.container("busybox")
    }

    /// Begins building a container with the volume at `/data`.
    fn container(&self) -> ContainerBuilder<'_> {
        self.bare_container().mount(&self.volume, "/data")
    }

    /// Starts the next sandbox of the same pod.
    fn next(&self) -> Result<Pod<'static>> {
        pod(CriNode::shared(), self.kind, &self.uid, false)
    }

    /// Makes a folder of the volume and mounts it where a container with a `subPath` gets it from
    /// (Kubernetes, pkg/volume/util/subpath).
    fn sub_path(&self, name: &str) -> Result<PathBuf> {
        let folder = self.volume.join(name);
        fs::create_dir_all(&folder)?;
        let place = format!("pods/{}/volume-subpaths/work/part/0", self.uid);
        let place = self.pod.folder(&place)?;
        let none = None::<&str>;
        mount(Some(&folder), &place, none, MsFlags::MS_BIND, none)?;
        self.mounts.borrow_mut().push(place.clone());
        Ok(place)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for mount in self.mounts.borrow().iter().rev() {
            let _ = umount2(mount, MntFlags::MNT_DETACH);
        }
    }
}

fn pod<'a>(node: &'a CriNode, kind: Kind, uid: &str, privileged: bool) -> Result<Pod<'a>> {
    let runtime = match kind {
        Runc => Runtime::Runc,
        Shared | Disk => Runtime::Caisson,
    };
    let pod = node.pod().runtime(runtime);
    let pod = pod.configure(|config| {
        config.metadata.get_or_insert_default().uid = uid.to_owned();
    });
    let pod = match kind {
        Runc => pod,
        Shared => pod.annotation(SCRATCH, "shared"),
        Disk => pod.annotation(SCRATCH, "disk"),
    };
    match privileged {
        true => pod.privileged().start(),
        false => pod.start(),
    }
}

fn sleeping(container: ContainerBuilder<'_>) -> Result<Container<'_>> {
    container.args(["sleep", "1000"]).start()
}

/// Returns the folder of the host in which the container's snapshot has its upper layer.
fn upper(container: &Container) -> Result<PathBuf> {
    let mut ctr = container.pod().node().ctr_in(NAMESPACE);
    ctr.args(["snapshots", "mounts", "/nowhere", container.id()]);
    let mounts = command::run(&mut ctr, None, LIMIT)?.ok()?.text();
    let upper = mounts
        .split([',', ' '])
        .find_map(|word| word.strip_prefix("upperdir="));
    Ok(upper.with_context(|| mounts.clone())?.into())
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let names = fs::read_dir(folder)?;
    let names = names.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect()
}

/// Returns what the files of a folder take, in bytes, as the kubelet counts it.
fn used(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder)? {
        sum += entry?.metadata()?.blocks() * 512;
    }
    Ok(sum)
}
