//! Holds the containers of this guest and carries out the operations on them. Called by
//! [`crate::service`]. `create` and `exec` have the operations that start processes.
//!
//! No lock is held across an await, except a container's `step` lock: steps of one container that
//! exclude each other take it, and nothing else waits for it.

mod container;
mod create;
mod exec;
pub mod files;
mod follow;
mod memory;
mod namespaces;
pub mod oom;
mod part;
mod process;
pub mod room;
pub mod streams;

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicU64, Ordering},
        Arc, Mutex, MutexGuard,
    },
    time::Duration,
};

use caisson_protocol::{
    agent::{self, show_request::Source, StatsResponse},
    path::SHARES,
};
use nix::errno::Errno;
use tokio::{net::UnixStream, time::timeout};

use self::{
    container::Container, follow::Followed, namespaces::PodNamespaces, oom::Oom, streams::Streams,
};
use crate::{
    devices::{share, target},
    kernel::mounts,
    launch,
    machine::Machine,
    reaper::Reaper,
    runtime::task::Request,
    Error, Result,
};

/// How long a killed init may take to end.
const KILLED: Duration = Duration::from_secs(10);
/// The socket on which libcontainer's init waits for its start, and the message that starts it.
const START_SOCKET: &str = "notify.sock";
const START: &[u8] = b"start container";

/// All containers of the guest.
pub struct Containers {
    machine: Machine,
    reaper: Reaper,
    streams: Streams,
    oom: Oom,
    pod_namespaces: PodNamespaces,
    followed: Followed,
    table: Mutex<HashMap<String, Arc<Container>>>,
    files: AtomicU64,
}

impl Containers {
    pub fn new(machine: Machine, reaper: Reaper, streams: Streams, oom: Oom) -> Containers {
        Containers {
            machine,
            pod_namespaces: PodNamespaces::new(reaper.clone()),
            followed: Followed::default(),
            reaper,
            streams,
            oom,
            table: Mutex::default(),
            files: AtomicU64::new(0),
        }
    }

    /// Runs a created container's program.
    pub async fn start(&self, id: &str) -> Result<()> {
        let container = self.get(id)?;
        let _step = container.step.lock().await;
        container.expect("start", &["created"])?;
        container.limit_cpu()?;
        let dir = self.state_dir(id);
        let failed = || Error::file("write", dir.join(START_SOCKET));
        // The path of a socket has at most 108 bytes. The path through the descriptor always fits.
        let opened = fs::File::open(&dir).map_err(Error::file("open", &dir))?;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&opened);
        let address = format!("/proc/self/fd/{fd}/{START_SOCKET}");
        let send = async {
            let socket = UnixStream::connect(&address).await?;
            socket.writable().await?;
            let mut socket = socket;
            tokio::io::AsyncWriteExt::write_all(&mut socket, START).await
        };
        match timeout(KILLED, send).await {
            Ok(sent) => sent.map_err(failed())?,
            Err(_) => {
                return Err(Error::Slow {
                    what: "start the container",
                    waited: KILLED,
                })
            }
        }
        container.started.store(true, Ordering::SeqCst);
        log::info!(container = id; "container started");
        Ok(())
    }

    /// Kills what is left of a container and removes it.
    pub async fn delete(&self, id: &str) -> Result<()> {
        let container = self.get(id)?;
        let _step = container.step.lock().await;
        if let "running" | "paused" = container.state() {
            return Err(container.refuse("delete"));
        }
        self.oom.forget(id);
        container.cgroup.kill()?;
        if let Some(init) = container.init.get() {
            // Without a usable cgroup, the init may be in another one.
            if let Err(error) = init.signal(libc::SIGKILL as u32) {
                if error != Errno::ESRCH {
                    return Err(Error::system("kill the container")(error));
                }
            }
            if timeout(KILLED, init.wait()).await.is_err() {
                return Err(Error::Slow {
                    what: "kill the container",
                    waited: KILLED,
                });
            }
        }
        self.clean(&container).await?;
        self.lock().remove(id);
        log::info!(container = id; "container deleted");
        Ok(())
    }

    async fn clean(&self, container: &Arc<Container>) -> Result<()> {
        container.cgroup.remove().await?;
        self.followed.remove(&container.id)?;
        for dir in [self.state_dir(&container.id), container.bundle.clone()] {
            match fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::file("remove", dir)(error))
                }
                _ => {}
            }
        }
        for place in container.parts.iter().rev() {
            if !self.others_use(container, |other| other.parts.contains(place)) {
                part::remove(place)?;
            }
        }
        // Where a path crossed something that the host mounted below a share, it became a mount of
        // its own here. The host can't unmount it while the guest holds it.
        let mut found = false;
        for path in &container.shared {
            // What other containers use stays mounted: mounting it again would give them other
            // inodes.
            if self.others_use(container, |other| other.shared.contains(path)) {
                continue;
            }
            if path.components().count() > Path::new(SHARES).components().count() + 1 {
                found |= mounts::unmount(path)?;
            }
        }
        match (found, &self.machine) {
            (true, Machine::Guest) => share::forget_files(),
            _ => Ok(()),
        }
    }

    /// Whether a container other than this one uses something.
    fn others_use(&self, container: &Arc<Container>, uses: impl Fn(&Container) -> bool) -> bool {
        let all = self.lock();
        let mut others = all.values().filter(|other| !Arc::ptr_eq(other, container));
        others.any(|other| uses(other))
    }

    /// Waits for the end of a process and returns its status.
    pub async fn wait(&self, id: &str, exec: &str) -> Result<u32> {
        let container = self.get(id)?;
        if exec.is_empty() {
            let init = container
                .init
                .get()
                .ok_or_else(|| container.refuse("wait"))?;
            return Ok(init.wait().await);
        }
        let process = container.process(exec)?;
        Ok(process.wait().await)
    }

    /// Sends a signal to a process, or to all processes of a container.
    pub fn kill(&self, request: &agent::KillRequest) -> Result<()> {
        let container = self.get(&request.container_id)?;
        let signal = request.signal;
        if signal > 64 {
            return Err(Error::Argument {
                field: "signal",
                value: signal.to_string(),
                why: "must be 0 to 64",
            });
        }
        if request.all {
            if signal == libc::SIGKILL as u32 && container.cgroup.path().exists() {
                return container.cgroup.kill();
            }
            for pid in container.cgroup.pids()? {
                // SAFETY: the arguments are plain numbers. A process that has ended meanwhile is no
                // failure.
                unsafe { libc::kill(pid as i32, signal as i32) };
            }
            return Ok(());
        }
        let sent = match request.exec_id.as_str() {
            "" => container
                .init
                .get()
                .ok_or_else(|| container.refuse("kill"))?
                .signal(signal),
            exec => container.process(exec)?.signal(signal),
        };
        match sent {
            Ok(()) => Ok(()),
            Err(Errno::ESRCH) => Err(Error::NoProcess {
                container: request.container_id.clone(),
                exec: request.exec_id.clone(),
                what: "already finished",
            }),
            Err(error) => Err(Error::system("send a signal")(error)),
        }
    }

    /// Sets the size of a process' terminal.
    pub fn resize(&self, request: &agent::ResizePtyRequest) -> Result<()> {
        let container = self.get(&request.container_id)?;
        let size = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
        let (width, height) = (size(request.width), size(request.height));
        match request.exec_id.as_str() {
            "" => match container.init.get() {
                Some(init) => init.resize(width, height),
                None => Err(container.refuse("resize")),
            },
            exec => container.process(exec)?.resize(width, height),
        }
    }

    /// Returns every process of a container.
    pub fn pids(&self, id: &str) -> Result<Vec<u32>> {
        self.get(id)?.cgroup.pids()
    }

    /// Freezes a running container.
    pub async fn pause(&self, id: &str) -> Result<()> {
        let container = self.get(id)?;
        let _step = container.step.lock().await;
        container.expect("pause", &["running"])?;
        container.cgroup.freeze(true).await?;
        container.paused.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Thaws a paused container.
    pub async fn resume(&self, id: &str) -> Result<()> {
        let container = self.get(id)?;
        let _step = container.step.lock().await;
        container.expect("resume", &["paused"])?;
        container.cgroup.freeze(false).await?;
        container.paused.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// Applies new limits.
    pub async fn update(&self, request: agent::UpdateRequest) -> Result<()> {
        let container = self.get(&request.container_id)?;
        let _step = container.step.lock().await;
        container.expect("update", &["created", "running", "paused"])?;
        // Otherwise, the start would undo the update.
        container.limit_cpu()?;
        let path = container.bundle.join("resources.json");
        fs::write(&path, &request.resources_json).map_err(Error::file("write", &path))?;
        let task = Request::Update {
            cgroup: container.cgroup_path.clone(),
            resources: path,
        };
        launch::run(&self.reaper.expect(), &task, &[])
            .await
            .map(drop)
    }

    /// Shows what is attached in a container, or hides it again.
    pub async fn show(&self, request: agent::ShowRequest) -> Result<()> {
        let container = self.get(&request.container_id)?;
        let _step = container.step.lock().await;
        container.expect("show something in", &["created", "running", "paused"])?;
        let Some(init) = container.init.get() else {
            return Err(container.refuse("show something in"));
        };
        let target = PathBuf::from(&request.target);
        if !target.is_absolute() {
            return Err(Error::Argument {
                field: "target",
                value: request.target,
                why: "must be absolute",
            });
        }
        let (source, read_only) = match &request.source {
            Some(Source::Disk(serial)) => (target::disk(serial)?, true),
            Some(Source::Share(tag)) => (target::share(tag)?, false),
            Some(Source::Files(name)) => (files::place(name)?, true),
            Some(_) | None => {
                return Err(Error::Argument {
                    field: "source",
                    value: String::new(),
                    why: "is missing",
                })
            }
        };
        let task = Request::Show {
            init: init.pid as i32,
            source,
            target,
            read_only,
            shown: request.shown,
        };
        launch::run(&self.reaper.expect(), &task, &[])
            .await
            .map(drop)
    }

    /// Returns the statistics of a container's cgroup.
    pub fn stats(&self, id: &str) -> Result<StatsResponse> {
        self.get(id)?.cgroup.stats()
    }

    /// Kills every container before the machine ends.
    pub fn kill_all(&self) {
        let all: Vec<Arc<Container>> = self.lock().values().cloned().collect();
        for container in all {
            if let Err(error) = container.cgroup.kill() {
                log::warn!(container = container.id, error = error.chain(); "kill at shutdown");
            }
        }
        self.pod_namespaces.kill();
    }

    /// Removes every container at the end of a test.
    pub async fn remove_all(&self) {
        self.kill_all();
        let all: Vec<Arc<Container>> = self.lock().drain().map(|(_, found)| found).collect();
        for container in all {
            if let Err(error) = self.clean(&container).await {
                log::error!(container = container.id, error = error.chain(); "clean up");
            }
        }
    }

    fn state_dir(&self, id: &str) -> PathBuf {
        self.machine.state().join("containers").join(id)
    }

    fn get(&self, id: &str) -> Result<Arc<Container>> {
        let found = self.lock().get(id).cloned();
        found.ok_or_else(|| Error::NoContainer(id.to_string()))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Container>>> {
        match self.table.lock() {
            Ok(table) => table,
            Err(poisoned) => poisoned.into_inner(),
        }
    }
}
