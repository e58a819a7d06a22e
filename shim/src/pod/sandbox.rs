//! The sandbox of a pod: containerd's pause container, which is the VM itself here, not a process.
//!
//! It comes either as a task, with the spec of a pause container, or through containerd's sandbox
//! service, for which a similar spec is made.

use std::{path::PathBuf, sync::Arc, time::Instant};

use caisson_oci::{spec::Spec, Limits, VmSize};
use caisson_protocol::agent::StatsResponse;

use super::{
    create::{init_id, CreateRequest},
    Pod,
};
use crate::{
    container::{Container, Wishes},
    control,
    error::{Error, Result},
    machine::{host_cpus, host_memory_mib, stage, Machine},
    process::Process,
    share::Share,
    state::PodDir,
    stats,
    streams::Stdio,
};

/// A request to create a sandbox that is not a task.
pub struct SandboxRequest {
    pub id: String,
    pub bundle: PathBuf,
    /// The spec, as containerd writes it for a pause container.
    pub spec: Spec,
    /// The folder with the [`caisson_oci::pod::FILES`] for the pod's containers.
    pub files: PathBuf,
}

impl Pod {
    /// Creates a sandbox that is not a task. A failure leaves nothing of it.
    ///
    /// Like a sandbox that is a task, it is started, killed and waited for by its id. Its end
    /// removes what the pod has on the host.
    pub async fn create_sandbox(self: &Arc<Self>, request: SandboxRequest) -> Result<()> {
        self.check_new(&request.id)?;
        let SandboxRequest {
            id, bundle, files, ..
        } = request;
        let create = CreateRequest {
            id,
            bundle,
            rootfs: Vec::new(),
            stdio: Stdio::default(),
        };
        let created = async {
            let wishes = Wishes::of(request.spec, &self.config, &self.namespace)?;
            self.boot_sandbox(&create, wishes, false).await
        };
        let (machine, container) = match created.await {
            Ok(created) => created,
            Err(error) => {
                self.shutdown().await;
                return Err(error);
            }
        };
        self.files.get_or_init(|| files);
        let container = self.admit(&create.id, container);
        self.watch(machine, container.init.clone(), &container);
        Ok(())
    }

    /// The total usage of the pod's containers.
    pub async fn sandbox_stats(&self) -> Result<StatsResponse> {
        let ids: Vec<String> = self.lock().keys().cloned().collect();
        // All at once, so that a slow container delays no other.
        let all = futures::future::join_all(ids.iter().map(|id| self.stats(id))).await;
        let mut sum = StatsResponse::default();
        for (id, stats) in ids.iter().zip(all) {
            match stats {
                Ok(stats) => stats::add(&mut sum, &stats),
                // The container has ended meanwhile, or has not reported anything yet.
                Err(error) => log::debug!(container = id; "{}", error.chain()),
            }
        }
        Ok(sum)
    }

    /// Boots the pod's VM. Its containers come later.
    pub(super) async fn boot_sandbox(
        self: &Arc<Self>,
        request: &CreateRequest,
        wishes: Wishes,
        is_task: bool,
    ) -> Result<(Arc<Machine>, Container)> {
        let started = Instant::now();
        let asked = caisson_oci::pod::sandbox(&wishes.spec)?;
        let (dir, share) = self.folder(asked.cgroups_path.as_deref())?;
        // A sandbox without a name in its spec is known by its id alone.
        if let Ok(Some((namespace, name))) = caisson_oci::pod::name(&wishes.spec) {
            dir.name(&format!("{namespace}/{name}"))?;
        }
        let hostname = asked.hostname.unwrap_or_else(|| request.id.clone());
        // Without sums, the VM begins with the node's default size, and grows.
        let sums = asked.resources.as_ref();
        let sums = sums.map(|resources| Limits::of(Some(resources)));
        let machine = self.boot(hostname, dir, share, sums.as_slice()).await?;
        machine.join_network(asked.network.as_deref()).await?;
        // Some sysctls belong to one network card, so this comes after the network.
        let sysctls = asked.sysctls.into_iter().collect();
        machine.agent().await?.set_sysctls(sysctls).await?;
        stage(&self.id, "sandbox", started);
        let init = Process::new(init_id(&request.id), request.stdio.clone(), Vec::new());
        let container = Container::sandbox(request.bundle.clone(), init, machine.pid, is_task);
        Ok((machine, container))
    }

    /// Boots a VM for containers with these limits.
    pub(super) async fn boot(
        self: &Arc<Self>,
        hostname: String,
        dir: PodDir,
        share: Share,
        limits: &[Limits],
    ) -> Result<Arc<Machine>> {
        let size = VmSize::of(limits.iter().copied(), &self.config.vm, host_cpus());
        let state = dir.path().to_owned();
        let machine = self
            .machine
            .get_or_try_init(|| async {
                let machine = Machine::boot(
                    self.vmm.as_ref(),
                    &self.config,
                    &self.id,
                    hostname,
                    dir,
                    share,
                    size,
                )
                .await?;
                let machine = Arc::new(machine);
                self.watch_guest(machine.clone());
                // Without it the pod works, except for what is attached late.
                if let Err(error) = control::serve(self.clone(), &state) {
                    log::warn!("{}", error.chain());
                }
                Result::Ok(machine)
            })
            .await?;
        Ok(machine.clone())
    }

    /// Grows the VM if its present containers and `more` need that.
    pub(super) async fn make_room(&self, machine: &Machine, more: &[Limits]) -> Result<()> {
        let wanted = self.wanted_size(more)?;
        machine
            .resize(|current| VmSize {
                cpus: wanted.cpus.max(current.cpus),
                memory_mib: wanted.memory_mib.max(current.memory_mib),
            })
            .await
    }

    /// Shrinks the VM to what its containers need.
    pub(super) async fn fit(&self, machine: &Machine) -> Result<()> {
        let wanted = self.wanted_size(&[])?;
        machine.resize(|_| wanted).await
    }

    fn wanted_size(&self, more: &[Limits]) -> Result<VmSize> {
        let mut limits = more.to_vec();
        let containers = self.lock();
        let containers = containers.values().filter(|c| !c.is_sandbox());
        limits.extend(containers.map(|container| container.limits()));
        let wanted = VmSize::of(limits, &self.config.vm, host_cpus());
        if wanted.memory_mib > host_memory_mib() {
            return Err(Error::Request {
                field: "resources.memory.limit",
                reason: format!(
                    "the pod's VM would need {} MiB of memory, the node has {} MiB; lower the limits",
                    wanted.memory_mib,
                    host_memory_mib()
                ),
            });
        }
        Ok(wanted)
    }
}
