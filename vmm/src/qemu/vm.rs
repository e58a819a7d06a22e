//! A running VM of QEMU.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use serde_json::{json, Value};
use tokio::sync::{mpsc, watch};

use super::{
    devices::{self, Backend},
    end,
    machine::{Qemu, QemuConfig},
    ports::{Port, Ports},
    resize,
};
use crate::{
    driver::{
        process::Child,
        stage::log_stage,
        virtiofsd,
        vsock::{Dialer, Vsock},
    },
    Accelerator, Connecting, Device, DeviceId, EndReason, Ended, Error, Result, Vm, VmSpec,
};

/// Names the cpus beyond those at boot, for [`Vm::detach`].
const CPUS: &str = "cpus";

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
    devices: HashMap<String, Plugged>,
    /// Sends the role and the end of each process that the VM can't do without.
    deaths: mpsc::UnboundedSender<(String, String)>,
    stop: watch::Sender<bool>,
    ended: watch::Receiver<Option<EndReason>>,
}

struct Plugged {
    port: Port,
    backend: Backend,
    daemon: Option<Daemon>,
}

/// The process behind a device. If it ends before the device is unplugged, the VM ends too.
struct Daemon {
    child: Child,
    watch: tokio::task::JoinHandle<()>,
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
        let (deaths, died) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(false);
        let (sender, ended) = watch::channel(None);
        tokio::spawn(end::watch(
            qemu.console.clone(),
            qemu.end.clone(),
            died,
            stopped,
            sender,
        ));
        let (vsock_daemon, readiness) = vsock.daemon.unzip();
        let mut vm = QemuVm {
            virtiofsd: config.virtiofsd.clone(),
            user_namespace,
            ports: Ports::new(),
            devices: HashMap::new(),
            dialer: vsock.dialer,
            vsock: vsock_daemon,
            qemu,
            spec,
            deaths,
            stop,
            ended,
        };
        vm.report_end(&vm.qemu.child);
        if let Some(daemon) = &vm.vsock {
            vm.report_end(daemon);
        }
        let (backend, properties) = devices::add_vsock(&vm.qemu.qmp, vsock.device).await?;
        vm.plug("vsock", backend, properties, None).await?;
        if let Some(properties) = resize::add_memory(&vm.qemu.qmp, &vm.spec).await? {
            vm.plug(resize::MEMORY, Backend::None, properties, None)
                .await?;
        }
        if let Some(readiness) = readiness {
            let qmp = vm.qemu.qmp.clone();
            tokio::spawn(readiness.watch(devices::driver_is_up(qmp, "vsock")));
        }
        Ok(vm)
    }

    /// Starts the machine.
    pub(super) async fn resume(&self) -> Result<()> {
        self.qemu.qmp.execute("cont", json!({})).await?;
        Ok(())
    }

    fn children(&self) -> impl Iterator<Item = &Child> {
        let daemons = self.devices.values().filter_map(|d| d.daemon.as_ref());
        let daemons = daemons.map(|daemon| &daemon.child);
        [&self.qemu.child]
            .into_iter()
            .chain(&self.vsock)
            .chain(daemons)
    }

    fn report_end(&self, child: &Child) -> tokio::task::JoinHandle<()> {
        let role = child.role().to_owned();
        let ended = child.ended();
        let deaths = self.deaths.clone();
        tokio::spawn(async move {
            let how = ended.await;
            let _ = deaths.send((role, how));
        })
    }

    fn ensure_running(&self) -> Result<()> {
        match &*self.ended.borrow() {
            Some(reason) => Err(Error::Ended(format!("{reason:?}"))),
            None => Ok(()),
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
        let daemon = daemon.map(|child| Daemon {
            watch: self.report_end(&child),
            child,
        });
        self.devices.insert(
            id.to_owned(),
            Plugged {
                port,
                backend,
                daemon,
            },
        );
        Ok(DeviceId(id.to_owned()))
    }

    /// Refuses names that QEMU or the guest would misinterpret.
    fn check_name(&self, id: &str, name: &str, longest: usize) -> Result<()> {
        let rule = if name.is_empty() || name.len() > longest {
            "its name is empty or too long"
        } else if !name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        {
            "its name has other characters than letters, digits, `-`, `_` and `.`"
        } else if self.devices.contains_key(id) {
            "the VM has it already"
        } else {
            return Ok(());
        };
        Err(Error::InvalidDevice {
            id: id.to_owned(),
            rule,
        })
    }

    async fn attach_shared_dir(
        &mut self,
        tag: String,
        path: PathBuf,
        read_only: bool,
        user_namespace: Option<OwnedFd>,
    ) -> Result<DeviceId> {
        let id = format!("share-{tag}");
        self.check_name(&id, &tag, 36)?;
        let (daemon, connection) = virtiofsd::start(
            &self.virtiofsd,
            &self.spec,
            &tag,
            &path,
            read_only,
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
        self.check_name(&id, &serial, 20)?;
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
        self.check_name(&id, &id, 36)?;
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
        let connecting = self.dialer.connect(port, within, self.spec.secret.clone());
        let ended = self.wait();
        Box::pin(async move {
            tokio::select! {
                connection = connecting => connection,
                reason = ended => Err(Error::Ended(format!("{reason:?}"))),
            }
        })
    }

    async fn attach(&mut self, device: Device) -> Result<DeviceId> {
        self.ensure_running()?;
        let started = Instant::now();
        let id = match device {
            Device::SharedDir {
                tag,
                path,
                read_only,
                user_namespace,
            } => {
                self.attach_shared_dir(tag, path, read_only, user_namespace)
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
                let properties = json!({
                    "driver": "virtio-balloon-pci",
                    "free-page-reporting": true,
                });
                self.plug("balloon", Backend::None, properties, None)
                    .await?
            }
            Device::Cpus(total) => {
                resize::add_cpus(&self.qemu.qmp, &self.spec, total).await?;
                DeviceId(CPUS.to_owned())
            }
            Device::Memory(total) => {
                resize::resize_memory(&self.qemu.qmp, &self.spec, total).await?;
                DeviceId(resize::MEMORY.to_owned())
            }
        };
        log_stage(&format!("attach {}", id.0), started);
        Ok(id)
    }

    async fn detach(&mut self, id: DeviceId) -> Result<()> {
        self.ensure_running()?;
        if id.0 == resize::MEMORY {
            return resize::resize_memory(&self.qemu.qmp, &self.spec, 0).await;
        }
        let Some(mut plugged) = self.devices.remove(&id.0) else {
            return Err(Error::UnknownDevice(id.0));
        };
        // The daemon ends by itself when QEMU closes its connection.
        if let Some(daemon) = &plugged.daemon {
            daemon.watch.abort();
        }
        let unplugged = devices::unplug(&self.qemu.qmp, &id.0, &plugged.backend).await;
        if let Err(error) = unplugged {
            if let Some(daemon) = &mut plugged.daemon {
                daemon.watch = self.report_end(&daemon.child);
            }
            self.devices.insert(id.0, plugged);
            return Err(error);
        }
        self.ports.give_back(plugged.port);
        match plugged.daemon {
            Some(daemon) => daemon.child.stop().await,
            None => Ok(()),
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
        self.children().for_each(Child::kill);
        for child in self.children() {
            child.stop().await?;
        }
        Ok(())
    }

    fn set_oom_score_adj(&mut self, score: i32) {
        if self.spec.placement.oom_score_adj != score {
            self.spec.placement.oom_score_adj = score;
            self.children()
                .for_each(|child| child.set_oom_score_adj(score));
        }
    }

    fn pids(&self) -> Vec<(String, u32)> {
        self.children()
            .map(|child| (child.role().to_owned(), child.pid()))
            .collect()
    }
}
