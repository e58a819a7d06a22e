//! Removes a cluster: its processes, mounts, cgroups, network and files, whatever state it is in.
//! It asks nothing of the cluster itself, which may be half dead.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{bail, Context, Result};
use nix::mount::{umount2, MntFlags};
use sha2::{Digest, Sha256};

use crate::{components::MARK, layout::Layout, network, process, sysctl};

/// The folder in which libcni stores the answers of plugins; containerd's configuration can't
/// change it.
const CNI_RESULTS: &str = "/var/lib/cni/results";
/// The folders in which the kubelet links the logs of containers and serves device plugins; its
/// configuration can't change them.
const KUBELETS: [&str; 4] = [
    "/var/lib/kubelet/device-plugins",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/log/pods",
];
/// Where the controller manager makes volumes.
const VOLUMES: &str = "/tmp/hostpath_pv";
/// The length of a UUID in characters.
const UUID: usize = 36;
/// Sockets of shims, named by a hash of containerd's address, the namespace and the id.
const SHIM_SOCKETS: &str = "/run/containerd/s";

/// Removes all of it; it is no error if there is nothing.
pub fn all(layout: &Layout) -> Result<()> {
    end_processes(layout)?;
    sysctl::restore(layout)?;
    let sockets = shim_sockets(layout);
    // The last mount lies over the others.
    for point in mounts(layout).iter().rev() {
        umount2(point.as_path(), MntFlags::MNT_DETACH)
            .with_context(|| format!("unmount {}", point.display()))?;
    }
    network::remove(layout)?;
    remove_cni_results(layout);
    for cgroup in cgroups(layout).iter().rev() {
        process::wait_for("an empty cgroup", Duration::from_secs(5), || {
            fs::remove_dir(cgroup)
                .or_else(gone)
                .with_context(|| cgroup.display().to_string())
        })?;
    }
    for socket in sockets {
        fs::remove_file(&socket)
            .or_else(gone)
            .with_context(|| socket.display().to_string())?;
    }
    remove_kubelets(layout);
    remove_volumes(layout)?;
    let dir = layout.dir();
    fs::remove_dir_all(dir)
        .or_else(gone)
        .with_context(|| format!("remove {}", dir.display()))
}

/// Returns the processes of a cluster, except this one, found by their environment or their cgroup.
pub fn processes(layout: &Layout) -> Vec<i32> {
    let variable = format!("{MARK}={}", layout.dir().display());
    let cgroup = format!("/{}/", layout.mark());
    let own = std::process::id() as i32;
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&pid: &i32| pid != own && !is_zombie(pid))
        .filter(|pid| {
            let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let has = read("environ")
                .split(|&b| b == 0)
                .any(|v| v == variable.as_bytes());
            has || String::from_utf8_lossy(&read("cgroup")).contains(&cgroup)
        })
        .collect()
}

/// Returns the cgroups of a cluster in every hierarchy, parents first.
pub fn cgroups(layout: &Layout) -> Vec<PathBuf> {
    let hierarchies = hierarchies();
    let mut next: Vec<_> = hierarchies
        .iter()
        .map(|dir| dir.join(layout.mark()))
        .collect();
    next.retain(|dir| dir.exists());
    let mut found = Vec::new();
    while let Some(dir) = next.pop() {
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        next.extend(
            entries
                .filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|e| e.path()),
        );
        found.push(dir);
    }
    found.sort();
    found
}

/// Returns where cgroup file systems are mounted.
pub fn hierarchies() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let fields = table
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    fields
        .filter(|fields| fields.len() > 2 && fields[2].starts_with("cgroup"))
        .map(|fields| PathBuf::from(fields[1]))
        .collect()
}

/// Returns the mount points below the cluster's folder, in the order they were made.
pub fn mounts(layout: &Layout) -> Vec<PathBuf> {
    let mut points = mount_points();
    points.retain(|point| point.starts_with(layout.dir()));
    points
}

/// Returns all mount points, in the order they were made (proc(5), `mountinfo`, the fifth field).
pub fn mount_points() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.map(|point| PathBuf::from(unescape(point))).collect()
}

/// Undoes the octal escapes of a path (proc(5), `mountinfo`).
fn unescape(path: &str) -> String {
    let path = path.replace("\\040", " ").replace("\\011", "\t");
    path.replace("\\012", "\n").replace("\\134", "\\")
}

/// Kills all processes of a cluster, until none is found. Nothing of a cluster is to be kept, so
/// none gets time to end by itself. The supervisor may start something again before its own end,
/// and a killed shim's children may be seen only after their parent is gone.
fn end_processes(layout: &Layout) -> Result<()> {
    process::wait_for("the end of all processes", Duration::from_secs(20), || {
        let left = processes(layout);
        for &pid in &left {
            kill(pid, libc::SIGKILL);
        }
        match left.first() {
            Some(pid) => bail!("process {pid} is there"),
            None => Ok(()),
        }
    })
}

fn kill(pid: i32, signal: i32) {
    // SAFETY: kill has no preconditions in memory; the pid is never 0 or negative.
    unsafe { libc::kill(pid.max(2), signal) };
}

/// Returns whether a process is a zombie or does not exist.
fn is_zombie(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    matches!(state, None | Some('Z' | 'X'))
}

fn shim_sockets(layout: &Layout) -> Vec<PathBuf> {
    let bundles = layout.path("run/io.containerd.runtime.v2.task/k8s.io");
    let sandboxes = layout.path("run/io.containerd.grpc.v1.cri/sandboxes");
    let state = layout.path("state");
    let ids = [bundles, sandboxes, state]
        .into_iter()
        .flat_map(|dir| names(&dir));
    let address = layout.containerd_socket();
    ids.map(|id| format!("{}/k8s.io/{id}", address.display()))
        .map(|name| Path::new(SHIM_SOCKETS).join(hex::encode(Sha256::digest(name))))
        .filter(|path| path.exists())
        .collect()
}

/// Removes the CNI results of this cluster: a result names the network namespace, which lies below
/// containerd's state folder.
fn remove_cni_results(layout: &Layout) {
    for name in names(Path::new(CNI_RESULTS)) {
        let path = Path::new(CNI_RESULTS).join(name);
        let namespaces = layout.text("run/");
        if fs::read_to_string(&path).is_ok_and(|text| text.contains(&namespaces)) {
            let _ = fs::remove_file(path);
        }
    }
}

/// Removes what this cluster's kubelet left in the machine's own folders, and those folders if they
/// are then empty.
fn remove_kubelets(layout: &Layout) {
    for name in names(Path::new("/var/log/containers")) {
        let link = Path::new("/var/log/containers").join(name);
        if fs::read_link(&link).is_ok_and(|to| to.starts_with(layout.dir())) {
            let _ = fs::remove_file(link);
        }
    }
    if !sysctl::another_kubelet() {
        for file in ["kubelet.sock", "kubelet_internal_checkpoint"] {
            let _ = fs::remove_file(Path::new(KUBELETS[0]).join(file));
        }
    }
    for dir in KUBELETS {
        // Fails if something is in it.
        let _ = fs::remove_dir(dir);
    }
}

/// Removes the volumes of this cluster. The controller manager makes volumes in a place of its own
/// (`--enable-hostpath-provisioner`), each named by a UUID. What etcd stored tells which are this
/// cluster's; a volume that was deleted is gone already.
fn remove_volumes(layout: &Layout) -> Result<()> {
    for dir in ["etcd/member/snap", "etcd/member/wal"].map(|below| layout.path(below)) {
        for name in names(&dir) {
            let stored = fs::read(dir.join(name)).unwrap_or_default();
            for volume in volumes(&stored) {
                let path = Path::new(VOLUMES).join(volume);
                fs::remove_dir_all(&path)
                    .or_else(gone)
                    .with_context(|| format!("remove {}", path.display()))?;
            }
        }
    }
    // Fails if another cluster has a volume there.
    let _ = fs::remove_dir(VOLUMES);
    Ok(())
}

/// Returns the names of volumes that occur in these bytes.
fn volumes(stored: &[u8]) -> BTreeSet<String> {
    let place = format!("{VOLUMES}/").into_bytes();
    let found = stored
        .windows(place.len() + UUID)
        .filter(|window| window.starts_with(&place));
    found
        .map(|window| String::from_utf8_lossy(&window[place.len()..]).into_owned())
        .filter(|name| name.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-'))
        .collect()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn gone(error: std::io::Error) -> std::io::Result<()> {
    match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn mount_point_with_escapes_is_read() {
        assert_eq!(super::unescape("/a\\012b\\040c\\134d"), "/a\nb c\\d");
    }

    #[test]
    fn volumes_are_those_whose_names_are_uuids() {
        let stored = b"\x12/tmp/hostpath_pv/0b6c8a3e-6f0f-4b9e-9d53-1d5f6f2a7c11\x1a /tmp/hostpath_pv/../../etc/and-so-on-until-it-is-long";
        let found: Vec<_> = super::volumes(stored).into_iter().collect();
        assert_eq!(found, ["0b6c8a3e-6f0f-4b9e-9d53-1d5f6f2a7c11"]);
    }
}
