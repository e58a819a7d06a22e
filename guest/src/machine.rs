//! The machine on which the agent runs: a guest, or the host in tests.
//! [`crate::fake`] says what the host of a test shows of itself.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    cgroup,
    kernel::{module_disk::WANTED, mounts},
    launch,
    reaper::Reaper,
    runtime::task::Request,
    Error, Result,
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

    /// Returns the socket for what its kernel wants of the host, see
    /// [`crate::devices::wanted`].
    pub fn wishes(&self) -> PathBuf {
        match self {
            Machine::Guest => PathBuf::from(WANTED),
            Machine::Fake { dir } => dir.join("modules.wanted"),
        }
    }

    /// Returns the path of a container's cgroup below the mount point.
    pub fn cgroup_path(&self, id: &str) -> PathBuf {
        match self {
            Machine::Guest => Path::new(cgroup::ALL).join(id),
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
