//! Runs a Kubernetes of one node on this machine: etcd, API server, controllers, scheduler,
//! kubelet, kube-proxy, CoreDNS and a containerd of its own. Everything is in one folder and one
//! network namespace, so that nothing is left after [`down`].
//!
//! ```text
//! up: network ─▶ pki, configuration ─▶ supervisor ─▶ API ─▶ addons, images ─▶
//!     node Ready ─▶ DNS ─▶ Caisson ─▶ metrics
//! ```
//!
//! - [`layout`]: the folder; [`programs`]: what was built for it;
//! - [`network`], [`pki`], [`components`], [`containerd`]: what is made before anything runs;
//! - [`supervise`]: the process that keeps the programs running; [`remove`]: takes all of it away,
//!   dead or alive;
//! - [`existing`]: uses an existing cluster instead of all this;
//! - [`images`]: images without a registry; [`caisson`]: installs Caisson; [`secrets`]:
//!   the user's Secrets.

pub mod caisson;
mod cluster;
pub mod command;
pub mod components;
pub mod containerd;
pub mod existing;
pub mod images;
pub mod layout;
pub mod network;
pub mod pki;
pub mod process;
pub mod programs;
pub mod remove;
pub mod secrets;
pub mod supervise;
pub mod sysctl;

use std::{
    fs::{self, File},
    path::Path,
    time::Duration,
};

use anyhow::{ensure, Context, Result};
use nix::fcntl::{Flock, FlockArg};

pub use crate::{cluster::Cluster, layout::Layout, programs::Programs};

/// How long each step may take; a machine that is busy with VMs is slow.
const LIMIT: Duration = Duration::from_secs(180);
/// A lock, so that only one process at a time starts or removes a cluster; others wait.
const GATE: &str = "/run/lock/caisson-local";

/// Starts the cluster of this folder, or takes the one that runs there. `supervisor` is a program
/// that has the subcommand `supervise DIR`, as [`command::main`] does. Each step is reported to
/// `progress` before it begins.
pub fn up(
    layout: &Layout,
    programs: &Programs,
    supervisor: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<Cluster> {
    ensure!(nix::unistd::geteuid().is_root(), "a cluster needs root");
    let cluster = Cluster::new(layout, programs);
    let _gate = gate()?;
    if is_ready(&cluster) {
        progress("the cluster runs already");
        return Ok(cluster);
    }
    if layout.dir().exists() {
        progress("removing what is left of an earlier cluster");
    }
    remove::all(layout)?;
    let started = start(&cluster, supervisor, progress);
    started.with_context(|| format!("the logs are in {}", layout.text("log")))?;
    Ok(cluster)
}

/// Removes the cluster of this folder. It is no error if there is none.
pub fn down(layout: &Layout) -> Result<()> {
    let _gate = gate()?;
    remove::all(layout)
}

fn start(cluster: &Cluster, supervisor: &Path, progress: &mut dyn FnMut(&str)) -> Result<()> {
    let (layout, programs) = (cluster.layout(), cluster.programs());
    progress("network, certificates, configuration");
    fs::create_dir_all(layout.dir())?;
    let node = network::create(layout)?;
    network::write_cni(layout)?;
    pki::write(layout, &node)?;
    let plan = components::write(layout, programs, &node)?;
    containerd::write(layout)?;
    fs::write(layout.path("plan.json"), serde_json::to_vec_pretty(&plan)?)?;
    sysctl::keep(layout)?;
    make_cgroups(layout)?;
    supervise::start(supervisor, layout)?;
    progress("etcd and the API server");
    process::wait_for("the API server", LIMIT, || {
        cluster.kubectl(&["get", "--raw", "/readyz"])
    })?;
    // RBAC's bootstrap roles and the namespaces may take a moment longer.
    process::wait_for("the namespace kube-system", LIMIT, || {
        cluster.kubectl(&["get", "namespace", "kube-system"])
    })?;
    let addons = include_str!("addons.yaml")
        .replace("COREDNS", images::COREDNS)
        .replace("METRICS_SERVER", images::METRICS_SERVER)
        .replace("DNS_SERVICE", network::DNS_SERVICE);
    cluster.apply(&addons)?;
    progress("containerd and the cluster's own images");
    process::wait_for("containerd", LIMIT, || {
        images::containerd_answers(layout, programs)
    })?;
    images::import_own(layout, programs)?;
    progress("the node");
    process::wait_for("the node", LIMIT, || {
        cluster.kubectl(&[
            "wait",
            "--for=condition=Ready",
            "node",
            pki::NODE,
            "--timeout=60s",
        ])
    })?;
    progress("DNS");
    process::wait_for("DNS", LIMIT, || {
        cluster.kubectl(&[
            "--namespace",
            "kube-system",
            "rollout",
            "status",
            "deployment/coredns",
            "--timeout=60s",
        ])
    })?;
    progress("Caisson");
    caisson::install(cluster)?;
    progress("metrics");
    // The API server looks only now and then whether a server is behind it.
    process::wait_for("kubectl top", LIMIT, || {
        cluster.kubectl(&[
            "wait",
            "--for=condition=Available",
            "apiservice/v1beta1.metrics.k8s.io",
            "--timeout=60s",
        ])
    })?;
    fs::write(layout.path("ready"), "")?;
    Ok(())
}

/// Returns whether the cluster was started completely and is supervised.
fn is_ready(cluster: &Cluster) -> bool {
    let layout = cluster.layout();
    let supervised = File::open(layout.path("supervisor.lock"))
        .is_ok_and(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err());
    supervised
        && layout.path("ready").exists()
        && cluster.kubectl(&["get", "--raw", "/readyz"]).is_ok()
}
/// Makes the root of the kubelet's cgroups: the kubelet makes what is below it, but not the root
/// itself.
fn make_cgroups(layout: &Layout) -> Result<()> {
    for hierarchy in remove::hierarchies() {
        let dir = hierarchy.join(layout.mark());
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    }
    Ok(())
}

fn gate() -> Result<Flock<File>> {
    fs::create_dir_all("/run/lock")?;
    let file = File::create(GATE).context(GATE)?;
    Ok(Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?)
}
