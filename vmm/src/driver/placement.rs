//! Places a VM's processes on the host: puts them into their cgroup and sets their OOM score.
//!
//! A child is born in the cgroup or joins it between fork and exec, so nothing that it executes
//! runs outside. Its own children are born inside. Moving a whole process by `cgroup.procs` waits
//! for an RCU grace period: 8 to 22 ms for the nine hierarchies of version 1, 14 ms for one of
//! version 2. Moving only the calling thread by `tasks` takes 0.6 ms, and being born in the cgroup
//! costs nothing.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
};

use super::jail::{check, Step};
use crate::{Error, Placement, Result};

/// A placement, prepared by the parent.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The file `tasks` of each hierarchy of version 1.
    tasks: Vec<File>,
    /// The folder of version 2, if there is one.
    pub(crate) folder: Option<File>,
    oom_score_adj: String,
}

impl Opened {
    pub(crate) fn open(placement: &Placement) -> Result<Opened> {
        let mut opened = Opened {
            tasks: Vec::new(),
            folder: None,
            oom_score_adj: placement.oom_score_adj.to_string(),
        };
        for cgroup in &placement.cgroups {
            let failed = |source| Error::File {
                what: "open the pod's cgroup",
                path: cgroup.clone(),
                source,
            };
            let tasks = File::options().write(true).open(cgroup.join("tasks"));
            match tasks {
                Ok(tasks) => opened.tasks.push(tasks),
                // Version 2 has no such file, and has a single hierarchy.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    opened.folder = Some(File::open(cgroup).map_err(failed)?);
                }
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(opened)
    }

    /// Moves the calling process to its place. It was born in `folder` and has one thread. Only for
    /// a child between fork and exec, while it has the parent's rights and root.
    ///
    /// A score below what the caller may set is left as it is; see [`note_oom_score_adj`].
    pub(crate) fn enter(&self) -> std::result::Result<(), Step> {
        for tasks in &self.tasks {
            // 0 means the writer (kernel, kernel/cgroup/cgroup.c, `cgroup_procs_write_start`).
            write(tasks.as_raw_fd(), b"0").map_err(|e| ("join the pod's cgroup", e))?;
        }
        // SAFETY: a NUL-terminated path.
        let file = unsafe {
            libc::open(
                c"/proc/self/oom_score_adj".as_ptr(),
                libc::O_WRONLY | libc::O_CLOEXEC,
            )
        };
        check("open oom_score_adj", file)?;
        let written = write(file, self.oom_score_adj.as_bytes());
        // SAFETY: the descriptor that was opened above.
        unsafe { libc::close(file) };
        match written {
            Err(error) if error.raw_os_error() != Some(libc::EACCES) => {
                Err(("set oom_score_adj", error))
            }
            _ => Ok(()),
        }
    }
}

/// Writes `bytes` without allocating.
fn write(file: RawFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: a buffer of the given length.
    match unsafe { libc::write(file, bytes.as_ptr().cast(), bytes.len()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Logs the score of a process if it is not the wanted one.
pub(crate) fn note_oom_score_adj(role: &str, pid: u32, wanted: i32) {
    let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap_or_default();
    if let Some(is) = text.trim().parse().ok().filter(|is: &i32| *is != wanted) {
        log::info!(role, wanted, is; "oom_score_adj can't be lowered without CAP_SYS_RESOURCE");
    }
}

/// Moves a process that the caller has not reaped, and its descendants, to another place.
pub(crate) fn relocate(role: &str, pid: u32, placement: &Placement) -> Result<()> {
    for folder in &placement.cgroups {
        let path = folder.join("cgroup.procs");
        let mut moved = Vec::new();
        // A child that is born meanwhile may be where its parent was.
        while let Some(pid) = family(pid).into_iter().find(|pid| !moved.contains(pid)) {
            moved.push(pid);
            match fs::write(&path, pid.to_string()) {
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                written => written.map_err(|source| Error::File {
                    what: "move a process of the VM by",
                    path: path.clone(),
                    source,
                })?,
            }
        }
    }
    set_oom_score_adj(role, pid, placement.oom_score_adj);
    Ok(())
}

/// Returns a process and its descendants, parents first.
pub(crate) fn family(pid: u32) -> Vec<u32> {
    let mut pids = vec![pid];
    let mut next = 0;
    while let Some(pid) = pids.get(next) {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.unwrap_or_default();
        pids.extend(children.split_whitespace().flat_map(str::parse::<u32>));
        next += 1;
    }
    pids
}

/// Sets the score of a process that the caller has not reaped, and of its descendants.
pub(crate) fn set_oom_score_adj(role: &str, pid: u32, score: i32) {
    // The folder stays that of the process that it was opened for, even if another process gets the
    // pid later.
    let folder = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(format!("/proc/{pid}"));
    let Ok(folder) = folder else { return };
    let at = format!("/proc/self/fd/{}", folder.as_raw_fd());
    let at = Path::new(&at);
    let file = File::options().write(true).open(at.join("oom_score_adj"));
    let set = file.and_then(|mut file| file.write_all(score.to_string().as_bytes()));
    match set {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
            note_oom_score_adj(role, pid, score);
        }
        Err(error) => log::debug!(role, error = error.to_string().as_str(); "set oom_score_adj"),
        Ok(()) => {}
    }
    let children = fs::read_to_string(at.join(format!("task/{pid}/children")));
    for child in children.unwrap_or_default().split_whitespace() {
        if let Ok(child) = child.parse() {
            set_oom_score_adj(role, child, score);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use nix::mount::{mount, umount2, MntFlags, MsFlags};

    use super::*;
    use crate::driver::{
        process::Child,
        spawn::{Confinement, Program},
    };

    /// A cgroup of the test's own.
    struct Cgroup {
        dir: std::path::PathBuf,
        /// The folder where the test has mounted the hierarchy, if it has.
        mount: Option<tempfile::TempDir>,
    }

    impl Cgroup {
        /// Makes one of version 1, in the host's hierarchy of a controller. There is none on a host
        /// that has version 2 alone, and one that a test mounts would be seen by all processes.
        fn of_version_1(controller: &str) -> Option<Cgroup> {
            let mount = Path::new("/sys/fs/cgroup").join(controller);
            let exists = mount.join("cgroup.procs").exists();
            exists.then(|| Cgroup::make(&mount, None))
        }

        /// Makes one of version 2, whose only hierarchy each host has, be it mounted or not.
        fn of_version_2() -> Cgroup {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().to_owned();
            let (none, flags): (Option<&str>, _) = (None, MsFlags::empty());
            mount(none, &path, Some("cgroup2"), flags, none).expect("mounting takes root");
            Cgroup::make(&path, Some(folder))
        }

        fn make(hierarchy: &Path, mount: Option<tempfile::TempDir>) -> Cgroup {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let dir = hierarchy.join(format!("caisson-vmm-{}-{number}", std::process::id()));
            fs::create_dir(&dir).expect("making a cgroup takes root");
            Cgroup { dir, mount }
        }

        fn processes(&self) -> Vec<u32> {
            let inside = fs::read_to_string(self.dir.join("cgroup.procs")).unwrap();
            inside.lines().flat_map(str::parse).collect()
        }
    }

    impl Drop for Cgroup {
        fn drop(&mut self) {
            for _ in 0..100 {
                if fs::remove_dir(&self.dir).is_ok() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            if let Some(mount) = &self.mount {
                let _ = umount2(mount.path(), MntFlags::MNT_DETACH);
            }
        }
    }

    /// A shell that first writes its placement, and that has a child.
    async fn placed(cgroups: Vec<std::path::PathBuf>) -> (Child, String) {
        let dir = tempfile::tempdir().unwrap();
        let told = dir.path().join("told");
        let script = format!(
            "cat /proc/self/cgroup /proc/self/oom_score_adj > {0}.part; mv {0}.part {0}; sleep 100 & wait",
            told.display()
        );
        let child = Child::start(Program {
            role: "test".to_owned(),
            path: "/bin/sh".into(),
            arguments: vec!["-c".to_owned(), script],
            descriptors: Vec::new(),
            confinement: Confinement::None,
            placement: Placement {
                cgroups,
                oom_score_adj: 321,
            },
            limits: Default::default(),
        });
        let child = child.await.unwrap();
        for _ in 0..500 {
            if told.exists() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        (child, fs::read_to_string(told).unwrap())
    }

    async fn is_born_in(cgroups: &[Cgroup], field: &str) {
        let dirs = cgroups.iter().map(|cgroup| cgroup.dir.clone());
        let (child, said) = placed(dirs.collect()).await;
        let name = cgroups[0]
            .dir
            .file_name()
            .unwrap()
            .to_string_lossy()
            .into_owned();
        let line = said.lines().find(|line| line.contains(field)).unwrap();
        assert!(line.ends_with(&format!("/{name}")), "{line}");
        assert_eq!(said.lines().last(), Some("321"));
        for cgroup in cgroups {
            let inside = cgroup.processes();
            assert!(inside.contains(&child.pid()), "{inside:?}");
        }
        child.stop().await.unwrap();
        // The shell's own child.
        for pid in cgroups.iter().flat_map(Cgroup::processes) {
            // SAFETY: a process of the test's own cgroup.
            unsafe { libc::kill(pid as i32, libc::SIGKILL) };
        }
    }

    #[tokio::test]
    async fn child_is_born_in_its_cgroups_of_version_1() {
        let cgroups = ["memory", "pids"].map(Cgroup::of_version_1);
        let [Some(memory), Some(pids)] = cgroups else {
            eprintln!("skipped: the host has no hierarchies of version 1");
            return;
        };
        is_born_in(&[memory, pids], ":memory:").await;
    }

    #[tokio::test]
    async fn child_is_born_in_its_cgroup_of_version_2() {
        is_born_in(&[Cgroup::of_version_2()], "0::").await;
    }

    #[tokio::test]
    async fn process_that_is_relocated_takes_its_descendants_along() {
        let cgroup = Cgroup::of_version_2();
        let (child, _) = placed(Vec::new()).await;
        while family(child.pid()).len() < 2 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        let placement = Placement {
            cgroups: vec![cgroup.dir.clone()],
            oom_score_adj: 654,
        };
        relocate("test", child.pid(), &placement).unwrap();
        let inside = cgroup.processes();
        for pid in family(child.pid()) {
            assert!(inside.contains(&pid), "{pid}: {inside:?}");
            let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
            assert_eq!(score.trim(), "654");
        }
        for pid in family(child.pid()).into_iter().skip(1) {
            // SAFETY: a child of the test's shell.
            unsafe { libc::kill(pid as i32, libc::SIGKILL) };
        }
        child.stop().await.unwrap();
    }

    #[tokio::test]
    async fn score_that_changes_is_that_of_every_descendant() {
        let (child, _) = placed(Vec::new()).await;
        let descendants = || {
            let path = format!("/proc/{0}/task/{0}/children", child.pid());
            let text = fs::read_to_string(path).unwrap();
            text.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        while descendants().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        set_oom_score_adj("test", child.pid(), 654);
        for pid in descendants().iter().chain([&child.pid().to_string()]) {
            let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
            assert_eq!(score.trim(), "654");
        }
        for pid in descendants() {
            // SAFETY: a child of the test's shell.
            unsafe { libc::kill(pid.parse().unwrap(), libc::SIGKILL) };
        }
        child.stop().await.unwrap();
    }
}
