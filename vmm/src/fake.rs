//! VMs without a hypervisor, for tests: the real agent serves on the host, as
//! `caisson-agent --fake DIR`.
//!
//! `DIR` is [`VmSpec::dir`]. The agent takes its secret from `DIR/secret`. A port is the unix
//! socket `DIR/<port>.sock`; a shared directory or disk is `DIR/devices/<tag or serial>`. The size
//! is the host's, and a network card does nothing. While the VM is paused, nobody can connect; its
//! processes run on. Of a saved VM only the size is kept.

use std::{
    fs::{self, File},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::symlink,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use nix::mount::{umount2, MntFlags};
use serde::{Deserialize, Serialize};
use tokio::{
    net::UnixStream,
    sync::watch,
    time::{sleep, timeout_at, Instant},
};

use crate::{
    driver::{
        devices::Devices,
        end::{End, Said},
        limits::Limits,
        log_lines::Tail,
        process::Child,
        size,
        spawn::{Confinement, Program},
        state::{State, States},
    },
    Connecting, Device, DeviceId, Ended, Error, Result, Vm, VmSpec, Vmm, BY_DAEMON,
};

/// The pause between two tries to connect.
const RETRY: Duration = Duration::from_millis(2);
/// The file that stands for a saved VM.
const SAVED: &str = "fake.json";
/// Names the memory beyond that at boot.
const MEMORY: &str = "memory";

/// Starts agents on the host. They need root, as in a guest.
#[derive(Debug)]
pub struct FakeVmm {
    agent: PathBuf,
}

impl FakeVmm {
    /// Uses the agent (`caisson-agent`) at this path.
    pub fn new(agent: PathBuf) -> FakeVmm {
        FakeVmm { agent }
    }
}

/// What [`Vm::save`] writes.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Saved {
    cpus: u32,
    memory: u64,
}

#[async_trait]
impl Vmm for FakeVmm {
    async fn boot(&self, spec: VmSpec, devices: Vec<Device>) -> Result<Box<dyn Vm>> {
        let (cpus, memory) = (spec.cpus, spec.memory);
        let vm = self.start(spec, State::Running, Saved { cpus, memory });
        let mut vm = vm.await?;
        for device in devices {
            vm.attach(device).await?;
        }
        Ok(Box::new(vm))
    }

    async fn restore(&self, spec: VmSpec, from: &Path) -> Result<Box<dyn Vm>> {
        let file = from.join(SAVED);
        let text = fs::read(&file).map_err(failed("read", &file))?;
        let saved: Saved =
            serde_json::from_slice(&text).map_err(|error| failed("read", &file)(error.into()))?;
        size::check_cpus(&spec, saved.cpus)?;
        size::check_memory(&spec, saved.memory)?;
        Ok(Box::new(self.start(spec, State::Paused, saved).await?))
    }
}

impl FakeVmm {
    async fn start(&self, spec: VmSpec, state: State, size: Saved) -> Result<FakeVm> {
        let devices = spec.dir.join("devices");
        fs::create_dir(&devices).map_err(failed("make", &devices))?;
        let secret = spec.dir.join("secret");
        fs::write(&secret, spec.secret.answer(BY_DAEMON)).map_err(failed("write", &secret))?;
        let dir = File::open(&spec.dir).map_err(failed("open", &spec.dir))?;
        let agent = self.agent.canonicalize();
        let agent = Child::start(Program {
            role: "agent".to_owned(),
            path: agent.map_err(failed("find agent", &self.agent))?,
            arguments: vec!["--fake".to_owned(), spec.dir.to_string_lossy().into_owned()],
            descriptors: Vec::new(),
            confinement: Confinement::None,
            placement: spec.placement.clone(),
            limits: Limits::default(),
        })
        .await?;
        let (say, said) = watch::channel(None);
        let agent_ended = agent.ended();
        tokio::spawn(async move {
            let how = agent_ended.await;
            if how == "exit status 0" {
                let _ = say.send(Some(Said::GuestEnded(how)));
            }
        });
        Ok(FakeVm {
            end: End::watch(&agent, said, Tail::default()),
            agent,
            dir: Arc::new(dir.into()),
            spec,
            paths: devices,
            devices: Devices::new(),
            states: States::new(state),
            size,
        })
    }
}

struct FakeVm {
    agent: Child,
    dir: Arc<OwnedFd>,
    spec: VmSpec,
    /// The directory with an entry for each share and disk.
    paths: PathBuf,
    devices: Devices<Attached>,
    end: End,
    states: States,
    size: Saved,
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Error + 'a {
    move |source| Error::File {
        what,
        path: path.to_owned(),
        source,
    }
}

/// What to undo when a device goes.
#[derive(Debug)]
enum Attached {
    Link(PathBuf),
    Mount(PathBuf),
    Tap(#[allow(dead_code)] OwnedFd), // held as a VMM would hold it
    Nothing,
}

impl Drop for Attached {
    fn drop(&mut self) {
        let path = match self {
            Attached::Link(path) => path,
            Attached::Mount(path) => {
                let _ = umount2(path.as_path(), MntFlags::MNT_DETACH);
                let _ = fs::remove_dir(path);
                return;
            }
            Attached::Tap(_) | Attached::Nothing => return,
        };
        let _ = fs::remove_file(path);
    }
}

impl FakeVm {
    /// The place of a share or disk, if its name is as QEMU would take it.
    fn path_of(&self, id: &str, name: &str, longest: usize) -> Result<PathBuf> {
        self.devices.check(id, name, longest)?;
        let rule = match name {
            "." | ".." => "its name is none",
            _ if self.paths.join(name).symlink_metadata().is_ok() => "the VM has it already",
            _ => return Ok(self.paths.join(name)),
        };
        Err(Error::InvalidDevice {
            id: id.to_owned(),
            rule,
        })
    }
}

fn link(path: &Path, at: PathBuf) -> Result<Attached> {
    let failed = |source| Error::File {
        what: "find",
        path: path.to_owned(),
        source,
    };
    let path = path.canonicalize().map_err(failed)?;
    symlink(path, &at).map_err(failed)?;
    Ok(Attached::Link(at))
}

/// Mounts an image through a loop device, if the host has any.
async fn mount_image(image: &Path, at: PathBuf, read_only: bool) -> Result<Attached> {
    let failed = |source| Error::File {
        what: "mount disk",
        path: image.to_owned(),
        source,
    };
    fs::create_dir(&at).map_err(failed)?;
    // From here on the directory is removed too.
    let attached = Attached::Mount(at.clone());
    let options = if read_only { "loop,ro" } else { "loop" };
    let mut mount = tokio::process::Command::new("mount");
    mount.arg("-o").arg(options).arg(image).arg(&at);
    let output = mount.output().await.map_err(failed)?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(failed(std::io::Error::other(text)));
    }
    Ok(attached)
}

#[async_trait]
impl Vm for FakeVm {
    fn connect(&self, port: u32, within: Duration) -> Connecting {
        let (dir, secret) = (self.dir.clone(), self.spec.secret.clone());
        let mut state = self.states.follow();
        let ended = self.end.not_yet();
        let mut end = self.wait();
        Box::pin(async move {
            ended?;
            let limit = Instant::now() + within;
            // Through the descriptor, since a socket's path has at most 107 bytes (unix(7)).
            let path = format!("/proc/self/fd/{}/{port}.sock", dir.as_raw_fd());
            loop {
                // The agent runs on while the VM is paused, but nobody new reaches it.
                let runs = state.wait_for(|state| *state == State::Running);
                let runs = timeout_at(limit, runs).await.is_ok();
                if runs {
                    if let Ok(stream) = UnixStream::connect(&path).await {
                        if let Ok(Ok(stream)) = timeout_at(limit, secret.tell(stream)).await {
                            return Ok(stream);
                        }
                    }
                }
                if Instant::now() >= limit {
                    return Err(Error::TimedOut {
                        what: format!("connection to port {port} of the agent"),
                        limit: within,
                    });
                }
                tokio::select! {
                    () = sleep(RETRY) => {}
                    reason = &mut end => return Err(Error::Ended(reason)),
                }
            }
        })
    }

    async fn attach(&mut self, device: Device) -> Result<DeviceId> {
        self.end.not_yet()?;
        let (id, attached) = match device {
            Device::SharedDir { tag, path, .. } => {
                let id = format!("share-{tag}");
                let attached = link(&path, self.path_of(&id, &tag, 36)?)?;
                (id, attached)
            }
            Device::Disk {
                serial,
                path,
                read_only,
            } => {
                let id = format!("disk-{serial}");
                let at = self.path_of(&id, &serial, 20)?;
                let attached = match path.is_dir() {
                    true => link(&path, at)?,
                    false => mount_image(&path, at, read_only).await?,
                };
                (id, attached)
            }
            Device::Network { tap, mac, .. } => {
                let mac = mac.map(|byte| format!("{byte:02x}")).concat();
                let id = format!("net-{mac}");
                self.devices.check(&id, &id, 36)?;
                (id, Attached::Tap(tap))
            }
            Device::FreePageReporting => {
                self.devices.check("balloon", "balloon", 36)?;
                ("balloon".to_owned(), Attached::Nothing)
            }
            Device::Cpus(total) => {
                size::check_cpus(&self.spec, total)?;
                self.size.cpus = self.size.cpus.max(total);
                return Ok(DeviceId("cpus".to_owned()));
            }
            Device::Memory(total) => {
                self.states.allow("change the memory of", State::Running)?;
                size::check_memory(&self.spec, total)?;
                self.size.memory = total.max(self.spec.memory);
                (MEMORY.to_owned(), Attached::Nothing)
            }
        };
        Ok(self.devices.add(&id, attached, None, &self.end))
    }

    fn devices(&self) -> Vec<(DeviceId, Option<String>)> {
        let plugs = self.devices.plugs();
        plugs
            .map(|(id, _)| (DeviceId(id.to_owned()), None))
            .collect()
    }

    async fn detach(&mut self, id: DeviceId) -> Result<()> {
        self.end.not_yet()?;
        self.states.allow("detach a device of", State::Running)?;
        let device = self.devices.take(&id)?;
        if id.0 == MEMORY {
            self.size.memory = self.spec.memory;
        }
        device.end_daemon().await
    }

    async fn pause(&mut self) -> Result<()> {
        self.end.not_yet()?;
        self.states.allow("pause", State::Running)?;
        self.states.set(State::Paused);
        Ok(())
    }

    async fn resume(&mut self) -> Result<()> {
        self.end.not_yet()?;
        self.states.allow("resume", State::Paused)?;
        self.states.set(State::Running);
        Ok(())
    }

    async fn save(&mut self, dir: &Path) -> Result<()> {
        self.end.not_yet()?;
        self.states.allow("save", State::Paused)?;
        let mut plugs = self.devices.plugs();
        if let Some((id, _)) = plugs.find(|(_, plug)| !matches!(plug, Attached::Nothing)) {
            return Err(Error::InvalidDevice {
                id: id.to_owned(),
                rule: "a VM can't be saved with it",
            });
        }
        let file = dir.join(SAVED);
        let text =
            serde_json::to_vec(&self.size).map_err(|error| failed("write", &file)(error.into()));
        fs::write(&file, text?).map_err(failed("write", &file))
    }

    fn wait(&self) -> Ended {
        self.end.wait()
    }

    async fn stop(&mut self) -> Result<()> {
        self.end.stop();
        let stopped = self.agent.stop().await;
        self.devices.clear();
        stopped
    }

    fn set_oom_score_adj(&mut self, score: i32) {
        self.agent.set_oom_score_adj(score);
    }

    fn pids(&self) -> Vec<(String, u32)> {
        vec![(self.agent.role().to_owned(), self.agent.pid())]
    }
}
