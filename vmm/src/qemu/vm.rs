//! A running VM of QEMU.

use std::{
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use serde_json::{json, Value};
use tokio::time::timeout;

use super::{
    devices::{self, Backend},
    error::QmpError,
    events,
    machine::{Qemu, QemuConfig},
    ports::{Port, Ports},
    qmp::shortened,
    resize,
};
use crate::{
    driver::{
        devices::Devices,
        end::End,
        process::Child,
        size,
        stage::log_stage,
        state::{State, States},
        virtiofsd::{self, Access},
        vsock::{Dialer, Vsock},
    },
    Accelerator, Connecting, Device, DeviceId, Ended, Error, Placement, Result, Translations, Vm,
    VmSpec,
};

/// Names the cpus beyond those at boot.
const CPUS: &str = "cpus";
/// Names the balloon, of which a VM has at most one.
const BALLOON: &str = "balloon";

/// How long the daemon of the control channel may take to get the queues of a guest that goes on.
/// Nothing tells when it has them, and a connection before then ends the channel.
const RESUME_GRACE: Duration = Duration::from_millis(300);
/// How long QEMU may take to write its translations when it ends, on a busy host.
const QUIT_LIMIT: Duration = Duration::from_secs(20);

/// A running VM of QEMU, with everything that is plugged into it.
pub(super) struct QemuVm {
    qemu: Qemu,
    vsock: Option<Child>,
    dialer: Dialer,
    virtiofsd: PathBuf,
    /// The namespace of each virtiofsd that has none of its own.
    user_namespace: Arc<OwnedFd>,
    spec: VmSpec,
    ports: Ports,
    devices: Devices<Plugged>,
    end: End,
    states: States,
    /// Whether memory is attached, in the caller's eyes: its device stays when it is detached.
    has_memory: bool,
}

/// How a device is plugged into QEMU.
#[derive(Debug)]
struct Plugged {
    port: Port,
    backend: Backend,
}

impl QemuVm {
    /// Takes over a stopped machine and plugs in its control channel.
    pub(super) async fn new(
        config: &QemuConfig,
        spec: VmSpec,
        qemu: Qemu,
        vsock: Vsock,
        user_namespace: Arc<OwnedFd>,
    ) -> Result<QemuVm> {
        let (vsock_daemon, readiness) = vsock.daemon.unzip();
        let mut vm = QemuVm {
            virtiofsd: config.virtiofsd.clone(),
            user_namespace,
            ports: Ports::new(),
            devices: Devices::new(),
            dialer: vsock.dialer,
            vsock: vsock_daemon,
            end: End::watch(&qemu.child, qemu.end.clone(), qemu.console.clone()),
            qemu,
            spec,
            states: States::new(State::Running),
            has_memory: false,
        };
        if let Some(daemon) = &vm.vsock {
            vm.end.comes_with(daemon);
        }
        if vm.spec.template.is_some() && resize::pluggable_memory(&vm.spec) > 0 {
            let port = vm.ports.take(resize::MEMORY)?;
            let backend = Backend::Object(resize::MEMORY_BACKEND);
            let plugged = Plugged { port, backend };
            vm.devices.add(resize::MEMORY, plugged, None, &vm.end);
        }
        let (backend, properties) = devices::add_vsock(&vm.qemu.qmp, vsock.device).await?;
        vm.plug("vsock", backend, properties, None).await?;
        if let Some(readiness) = readiness {
            let qmp = vm.qemu.qmp.clone();
            tokio::spawn(readiness.watch(devices::driver_is_up(qmp, "vsock")));
        }
        Ok(vm)
    }

    /// Starts the machine.
    pub(super) async fn start(&self) -> Result<()> {
        self.qemu.qmp.execute("cont", json!({})).await?;
        if self.spec.template.is_some() {
            // The guest has asked already, before it was saved.
            self.qemu.question.answer();
        }
        Ok(())
    }

    fn children(&self) -> impl Iterator<Item = &Child> {
        [&self.qemu.child]
            .into_iter()
            .chain(&self.vsock)
            .chain(self.devices.daemons())
    }

    /// Lets QEMU end by itself, so that it writes what it writes at its end.
    async fn quit(&self) -> Result<()> {
        let quit = self.qemu.qmp.execute("quit", json!({}));
        let ended = async {
            // QEMU may end before it has answered.
            let _ = quit.await;
            self.qemu.child.ended().await
        };
        match timeout(QUIT_LIMIT, ended).await {
            Ok(how) if how.starts_with("exit status 0") => Ok(()),
            Ok(how) => Err(Error::ProcessDied {
                role: self.qemu.child.role().to_owned(),
                how,
            }),
            Err(_) => Err(Error::TimedOut {
                what: "QEMU's own end".to_owned(),
                limit: QUIT_LIMIT,
            }),
        }
    }

    async fn plug(
        &mut self,
        id: &str,
        backend: Backend,
        properties: Value,
        daemon: Option<Child>,
    ) -> Result<DeviceId> {
        let port = self.ports.take(id)?;
        let plugged = devices::plug(&self.qemu.qmp, id, &port, &backend, properties).await;
        if let Err(error) = plugged {
            self.ports.give_back(port);
            return Err(error);
        }
        let plugged = Plugged { port, backend };
        Ok(self.devices.add(id, plugged, daemon, &self.end))
    }

    /// Gives the guest `total` bytes of memory. The device for more than that at boot is plugged in
    /// when it is first needed, and stays, if need be without memory.
    async fn resize_memory(&mut self, total: u64) -> Result<()> {
        if !self.devices.has(resize::MEMORY) {
            if total <= self.spec.memory {
                return Ok(());
            }
            let backend = resize::memory_backend(&self.spec);
            self.qemu.qmp.execute("object-add", backend).await?;
            let backend = Backend::Object(resize::MEMORY_BACKEND);
            self.plug(resize::MEMORY, backend, resize::memory_device(), None)
                .await?;
        }
        resize::resize_memory(&self.qemu.qmp, &self.spec, total).await
    }

    async fn attach_shared_dir(
        &mut self,
        tag: String,
        path: PathBuf,
        access: Access,
        user_namespace: Option<OwnedFd>,
    ) -> Result<DeviceId> {
        let id = format!("share-{tag}");
        self.devices.check(&id, &tag, 36)?;
        let (daemon, connection) = virtiofsd::start(
            &self.virtiofsd,
            &self.spec,
            &tag,
            &path,
            access,
            user_namespace.map_or_else(|| self.user_namespace.clone(), Arc::new),
        )
        .await?;
        let qmp = &self.qemu.qmp;
        let connected = devices::add_vhost_user(qmp, &id, connection);
        let backend = daemon.unless_it_ends(connected).await?;
        let properties = json!({
            "driver": "vhost-user-fs-pci",
            "chardev": id,
            "tag": tag,
        });
        self.plug(&id, backend, properties, Some(daemon)).await
    }

    async fn attach_disk(
        &mut self,
        serial: String,
        path: PathBuf,
        read_only: bool,
    ) -> Result<DeviceId> {
        let id = format!("disk-{serial}");
        self.devices.check(&id, &serial, 20)?;
        let backend = devices::add_block(&self.qemu.qmp, &id, &path, read_only).await?;
        let properties = json!({
            "driver": "virtio-blk-pci",
            "drive": id,
            "serial": serial,
            // The guest sees a full or failing disk, as on any machine. By default QEMU would pause
            // the guest.
            "werror": "report",
            "rerror": "report",
        });
        self.plug(&id, backend, properties, None).await
    }

    async fn attach_network(
        &mut self,
        tap: OwnedFd,
        vhost: Option<OwnedFd>,
        mac: [u8; 6],
        mtu: u16,
    ) -> Result<DeviceId> {
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        let id = format!("net-{}", mac.replace(':', ""));
        self.devices.check(&id, &id, 36)?;
        // Under emulation QEMU would have to carry vhost's interrupts itself.
        let vhost = vhost.filter(|_| self.spec.accelerator == Accelerator::Kvm);
        let backend = devices::add_tap(&self.qemu.qmp, &id, tap, vhost).await?;
        let properties = json!({
            "driver": "virtio-net-pci",
            "netdev": id,
            "mac": mac,
            "host_mtu": mtu,
            // The VM does not boot from it, and QEMU's package only recommends the package with
            // this file.
            "romfile": "",
        });
        self.plug(&id, backend, properties, None).await
    }
}

#[async_trait]
impl Vm for QemuVm {
    fn connect(&self, port: u32, within: Duration) -> Connecting {
        if let Err(error) = self.end.not_yet() {
            return Box::pin(std::future::ready(Err(error)));
        }
        let connecting =
            self.dialer
                .connect(port, within, self.spec.secret.clone(), self.states.follow());
        let ended = self.wait();
        Box::pin(async move {
            tokio::select! {
                connection = connecting => connection,
                reason = ended => Err(Error::Ended(reason)),
            }
        })
    }

    async fn attach(&mut self, device: Device) -> Result<DeviceId> {
        self.end.not_yet()?;
        let started = Instant::now();
        let id = match device {
            Device::SharedDir {
                tag,
                path,
                read_only,
                exclusive,
                user_namespace,
            } => {
                let access = Access {
                    read_only,
                    exclusive,
                };
                self.attach_shared_dir(tag, path, access, user_namespace)
                    .await?
            }
            Device::Disk {
                serial,
                path,
                read_only,
            } => self.attach_disk(serial, path, read_only).await?,
            Device::Network {
                tap,
                vhost,
                mac,
                mtu,
            } => self.attach_network(tap, vhost, mac, mtu).await?,
            Device::FreePageReporting => {
                self.devices.check(BALLOON, BALLOON, 36)?;
                let properties = json!({
                    "driver": "virtio-balloon-pci",
                    "free-page-reporting": true,
                });
                self.plug(BALLOON, Backend::None, properties, None).await?
            }
            Device::Cpus(total) => {
                resize::add_cpus(&self.qemu.qmp, &self.spec, total).await?;
                DeviceId(CPUS.to_owned())
            }
            Device::Memory(total) => {
                self.states.allow("change the memory of", State::Running)?;
                size::check_memory(&self.spec, total)?;
                self.has_memory = true;
                self.resize_memory(total).await?;
                DeviceId(resize::MEMORY.to_owned())
            }
        };
        log_stage(&format!("attach {}", id.0), started);
        Ok(id)
    }

    async fn detach(&mut self, id: DeviceId) -> Result<()> {
        self.end.not_yet()?;
        self.states.allow("detach a device of", State::Running)?;
        if id.0 == resize::MEMORY {
            if !self.has_memory {
                return Err(Error::UnknownDevice(id.0));
            }
            self.resize_memory(self.spec.memory).await?;
            self.has_memory = false;
            return Ok(());
        }
        let device = self.devices.take(&id)?;
        let unplugged = devices::unplug(&self.qemu.qmp, &id.0, &device.plug.backend).await;
        if let Err(error) = unplugged {
            self.devices.put_back(id, device, &self.end);
            return Err(error);
        }
        self.ports.give_back(device.plug.port);
        device.end_daemon().await
    }

    fn devices(&self) -> Vec<(DeviceId, Option<String>)> {
        let plugs = self.devices.plugs();
        plugs
            .map(|(id, plug)| (DeviceId(id.to_owned()), Some(plug.port.to_string())))
            .collect()
    }

    async fn pause(&mut self) -> Result<()> {
        self.end.not_yet()?;
        self.states.allow("pause", State::Running)?;
        self.qemu.pause.set(true);
        let qmp = &self.qemu.qmp;
        let paused = async {
            qmp.execute("stop", json!({})).await?;
            qmp.execute("query-status", json!({})).await
        };
        match paused.await {
            Ok(status) if status["status"] == "paused" => {
                self.states.set(State::Paused);
                Ok(())
            }
            // The machine stopped by itself just before, and nobody was told.
            Ok(status) if status["running"] == false => {
                let error = Error::ProcessDied {
                    role: self.qemu.child.role().to_owned(),
                    how: events::INTERNAL_ERROR.to_owned(),
                };
                self.qemu.child.kill();
                Err(error)
            }
            Ok(status) => {
                self.qemu.pause.set(false);
                let text = format!("paused, but {}", shortened(&status));
                Err(QmpError::Protocol(text).into())
            }
            Err(error) => {
                self.qemu.pause.set(false);
                Err(error.into())
            }
        }
    }

    async fn resume(&mut self) -> Result<()> {
        self.end.not_yet()?;
        self.states.allow("resume", State::Paused)?;
        self.qemu.pause.set(false);
        self.start().await?;
        if self.vsock.is_some() {
            tokio::time::sleep(RESUME_GRACE).await;
        }
        // From now on it is dialed.
        self.states.set(State::Running);
        Ok(())
    }

    fn wait(&self) -> Ended {
        self.end.wait()
    }

    async fn stop(&mut self) -> Result<()> {
        self.end.stop();
        let quit = match self.spec.translations() {
            Translations::To(_) => self.quit().await,
            Translations::Own | Translations::From(_) => Ok(()),
        };
        self.children().for_each(Child::kill);
        for child in self.children() {
            child.stop().await?;
        }
        quit
    }

    fn set_oom_score_adj(&mut self, score: i32) {
        if self.spec.placement.oom_score_adj != score {
            self.spec.placement.oom_score_adj = score;
            self.children()
                .for_each(|child| child.set_oom_score_adj(score));
        }
    }

    async fn relocate(&mut self, dir: PathBuf, placement: Placement) -> Result<()> {
        self.end.not_yet()?;
        self.spec.dir = dir;
        self.spec.placement = placement;
        let placement = &self.spec.placement;
        let moves: Vec<_> = self.children().map(|c| c.relocate(placement)).collect();
        for moved in moves {
            moved.await?;
        }
        Ok(())
    }

    fn pids(&self) -> Vec<(String, u32)> {
        self.children()
            .map(|child| (child.role().to_owned(), child.pid()))
            .collect()
    }

    fn open_files(&self) -> u64 {
        let daemons = self.devices.daemons();
        daemons.map(virtiofsd::open_files).max().unwrap_or(0)
    }
}
