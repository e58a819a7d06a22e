//! A pod's sandbox over CRI, from RunPodSandbox to RemovePodSandbox.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use super::{
    api::{
        DnsConfig, IdMapping, ListPodSandboxStatsRequest, NamespaceMode, NamespaceOption,
        PodSandboxConfig, PodSandboxMetadata, PodSandboxState, PodSandboxStats,
        PodSandboxStatsRequest, PodSandboxStatus, PodSandboxStatusRequest,
        PodSandboxStatusResponse, RemovePodSandboxRequest, RunPodSandboxRequest,
        StopPodSandboxRequest, UserNamespace,
    },
    container::ContainerBuilder,
    forward::Forward,
    CriNode,
};
use crate::{command, container, leftovers, Runtime};

/// The user mapping of a pod that has users of its own.
pub const USERS: IdMapping = IdMapping {
    host_id: 100_000,
    container_id: 0,
    length: 65_536,
};

/// How long the last process of a pod may take to leave its cgroup.
const GONE: Duration = Duration::from_secs(3);

/// A pod to be started. It gets what a kubelet gives every pod: namespaces, a cgroup parent, a log
/// folder.
#[must_use]
pub struct PodBuilder<'n> {
    node: &'n CriNode,
    runtime: Runtime,
    handler: Option<&'static str>,
    config: PodSandboxConfig,
}

impl<'n> PodBuilder<'n> {
    pub(crate) fn new(node: &'n CriNode, name: String) -> Self {
        let mut config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                uid: format!("{}-{name}", node.tag()),
                namespace: "tests".into(),
                name: name.clone(),
                attempt: 0,
            }),
            log_directory: node
                .dir()
                .join("logs/pods")
                .join(&name)
                .display()
                .to_string(),
            dns_config: Some(DnsConfig {
                servers: vec!["10.96.0.10".into()],
                searches: vec!["tests.svc.cluster.local".into()],
                options: vec!["ndots:5".into()],
            }),
            hostname: name.clone(),
            ..Default::default()
        };
        let linux = config.linux.get_or_insert_default();
        linux.cgroup_parent = format!("/{}/{name}", node.tag());
        let security = linux.security_context.get_or_insert_default();
        security.namespace_options = Some(NamespaceOption {
            network: NamespaceMode::Pod.into(),
            pid: NamespaceMode::Container.into(),
            ipc: NamespaceMode::Pod.into(),
            ..Default::default()
        });
        Self {
            node,
            runtime: Runtime::Caisson,
            handler: None,
            config,
        }
    }

    /// Selects the runtime class. The default is Caisson's.
    pub fn runtime(mut self, runtime: Runtime) -> Self {
        self.runtime = runtime;
        self
    }

    /// Selects a runtime handler, in place of the runtime's own.
    pub fn handler(mut self, handler: &'static str) -> Self {
        self.handler = Some(handler);
        self
    }

    pub fn hostname(mut self, hostname: &str) -> Self {
        self.config.hostname = hostname.into();
        self
    }

    /// Sets the Kubernetes namespace. The default is `tests`.
    pub fn namespace(self, namespace: &str) -> Self {
        self.configure(|config| {
            config.metadata.get_or_insert_default().namespace = namespace.into();
        })
    }

    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.config.annotations.insert(key.into(), value.into());
        self
    }

    pub fn sysctl(self, key: &str, value: &str) -> Self {
        self.configure(|config| {
            let linux = config.linux.get_or_insert_default();
            linux.sysctls.insert(key.into(), value.into());
        })
    }

    /// Sets `shareProcessNamespace`.
    pub fn share_processes(self) -> Self {
        self.namespaces(|namespaces| namespaces.pid = NamespaceMode::Pod.into())
    }

    /// Sets `hostNetwork`.
    pub fn host_network(self) -> Self {
        self.namespaces(|namespaces| namespaces.network = NamespaceMode::Node.into())
    }

    /// Sets `hostUsers: false`, with the mapping [`USERS`].
    pub fn own_users(self) -> Self {
        self.namespaces(|namespaces| {
            namespaces.userns_options = Some(UserNamespace {
                mode: NamespaceMode::Pod.into(),
                uids: vec![USERS],
                gids: vec![USERS],
            });
        })
    }

    /// Allows the pod to hold privileged containers.
    pub fn privileged(self) -> Self {
        self.configure(|config| {
            let linux = config.linux.get_or_insert_default();
            linux.security_context.get_or_insert_default().privileged = true;
        })
    }

    /// Changes the namespaces of the sandbox and thereby those of its containers.
    pub fn namespaces(self, edit: impl FnOnce(&mut NamespaceOption)) -> Self {
        self.configure(|config| {
            let linux = config.linux.get_or_insert_default();
            let security = linux.security_context.get_or_insert_default();
            edit(security.namespace_options.get_or_insert_default());
        })
    }

    /// Changes settings that this builder has no method for.
    pub fn configure(mut self, edit: impl FnOnce(&mut PodSandboxConfig)) -> Self {
        edit(&mut self.config);
        self
    }

    /// Makes the pod's cgroup with a limit of processes, as the kubelet does with podPidsLimit.
    pub fn limit_processes(&self, most: u64) -> Result<()> {
        let linux = self.config.linux.as_ref();
        let parent = linux.map_or("", |linux| linux.cgroup_parent.trim_start_matches('/'));
        let root = Path::new("/sys/fs/cgroup");
        let of_version_1 = root.join("pids");
        let folder = match of_version_1.exists() {
            true => of_version_1.join(parent),
            false => root.join(parent),
        };
        fs::create_dir_all(&folder)?;
        Ok(fs::write(folder.join("pids.max"), most.to_string())?)
    }

    /// Calls RunPodSandbox.
    pub fn start(self) -> Result<Pod<'n>> {
        fs::create_dir_all(&self.config.log_directory)?;
        let request = RunPodSandboxRequest {
            config: Some(self.config.clone()),
            runtime_handler: self.handler.unwrap_or(self.runtime.handler()).into(),
        };
        let answer = self
            .node
            .runtime_call("RunPodSandbox", |mut cri| async move {
                cri.run_pod_sandbox(request).await
            });
        let mut pod = Pod {
            node: self.node,
            id: String::new(),
            runtime: self.runtime,
            config: self.config,
        };
        // If this fails, the pod is dropped, which removes its cgroups.
        pod.id = answer?.pod_sandbox_id;
        pod.node.add_shim(super::NAMESPACE, &pod.id)?;
        Ok(pod)
    }
}

/// A started pod. Dropping it stops and removes it, so that a failed test leaves nothing behind.
pub struct Pod<'n> {
    pub(crate) node: &'n CriNode,
    id: String,
    runtime: Runtime,
    pub(crate) config: PodSandboxConfig,
}

impl<'n> Pod<'n> {
    /// Returns the sandbox's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn runtime(&self) -> Runtime {
        self.runtime
    }

    pub fn node(&self) -> &'n CriNode {
        self.node
    }

    pub fn hostname(&self) -> &str {
        &self.config.hostname
    }

    /// Begins building a container in this pod, from an image of [`crate::fixture`] or the full
    /// name of an image that was pulled.
    pub fn container(&self, image: &str) -> ContainerBuilder<'_> {
        ContainerBuilder::new(self, image)
    }

    pub fn status(&self) -> Result<PodSandboxStatus> {
        let answer = self.full_status(false)?;
        answer.status.context("no status in the answer")
    }

    /// Returns the network namespace that the CNI plugins have set up.
    pub fn network_namespace(&self) -> Result<PathBuf> {
        let answer = self.full_status(true)?;
        let info = answer.info.get("info").context("no info in the answer")?;
        let info: serde_json::Value = serde_json::from_str(info)?;
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array();
        let network = namespaces
            .into_iter()
            .flatten()
            .find(|namespace| namespace["type"] == "network");
        let path = network.and_then(|namespace| namespace["path"].as_str());
        Ok(path.context("no network namespace in the spec")?.into())
    }

    fn full_status(&self, verbose: bool) -> Result<PodSandboxStatusResponse> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: self.id.clone(),
            verbose,
        };
        self.node
            .runtime_call("PodSandboxStatus", |mut cri| async move {
                cri.pod_sandbox_status(request).await
            })
    }

    /// Returns whether CRI shows the sandbox as Ready.
    pub fn is_ready(&self) -> Result<bool> {
        Ok(self.status()?.state() == PodSandboxState::SandboxReady)
    }

    /// Returns the pod's addresses, the primary one first.
    pub fn addresses(&self) -> Result<Vec<IpAddr>> {
        let network = self.status()?.network.context("no network in the status")?;
        let further = network.additional_ips.iter().map(|ip| &ip.ip);
        let texts = std::iter::once(&network.ip).chain(further);
        texts
            .map(|text| text.parse().with_context(|| format!("address {text:?}")))
            .collect()
    }

    /// Returns the pod's IPv4 address.
    pub fn ipv4(&self) -> Result<IpAddr> {
        let found = self.addresses()?.into_iter().find(IpAddr::is_ipv4);
        found.context("the pod has no IPv4 address")
    }

    /// Returns the pod's IPv6 address.
    pub fn ipv6(&self) -> Result<IpAddr> {
        let found = self.addresses()?.into_iter().find(IpAddr::is_ipv6);
        found.context("the pod has no IPv6 address")
    }

    pub fn stats(&self) -> Result<PodSandboxStats> {
        let request = PodSandboxStatsRequest {
            pod_sandbox_id: self.id.clone(),
        };
        let answer = self
            .node
            .runtime_call("PodSandboxStats", |mut cri| async move {
                cri.pod_sandbox_stats(request).await
            })?;
        answer.stats.context("no stats in the answer")
    }

    /// Returns whether ListPodSandboxStats, which the kubelet calls, names this pod.
    pub fn is_in_the_list_of_stats(&self) -> Result<bool> {
        let answer = self
            .node
            .runtime_call("ListPodSandboxStats", |mut cri| async move {
                cri.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default())
                    .await
            })?;
        let mut ids = answer.stats.iter().flat_map(|stats| &stats.attributes);
        Ok(ids.any(|attributes| attributes.id == self.id))
    }

    /// Calls PortForward: a connection to a port on the pod's loopback.
    pub fn forward(&self, port: u16) -> Result<Forward> {
        Forward::connect(self.node, &self.id, port)
    }

    /// Calls StopPodSandbox.
    pub fn stop(&self) -> Result<()> {
        let request = StopPodSandboxRequest {
            pod_sandbox_id: self.id.clone(),
        };
        self.node
            .runtime_call("StopPodSandbox", |mut cri| async move {
                cri.stop_pod_sandbox(request).await
            })
            .map(drop)
    }

    /// Calls RemovePodSandbox and removes the pod's cgroup, as a kubelet does.
    pub fn remove(&self) -> Result<()> {
        let request = RemovePodSandboxRequest {
            pod_sandbox_id: self.id.clone(),
        };
        self.node
            .runtime_call("RemovePodSandbox", |mut cri| async move {
                cri.remove_pod_sandbox(request).await
            })?;
        self.remove_cgroup();
        Ok(())
    }

    /// Returns the pid of the pod's shim.
    pub fn shim(&self) -> Result<u32> {
        container::shim(self.node, &self.id)
    }

    /// Returns the pid of the VMM, whichever hypervisor it is.
    pub fn vmm(&self) -> Result<u32> {
        container::vmm(&self.node.state_dir().join(&self.id))
    }

    /// Returns the pid of a host process of the VM by its role: `qemu`, `vsock`, `virtiofsd-…`.
    pub fn vm_process(&self, role: &str) -> Result<u32> {
        let processes = self.vm_processes()?;
        let found = processes.iter().find(|(name, _)| name.starts_with(role));
        let (_, pid) = found.with_context(|| format!("no {role} among {processes:?}"))?;
        Ok(*pid)
    }

    /// Returns all host processes of the VM: role and pid.
    pub fn vm_processes(&self) -> Result<Vec<(String, u32)>> {
        container::vm_processes(&self.node.state_dir().join(&self.id))
    }

    /// Returns the pod's cgroup, as a path in every hierarchy.
    pub fn cgroup_parent(&self) -> &str {
        let linux = self.config.linux.as_ref();
        linux.map_or("", |linux| &linux.cgroup_parent)
    }

    /// Returns a folder of the host for files of this pod. It is created by the first call.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let pod = Path::new(&self.config.log_directory);
        let volumes = self.node.dir().join("volumes");
        let dir = volumes.join(pod.file_name().unwrap_or_default()).join(name);
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        Ok(dir)
    }

    /// Removes the pod's cgroup. Retries, as a kubelet does, since a killed process may stay in it
    /// a little longer.
    fn remove_cgroup(&self) {
        let _ = command::poll("the pod's cgroup to be empty", GONE, || {
            let cgroups = leftovers::cgroups(self.node.tag()).into_iter();
            // The runtime removes what is below the pod's own cgroup.
            let own = cgroups.filter(|cgroup| cgroup.ends_with(self.cgroup_parent()));
            own.map(fs::remove_dir)
                .all(|done| done.is_ok())
                .then_some(())
        });
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        if !self.id.is_empty() {
            let _ = self.stop();
            let _ = self.remove();
        }
        self.remove_cgroup();
    }
}
