//! VMs without a hypervisor, for tests: the real agent serves on the host, as
//! `caisson-agent --fake DIR`.
//!
//! `DIR` is [`VmSpec::dir`]. The agent takes its secret from `DIR/secret`. A port is the unix
//! socket `DIR/<port>.sock`; a shared directory or disk is `DIR/devices/<tag or serial>`. The size
//! is the host's, and a network card does nothing.

use std::{
    collections::HashMap,
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
use tokio::{
    io::AsyncWriteExt,
    net::UnixStream,
    sync::watch,
    time::{sleep, Instant},
};

use crate::{
    driver::{
        limits::Limits,
        process::Child,
        spawn::{Confinement, Program},
    },
    Connecting, Device, DeviceId, EndReason, Ended, Error, Result, Secret, Vm, VmSpec, Vmm,
    BY_DAEMON,
};

/// The pause between two tries to connect.
const RETRY: Duration = Duration::from_millis(2);

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

#[async_trait]
impl Vmm for FakeVmm {
    async fn boot(&self, spec: VmSpec) -> Result<Box<dyn Vm>> {
        let failed = |what: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source| Error::File { what, path, source }
        };
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
        let (sender, ended) = watch::channel(None);
        let (stop, mut stopped) = watch::channel(false);
        let agent_ended = agent.ended();
        tokio::spawn(async move {
            let reason = tokio::select! {
                biased;
                // This also resolves when the VM was dropped.
                () = async { drop(stopped.wait_for(|stopped| *stopped).await) } => EndReason::Stopped,
                how = agent_ended => match how.as_str() {
                    "exit status 0" => EndReason::GuestEnded(how),
                    _ => EndReason::ProcessDied { role: "agent".to_owned(), how },
                },
            };
            let _ = sender.send(Some(reason));
        });
        Ok(Box::new(FakeVm {
            agent,
            dir: Arc::new(dir.into()),
            secret: spec.secret,
            devices,
            attached: HashMap::new(),
            stop,
            ended,
        }))
    }
}

struct FakeVm {
    agent: Child,
    dir: Arc<OwnedFd>,
    secret: Secret,
    devices: PathBuf,
    attached: HashMap<String, Attached>,
    stop: watch::Sender<bool>,
    ended: watch::Receiver<Option<EndReason>>,
}

/// What to undo when a device goes.
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
    fn path_of(&self, name: &str) -> Result<PathBuf> {
        let rule = match name {
            "" | "." | ".." => "its name is none",
            _ if name.contains('/') => "its name has a slash",
            _ if self.devices.join(name).symlink_metadata().is_ok() => "the VM has it already",
            _ => return Ok(self.devices.join(name)),
        };
        Err(Error::InvalidDevice {
            id: name.to_owned(),
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
        let (dir, secret) = (self.dir.clone(), self.secret.clone());
        let mut ended = self.wait();
        Box::pin(async move {
            let end = Instant::now() + within;
            // Through the descriptor, since a socket's path has at most 107 bytes (unix(7)).
            let path = format!("/proc/self/fd/{}/{port}.sock", dir.as_raw_fd());
            loop {
                if let Ok(mut stream) = UnixStream::connect(&path).await {
                    if stream.write_all(secret.bytes()).await.is_ok() {
                        return Ok(stream);
                    }
                }
                if Instant::now() >= end {
                    return Err(Error::TimedOut {
                        what: format!("connection to port {port} of the agent"),
                        limit: within,
                    });
                }
                tokio::select! {
                    () = sleep(RETRY) => {}
                    reason = &mut ended => return Err(Error::Ended(reason)),
                }
            }
        })
    }

    async fn attach(&mut self, device: Device) -> Result<DeviceId> {
        let (id, attached) = match device {
            Device::SharedDir { tag, path, .. } => {
                let attached = link(&path, self.path_of(&tag)?)?;
                (format!("share-{tag}"), attached)
            }
            Device::Disk {
                serial,
                path,
                read_only,
            } => {
                let at = self.path_of(&serial)?;
                let attached = match path.is_dir() {
                    true => link(&path, at)?,
                    false => mount_image(&path, at, read_only).await?,
                };
                (format!("disk-{serial}"), attached)
            }
            Device::Network { tap, mac, .. } => {
                let mac = mac.map(|byte| format!("{byte:02x}")).concat();
                (format!("net-{mac}"), Attached::Tap(tap))
            }
            Device::Cpus(_) => ("cpus".to_owned(), Attached::Nothing),
            Device::FreePageReporting => ("balloon".to_owned(), Attached::Nothing),
            Device::Memory(_) => ("memory".to_owned(), Attached::Nothing),
        };
        self.attached.insert(id.clone(), attached);
        Ok(DeviceId(id))
    }

    async fn detach(&mut self, id: DeviceId) -> Result<()> {
        match self.attached.remove(&id.0) {
            Some(_) => Ok(()),
            None => Err(Error::UnknownDevice(id.0)),
        }
    }

    fn wait(&self) -> Ended {
        let mut ended = self.ended.clone();
        Box::pin(async move {
            match ended.wait_for(Option::is_some).await {
                Ok(reason) => reason.clone().unwrap_or(EndReason::Stopped),
                Err(_) => EndReason::Stopped,
            }
        })
    }

    async fn stop(&mut self) -> Result<()> {
        let _ = self.stop.send(true);
        let stopped = self.agent.stop().await;
        self.attached.clear();
        stopped
    }

    fn set_oom_score_adj(&mut self, score: i32) {
        self.agent.set_oom_score_adj(score);
    }

    fn pids(&self) -> Vec<(String, u32)> {
        vec![(self.agent.role().to_owned(), self.agent.pid())]
    }
}
