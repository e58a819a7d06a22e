//! Manages a pod's cgroup on the host. The VMM and its daemons run in it, so that the kubelet
//! accounts for them.
//!
//! The path is the spec's `linux.cgroupsPath`, in one of the two forms that containerd writes
//! (runc, docs/systemd.md): a path below the cgroup mounts, or `SLICE:PREFIX:NAME` for systemd's
//! layout.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    path::{Component, Path, PathBuf},
    time::{Duration, Instant},
};

use cgroups_rs::fs::{hierarchies::auto, memory::MemController, Cgroup};

use crate::oom_score::Class;

/// What can go wrong with a pod's cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The spec's `linux.cgroupsPath` names none.
    #[error("request: linux.cgroupsPath: {0:?} is no path below the cgroup root")]
    Path(String),
    /// An operation on the cgroup failed.
    #[error("{operation} the pod's cgroup {}", path.display())]
    Failed {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: cgroups_rs::fs::error::Error,
    },
}

type Result<T> = std::result::Result<T, CgroupError>;

/// Creates the cgroup, or uses the one that exists.
pub fn create(path: &Path) -> Result<()> {
    Cgroup::new(auto(), relative(path)?)
        .map(drop)
        .map_err(|source| failed("create", path, source))
}

/// Returns the folders of a cgroup: one, or with version 1 one in each hierarchy. They exist once
/// the cgroup has been created.
pub fn folders(path: &Path) -> Result<Vec<PathBuf>> {
    let inside = relative(path)?;
    let hierarchies = auto();
    if hierarchies.v2() {
        return Ok(vec![hierarchies.root().join(inside)]);
    }
    let cgroup = Cgroup::load(hierarchies, inside);
    let controllers = cgroup.subsystems().iter();
    // Controllers that are mounted together share a folder.
    let folders: BTreeSet<_> = controllers
        .map(|controller| controller.to_controller().path().to_owned())
        .collect();
    Ok(folders.into_iter().collect())
}

/// Limits the memory of the cgroup, in bytes.
pub fn limit_memory(path: &Path, bytes: u64) -> Result<()> {
    let cgroup = Cgroup::load(auto(), relative(path)?);
    let Some(memory) = cgroup.controller_of::<MemController>() else {
        return Ok(());
    };
    memory
        .set_limit(i64::try_from(bytes).unwrap_or(i64::MAX))
        .map_err(|source| failed("limit the memory of", path, source))
}

/// Returns the memory limit of the cgroup in bytes: the lowest of its own and those above it.
pub fn memory_limit(path: &Path) -> Option<u64> {
    // Version 1 has the largest number, rounded to pages, for none (cgroup-v1/memory.rst).
    const NONE: u64 = i64::MAX as u64 >> 12 << 12;
    let limit = lowest(path, "memory", ["memory.max", "memory.limit_in_bytes"]);
    limit.filter(|limit| *limit < NONE)
}

/// Returns how many processes the cgroup may have: the lowest limit of its own and those above it.
pub fn process_limit(path: &Path) -> Option<u64> {
    lowest(path, "pids", ["pids.max", "pids.max"])
}

/// Returns the lowest number that a file has in the cgroup and those above it. The file has one
/// name with version 2 and one with version 1, where it is in the hierarchy of a controller. A
/// limit of `max` is none.
fn lowest(path: &Path, controller: &str, [new, old]: [&str; 2]) -> Option<u64> {
    let (inside, root) = (relative(path).ok()?, auto().root());
    let limits = inside.ancestors().filter_map(|inside| {
        let files = [
            root.join(inside).join(new),
            root.join(controller).join(inside).join(old),
        ];
        let mut texts = files
            .iter()
            .filter_map(|file| std::fs::read_to_string(file).ok());
        texts.next()?.trim().parse::<u64>().ok()
    });
    limits.min()
}

/// Returns how much memory is charged to the cgroup and those below it, in bytes. 0 if there is
/// none.
pub fn charged_memory(path: &Path) -> Result<u64> {
    let cgroup = Cgroup::load(auto(), relative(path)?);
    let memory = cgroup.controller_of::<MemController>();
    Ok(memory.map_or(0, |memory| memory.memory_stat().usage_in_bytes))
}

/// Returns the pod's quality of service, which the path of its cgroup shows.
pub fn class(path: &Path) -> Result<Class> {
    Ok(Class::of(&relative(path)?))
}

/// Opens the files through which a process joins the cgroup, one for each hierarchy.
pub fn entrances(path: &Path) -> io::Result<Vec<File>> {
    let folders = folders(path).map_err(io::Error::other)?;
    let files = folders.iter().map(|folder| folder.join("cgroup.procs"));
    files
        .map(|file| File::options().write(true).open(file))
        .collect()
}

/// Removes the cgroup once its processes have ended. Processes of a shim that has just been killed
/// may still be exiting. Succeeds if the cgroup does not exist.
pub fn remove(path: &Path) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(5);
    let folders = folders(path)?;
    let is_empty = |folder: &PathBuf| {
        let processes = std::fs::read_to_string(folder.join("cgroup.procs"));
        processes.unwrap_or_default().is_empty()
    };
    let started = Instant::now();
    while !folders.iter().all(is_empty) && started.elapsed() < LIMIT {
        std::thread::sleep(Duration::from_millis(5));
    }
    let cgroup = Cgroup::load(auto(), relative(path)?);
    if !cgroup.exists() {
        return Ok(());
    }
    cgroup
        .delete()
        .map_err(|source| failed("remove", path, source))
}

/// Removes the cgroup, unless a process or a cgroup is in it.
pub fn remove_if_empty(path: &Path) {
    for folder in folders(path).unwrap_or_default() {
        // EBUSY is what is to be expected.
        let _ = std::fs::remove_dir(folder);
    }
}

/// Whether the kernel has killed a process of the cgroup because memory ran out, by the cgroup's
/// own limit or by one above it.
pub fn out_of_memory(path: &Path) -> bool {
    let Ok(inside) = relative(path) else {
        return false;
    };
    let root = auto().root();
    // The first file is version 2's (kernel, admin-guide/cgroup-v2.rst), the second version 1's
    // (cgroup-v1/memory.rst).
    let files = [
        root.join(&inside).join("memory.events"),
        root.join("memory").join(&inside).join("memory.oom_control"),
    ];
    files.iter().any(|file| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        oom_kills(&text) > 0
    })
}

fn oom_kills(text: &str) -> u64 {
    let mut lines = text.lines();
    let count = lines.find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.parse().ok()).unwrap_or(0)
}

fn failed(
    operation: &'static str,
    path: &Path,
    source: cgroups_rs::fs::error::Error,
) -> CgroupError {
    CgroupError::Failed {
        operation,
        path: path.to_owned(),
        source,
    }
}

/// Returns the cgroup's path relative to a cgroup mount.
fn relative(path: &Path) -> Result<PathBuf> {
    let text = path.to_string_lossy();
    let plain = match text.split(':').collect::<Vec<_>>()[..] {
        [slice, prefix, name] => systemd(slice, prefix, name),
        _ => path.to_owned(),
    };
    let inside: PathBuf = plain
        .components()
        .filter(|part| *part != Component::RootDir)
        .collect();
    let normal = |part: Component| matches!(part, Component::Normal(_));
    if inside.as_os_str().is_empty() || !inside.components().all(normal) {
        return Err(CgroupError::Path(text.into_owned()));
    }
    Ok(inside)
}

/// Converts a path in systemd's form (systemd.slice(5)): the slice `a-b.slice` lies in `a.slice`,
/// and a container's unit is a scope.
fn systemd(slice: &str, prefix: &str, name: &str) -> PathBuf {
    let stem = slice.strip_suffix(".slice").unwrap_or(slice);
    let mut path = PathBuf::new();
    if stem != "-" {
        let ends = stem.match_indices('-').map(|(at, _)| at);
        for end in ends.chain([stem.len()]) {
            path.push(format!("{}.slice", &stem[..end]));
        }
    }
    path.push(match prefix {
        "" => format!("{name}.scope"),
        prefix => format!("{prefix}-{name}.scope"),
    });
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_of_a_slice_lies_in_the_slices_above_it() {
        let path = relative(Path::new("kubepods-burstable-pod1.slice:cri-containerd:ab"));
        assert_eq!(
            path.unwrap(),
            Path::new("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-ab.scope")
        );
    }

    #[test]
    fn kills_are_counted_as_both_versions_write_them() {
        assert_eq!(oom_kills("low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\n"), 1);
        assert_eq!(
            oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
            3
        );
        assert_eq!(oom_kills("oom_kill_disable 0\nunder_oom 1\n"), 0);
    }

    #[test]
    fn path_that_is_plain_stays() {
        let path = relative(Path::new("/kubepods/pod1/ab")).unwrap();
        assert_eq!(path, Path::new("kubepods/pod1/ab"));
    }

    #[test]
    fn path_that_leads_upwards_or_nowhere_is_refused() {
        for path in ["", "/", "/a/../../b", "..", "../x.slice:p:n"] {
            relative(Path::new(path)).unwrap_err();
        }
    }
}
