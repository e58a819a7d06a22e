//! The machine on which the agent runs: a guest, or the host in tests.
//!
//! The fake machine serves the host's tests without a VM. It has its own view of mounts and
//! cgroups:
//! - `DIR/1024.sock` to `DIR/1026.sock` are the ports, `DIR/agent.log` is the console, and
//!   `DIR/secret` holds what the host would tell a guest on its console.
//! - A share is `DIR/devices/<tag>`, and a disk is `DIR/devices/<serial>`. Both are directories or
//!   links to one. They are seen as the process that started the fake sees them, and are mounted
//!   where the guest would have them.
//! - Cgroups are those of the host's cgroup v2 tree below `/caisson-fake`. They have no limits if
//!   the tree has no controllers.
//! - Clock, host name, CPUs, memory and network cards are left alone.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::ExitCode,
};

use caisson_protocol::path::{DISKS, MEMORY, SHARES};
use nix::{
    mount::{mount, MsFlags},
    sched::{unshare, CloneFlags},
};

use crate::{
    cgroup, console, kernel::mounts, launch, reaper::Reaper, runtime::task::Request,
    secret::Secret, service, Error, Result,
};

/// The machine on which the agent runs.
#[derive(Debug, Clone)]
pub enum Machine {
    /// The guest, in which the agent is PID 1.
    Guest,
    /// The host on which a test runs.
    Fake {
        /// An absolute path.
        dir: PathBuf,
    },
}

impl Machine {
    /// Returns the directory in which containers have their state.
    pub fn state(&self) -> PathBuf {
        match self {
            Machine::Guest => PathBuf::from("/run/caisson/agent"),
            Machine::Fake { dir } => dir.join("agent"),
        }
    }

    /// Returns the path of a container's cgroup below the mount point.
    pub fn cgroup_path(&self, id: &str, given: Option<PathBuf>) -> PathBuf {
        match self {
            Machine::Guest => match given {
                Some(path) if path.is_absolute() => path,
                // systemd's form, `slice:prefix:name`: there is no systemd here.
                Some(path) if path.to_string_lossy().contains(':') => {
                    let path = path.to_string_lossy().replace(['/', ':'], "-");
                    Path::new("/").join(path)
                }
                Some(path) => Path::new("/").join(path),
                None => Path::new("/").join(id),
            },
            Machine::Fake { .. } => {
                PathBuf::from(format!("/caisson-fake/{}-{id}", std::process::id()))
            }
        }
    }

    /// Mounts a directory of the fake's devices where the guest would have the device.
    pub async fn graft(
        &self,
        reaper: &Reaper,
        name: &str,
        to: PathBuf,
        read_only: bool,
    ) -> Result<()> {
        let Machine::Fake { dir } = self else {
            return Ok(());
        };
        if mounts::is_mount_point(&to)? {
            return Ok(());
        }
        fs::create_dir_all(&to).map_err(Error::file("create directory", &to))?;
        let task = Request::Graft {
            from: nix::unistd::getppid().as_raw(),
            source: dir.join("devices").join(name),
            to,
            read_only,
        };
        launch::run(&reaper.expect(), &task, &[]).await.map(drop)
    }
}

/// Serves a test on the host. `dir` must exist. SIGTERM ends the service with its containers.
pub fn serve_fake(dir: &Path) -> ExitCode {
    let served = prepare_fake(dir).and_then(|dir| {
        let secret = Secret::of_fake(&dir)?;
        service::serve(Machine::Fake { dir }, secret)
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("caisson-agent: {}", error.chain());
            ExitCode::FAILURE
        }
    }
}

fn prepare_fake(dir: &Path) -> Result<PathBuf> {
    let dir = fs::canonicalize(dir).map_err(Error::file("find", dir))?;
    let log = dir.join("agent.log");
    let sink = File::options().append(true).create(true).open(&log);
    console::init(
        sink.map_err(Error::file("open", log))?,
        log::LevelFilter::Debug,
    );
    for path in [SHARES, DISKS, MEMORY] {
        fs::create_dir_all(path).map_err(Error::file("create directory", path))?;
    }
    // The containers' processes become this process' children, as in a guest.
    nix::sys::prctl::set_child_subreaper(true).map_err(Error::system("become a subreaper"))?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(Error::system("leave the host's mounts"))?;
    let place = |what: &str, target: &str, flags: MsFlags| {
        let fs_type = (!flags.contains(MsFlags::MS_SLAVE)).then_some(what);
        mount(fs_type, target, fs_type, flags, None::<&str>).map_err(|source| Error::Mount {
            what: what.to_string(),
            target: target.into(),
            source: source.into(),
        })
    };
    // Mounts of the host are seen here, but mounts made here are not seen on the host.
    place("slave", "/", MsFlags::MS_SLAVE | MsFlags::MS_REC)?;
    place("tmpfs", SHARES, MsFlags::empty())?;
    place("tmpfs", DISKS, MsFlags::empty())?;
    place("tmpfs", MEMORY, MsFlags::empty())?;
    place("cgroup2", cgroup::MOUNT_POINT, MsFlags::empty())?;
    let parent = Path::new(cgroup::MOUNT_POINT).join("caisson-fake");
    fs::create_dir_all(&parent).map_err(Error::file("create directory", parent))?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_path_of_systemds_form_becomes_one_directory() {
        let path = Machine::Guest.cgroup_path("c", Some("kubepods.slice:cri:c1".into()));
        assert_eq!(path, Path::new("/kubepods.slice-cri-c1"));
    }

    #[test]
    fn cgroup_path_that_is_not_given_is_the_id() {
        assert_eq!(Machine::Guest.cgroup_path("c", None), Path::new("/c"));
    }
}
