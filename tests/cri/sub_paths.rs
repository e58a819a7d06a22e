//! Tests that a volume is one file system for all containers of a pod, whichever part of it each
//! mounts (`subPath`), and however.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result};
use caisson_tests::{
    cri::{api::MountPropagation, Container, ContainerBuilder, CriNode, Pod, PodBuilder},
    Runtime,
};
use nix::mount::{mount, umount2, MntFlags, MsFlags};
use rstest::rstest;

/// What a volume of a pod is on the node.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// An emptyDir on the node's disk.
    Disk,
    /// An emptyDir with medium Memory.
    Memory,
    /// A hostPath.
    Host,
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn files_of_the_whole_are_in_its_part(
    #[case] runtime: Runtime,
    #[values(Kind::Disk, Kind::Memory, Kind::Host)] kind: Kind,
) -> Result<()> {
    let pod = Kubelet::start(runtime, kind)?;
    let whole = sleeping(pod.container("whole").mount(&pod.volume, "/all"))?;
    whole.sh("mkdir -p /all/a/b && echo filled > /all/a/b/file")?;
    let part = pod.sub_path("a/b", "part")?;
    let part = sleeping(pod.container("part").mount(&part, "/part"))?;
    assert_eq!(part.sh("cat /part/file")?, "filled");
    part.sh("echo back > /part/answer")?;
    assert_eq!(whole.sh("cat /all/a/b/answer")?, "back");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn part_that_is_mounted_first_is_in_the_whole(
    #[case] runtime: Runtime,
    #[values(Kind::Disk, Kind::Memory, Kind::Host)] kind: Kind,
) -> Result<()> {
    let pod = Kubelet::start(runtime, kind)?;
    let part = pod.sub_path("logs", "part")?;
    let part = sleeping(pod.container("part").mount(&part, "/part"))?;
    part.sh("echo filled > /part/file")?;
    let whole = sleeping(pod.container("whole").mount(&pod.volume, "/all"))?;
    assert_eq!(whole.sh("cat /all/logs/file")?, "filled");
    Ok(())
}

/// The kubelet makes the folder of a `subPath` while the pod runs, on the host.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn part_that_a_container_looked_for_too_early_is_mounted(
    #[case] runtime: Runtime,
    #[values("late", "of-the-container/late")] path: &str,
) -> Result<()> {
    let pod = Kubelet::start(runtime, Kind::Disk)?;
    let whole = sleeping(pod.container("whole").mount(&pod.volume, "/all"))?;
    whole.sh(&format!(
        "mkdir /all/of-the-container && ! test -e /all/{path}"
    ))?;
    let part = pod.sub_path(path, "part")?;
    let part = sleeping(pod.container("part").mount(&part, "/part"))?;
    part.sh("echo filled > /part/file")?;
    assert_eq!(whole.sh(&format!("cat /all/{path}/file"))?, "filled");
    Ok(())
}

/// The kubelet makes the folder with the owner and mode of the volume's root.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn part_in_memory_has_the_mode_of_the_folder_that_the_kubelet_made(
    #[case] runtime: Runtime,
) -> Result<()> {
    let pod = Kubelet::start(runtime, Kind::Memory)?;
    let part = pod.sub_path("cache/of app", "part")?;
    let part = sleeping(pod.container("part").user(1000, None).mount(&part, "/part"))?;
    assert_eq!(part.sh("touch /part/file && stat -c %a /part")?, "777");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn socket_in_the_whole_is_answered_in_its_part(
    #[case] runtime: Runtime,
    #[values(Kind::Disk, Kind::Memory, Kind::Host)] kind: Kind,
) -> Result<()> {
    let pod = Kubelet::start(runtime, kind)?;
    let server = pod.container("server").mount(&pod.volume, "/all");
    let line = "mkdir -p /all/run && exec probe echo-unix /all/run/socket";
    let server = server.sh(line).start()?;
    server.wait_for_output("listening")?;
    let part = pod.sub_path("run", "client")?;
    let client = sleeping(pod.container("client").mount(&part, "/run"))?;
    let asked = client.exec(["probe", "ask-unix", "/run/socket", "hello"])?;
    assert_eq!(asked.ok()?.line(), "hello");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn lock_in_the_whole_holds_in_its_part(
    #[case] runtime: Runtime,
    #[values(Kind::Disk, Kind::Memory, Kind::Host)] kind: Kind,
) -> Result<()> {
    let pod = Kubelet::start(runtime, kind)?;
    let first = pod.container("first").mount(&pod.volume, "/all");
    let line = "mkdir -p /all/locks && exec probe flock /all/locks/lock";
    let first = first.sh(line).start()?;
    first.wait_for_output("locked")?;
    let part = pod.sub_path("locks", "second")?;
    let second = sleeping(pod.container("second").mount(&part, "/locks"))?;
    assert_eq!(try_lock(&second, "/locks/lock")?, "taken");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn lock_of_a_writer_holds_for_a_reader(#[case] runtime: Runtime) -> Result<()> {
    let pod = Kubelet::start(runtime, Kind::Host)?;
    let writer = pod.container("writer").mount(&pod.volume, "/data");
    let writer = writer.args(["probe", "flock", "/data/lock"]).start()?;
    writer.wait_for_output("locked")?;
    let reader = pod
        .container("reader")
        .mount_read_only(&pod.volume, "/data");
    let reader = sleeping(reader)?;
    assert_eq!(try_lock(&reader, "/data/lock")?, "taken");
    assert_ne!(reader.exec(["touch", "/data/new"])?.code, 0);
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn part_that_is_read_only_cannot_be_written(
    #[case] runtime: Runtime,
    #[values(Kind::Disk, Kind::Memory, Kind::Host)] kind: Kind,
) -> Result<()> {
    let pod = Kubelet::start(runtime, kind)?;
    let part = pod.sub_path("a", "reader")?;
    let _writer = sleeping(pod.container("writer").mount(&pod.volume, "/all"))?;
    let reader = pod.container("reader").mount_read_only(&part, "/part");
    let refused = sleeping(reader)?.exec(["touch", "/part/file"])?;
    assert!(
        refused.errors().contains("Read-only file system"),
        "{}",
        refused.errors()
    );
    Ok(())
}

/// As with a sidecar that mounts a bucket for the pod's other containers.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn mount_that_a_container_makes_in_an_empty_dir_is_in_the_others(
    #[case] runtime: Runtime,
    #[values(Kind::Disk, Kind::Memory)] kind: Kind,
    #[values(true, false)] sidecar_first: bool,
) -> Result<()> {
    let pod = Kubelet::start_with(runtime, kind, PodBuilder::privileged)?;
    pod.shares_mounts()?;
    let mounted = |name: &str, propagation| {
        let container = pod.container(name);
        let container = container.mount_with(&pod.volume, "/data", |mount| {
            mount.set_propagation(propagation);
        });
        container.privileged()
    };
    let sidecar = || {
        sleeping(mounted(
            "sidecar",
            MountPropagation::PropagationBidirectional,
        ))
    };
    let app = || sleeping(mounted("app", MountPropagation::PropagationHostToContainer));
    let (sidecar, app) = match sidecar_first {
        true => (sidecar()?, app()?),
        false => {
            let app = app()?;
            (sidecar()?, app)
        }
    };
    sidecar.sh(
        "mkdir /data/bucket && mount -t tmpfs none /data/bucket && echo object > /data/bucket/key",
    )?;
    assert_eq!(app.sh("cat /data/bucket/key")?, "object");
    sidecar.sh("umount /data/bucket")?;
    assert_eq!(app.sh("ls /data/bucket")?, "");
    Ok(())
}

#[test]
fn mount_that_would_be_the_hosts_is_refused_with_a_reason() -> Result<()> {
    let pod = Kubelet::start_with(Runtime::Caisson, Kind::Host, PodBuilder::privileged)?;
    pod.shares_mounts()?;
    let container = pod.container("sidecar").privileged();
    let container = container.mount_with(&pod.volume, "/data", |mount| {
        mount.set_propagation(MountPropagation::PropagationBidirectional);
    });
    let error = format!("{:#}", sleeping(container).err().context("it has started")?);
    assert!(error.contains("can't appear on the host"), "{error}");
    Ok(())
}

/// The kubelet has looked up the folder by then; what another container makes of it meanwhile
/// leads nowhere.
#[test]
fn folder_that_becomes_a_link_is_not_followed_into_the_guest() -> Result<()> {
    let pod = Kubelet::start(Runtime::Caisson, Kind::Memory)?;
    let part = pod.sub_path("a", "part")?;
    let whole = sleeping(pod.container("whole").mount(&pod.volume, "/all"))?;
    whole.sh("ln -s / /all/a")?;
    let error = sleeping(pod.container("part").mount(&part, "/part"));
    let error = format!("{:#}", error.err().context("it has started")?);
    assert!(error.contains("open the part of a volume"), "{error}");
    Ok(())
}

fn try_lock(container: &Container<'_>, path: &str) -> Result<String> {
    Ok(container.exec(["probe", "try-flock", path])?.line())
}

/// A pod with one volume, which the node has as a kubelet makes it.
struct Kubelet {
    pod: Pod<'static>,
    uid: String,
    volume: PathBuf,
    mounts: std::cell::RefCell<Vec<PathBuf>>,
}

impl Kubelet {
    fn start(runtime: Runtime, kind: Kind) -> Result<Self> {
        Self::start_with(runtime, kind, |pod| pod)
    }

    fn start_with(
        runtime: Runtime,
        kind: Kind,
        with: impl FnOnce(PodBuilder<'static>) -> PodBuilder<'static>,
    ) -> Result<Self> {
        static PODS: AtomicU32 = AtomicU32::new(0);
        let number = PODS.fetch_add(1, Ordering::Relaxed);
        let uid = format!("6d0f2a5e-{number:04}");
        let pod = with(CriNode::shared().pod().runtime(runtime));
        let pod = pod.configure(|config| {
            config.metadata.get_or_insert_default().uid = uid.clone();
        });
        let pod = pod.start()?;
        let volume = pod.folder(&match kind {
            Kind::Disk | Kind::Memory => {
                format!("pods/{uid}/volumes/kubernetes.io~empty-dir/work")
            }
            Kind::Host => "srv".to_owned(),
        })?;
        let mut mounts = Vec::new();
        if let Kind::Memory = kind {
            let tmpfs = Some("tmpfs");
            mount(
                tmpfs,
                &volume,
                tmpfs,
                MsFlags::empty(),
                Some("size=4m,mode=0777"),
            )?;
            mounts.push(volume.clone());
        }
        fs::set_permissions(&volume, fs::Permissions::from_mode(0o777))?;
        Ok(Self {
            pod,
            uid,
            volume,
            mounts: mounts.into(),
        })
    }

    /// Makes the volume a mount whose mounts propagate. A kubelet's folder is on one.
    fn shares_mounts(&self) -> Result<()> {
        let (none, volume) = (None::<&str>, &self.volume);
        // A volume in memory is one already.
        if self.mounts.borrow().is_empty() {
            mount(Some(volume), volume, none, MsFlags::MS_BIND, none)?;
            self.mounts.borrow_mut().push(volume.clone());
        }
        Ok(mount(none, &self.volume, none, MsFlags::MS_SHARED, none)?)
    }

    fn container(&self, name: &str) -> ContainerBuilder<'_> {
        self.pod.container("busybox").named(name, 0)
    }

    /// Makes a folder of the volume and mounts it where a container with a `subPath` gets it from
    /// (Kubernetes, pkg/volume/util/subpath).
    fn sub_path(&self, path: &str, container: &str) -> Result<PathBuf> {
        let folder = self.volume.join(path);
        for folder in folder
            .ancestors()
            .take_while(|folder| *folder != self.volume)
        {
            fs::create_dir_all(folder)?;
            fs::set_permissions(folder, fs::Permissions::from_mode(0o777))?;
        }
        let place = format!("pods/{}/volume-subpaths/work/{container}/0", self.uid);
        let place = self.pod.folder(&place)?;
        let none = None::<&str>;
        mount(Some(&folder), &place, none, MsFlags::MS_BIND, none)?;
        self.mounts.borrow_mut().push(place.clone());
        Ok(place)
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        for mount in self.mounts.borrow().iter().rev() {
            let _ = umount2(mount, MntFlags::MNT_DETACH);
        }
    }
}

fn sleeping(container: ContainerBuilder<'_>) -> Result<Container<'_>> {
    container.args(["sleep", "1000"]).start()
}
