//! Caisson in the cluster. This is the one place that the chart's installation takes: `helm install deploy/chart` with `--prefix <dir>/opt`,
//! `--containerd-config <dir>/containerd.toml`, `--containerd-socket <dir>/c.sock` and `--restart signal`. Until then the runtime is in
//! containerd's configuration from the beginning ([`crate::containerd`]) and the RuntimeClass comes from here.

use anyhow::Result;

use crate::Cluster;

/// The overhead is added to the pod's limit, in whose cgroup the VM is: 128 MiB that the guest has beside the containers' limits, the VM's
/// processes, and what emulation keeps of translated code. With less, a pod with limits is killed by the kernel.
const RUNTIME_CLASS: &str = "\
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata:
  name: sandbox
handler: sandbox
overhead:
  podFixed:
    cpu: 50m
    memory: 384Mi
";

/// Makes `runtimeClassName: sandbox` work in the cluster.
pub fn install(cluster: &Cluster) -> Result<()> {
    cluster.apply(RUNTIME_CLASS)
}
