//! The sandbox of a pod: containerd's pause container, which is the VM itself here, not a process.
//!
//! It comes either as a task, with the spec of a pause container, or through containerd's sandbox
//! service, for which a similar spec is made.

use std::{fs, net::IpAddr, path::Path, sync::Arc, time::Instant};

use caisson_node::{
    control,
    host::{chain::chain, error::OnFile},
};
use caisson_oci::{Egress, Limits, Wishes};

use super::{
    base::Pod,
    request::{CreateRequest, SandboxRequest},
};
use crate::{
    agent::ProcessId,
    container::Container,
    error::{Error, Result},
    logger::stage,
    machine::{Machine, Site},
    network,
    process::Process,
    streams::Stdio,
};

/// The containers' list of servers of DNS, which containerd mounts there.
const RESOLV_CONF: &str = "/etc/resolv.conf";

impl Pod {
    /// Creates a sandbox that is not a task. A failure leaves nothing of it.
    ///
    /// Like a sandbox that is a task, it is started, killed and waited for by its id. Its end
    /// removes what the pod has on the host.
    pub async fn create_sandbox(self: &Arc<Self>, request: SandboxRequest) -> Result<()> {
        let (task, began) = (self.next_task(), Instant::now());
        let created = self.create_new_sandbox(request).await;
        self.count_start(task, began, &created);
        created
    }

    async fn create_new_sandbox(self: &Arc<Self>, request: SandboxRequest) -> Result<()> {
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
            let mut wishes = Wishes::of(request.spec, &self.config.policy, &self.namespace)?;
            wishes.add_files(&files)?;
            self.boot_sandbox(&create, wishes, false).await
        };
        let (machine, container) = match self.turns.take(&create.id, Box::pin(created)).await {
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

    /// Boots the pod's VM. Its containers come later.
    pub(super) async fn boot_sandbox(
        self: &Arc<Self>,
        request: &CreateRequest,
        wishes: Wishes,
        is_task: bool,
    ) -> Result<(Arc<Machine>, Container)> {
        let started = Instant::now();
        let asked = wishes.sandbox()?;
        let (egress, servers) = self.egress(&wishes)?;
        let site = self.site(asked.cgroups_path.as_deref())?;
        // A sandbox without a name in its spec is known by its id alone.
        if let Ok(Some((namespace, name))) = wishes.pod() {
            site.dir.name(&format!("{namespace}/{name}"))?;
        }
        let hostname = asked.hostname.unwrap_or_else(|| request.id.clone());
        // Without limits, the VM gets the node's default size, and grows.
        let machine = self.boot(hostname, site, asked.limits).await?;
        self.join_network(&machine, asked.network.as_deref(), egress, servers)
            .await?;
        self.make_room_soon(&machine, asked.limits);
        // Some sysctls belong to one network card, so this comes after the network.
        let sysctls = asked.sysctls.into_iter().collect();
        machine.agent().await?.set_sysctls(sysctls).await?;
        stage(&self.id, "sandbox", started);
        let init = Process::new(ProcessId::init(&request.id), request.stdio.clone());
        let container = Container::sandbox(request.bundle.clone(), init, machine.pid, is_task);
        Ok((machine, container))
    }

    /// Plugs in the pod's network cards and follows what its egress drops.
    pub(super) async fn join_network(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        namespace: Option<&Path>,
        egress: Egress,
        servers: Vec<IpAddr>,
    ) -> Result<()> {
        let is_open = egress == Egress::Open;
        machine.join_network(namespace, egress, servers).await?;
        if namespace.is_some() && !is_open {
            self.record(|record| record.denied = Some(0));
            tokio::spawn(self.clone().follow_denied(machine.clone()));
        }
        Ok(())
    }

    /// Returns what the pod may open connections to, and its servers of DNS if that has names.
    pub(super) fn egress(&self, wishes: &Wishes) -> Result<(Egress, Vec<IpAddr>)> {
        let egress = wishes.egress(&self.config.network.egress)?;
        let resolv_conf = wishes.source_of(Path::new(RESOLV_CONF));
        let servers = match resolv_conf.filter(|_| egress.has_names()) {
            Some(path) => {
                let text = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
                network::servers(&text)
            }
            None => Vec::new(),
        };
        Ok((egress, servers))
    }

    /// Boots a VM for containers with these limits, or these sums of limits.
    pub(super) async fn boot(
        self: &Arc<Self>,
        hostname: String,
        site: Site,
        limits: Limits,
    ) -> Result<Arc<Machine>> {
        let size = self.node().check(self.node().size([limits]))?;
        let state = site.dir.path().to_owned();
        let machine = self
            .machine
            .get_or_try_init(|| async {
                self.record(|record| record.boot(size));
                let machine = Machine::boot(
                    self.vmm.as_ref(),
                    &self.config,
                    &self.id,
                    hostname,
                    site,
                    size,
                )
                .await?;
                let machine = Arc::new(machine);
                self.watch_guest(machine.clone());
                // Without it the pod works, except for what is attached late.
                let pod = self.clone();
                let answer = move |request| {
                    let pod = pod.clone();
                    async move { pod.answer(request).await }
                };
                if let Err(error) = control::serve(&state, answer) {
                    log::warn!("{}", chain(&error));
                }
                Result::Ok(machine)
            })
            .await?;
        Ok(machine.clone())
    }
}
