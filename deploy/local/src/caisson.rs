//! Caisson in the cluster, as its users get it: the node image into containerd, the chart into the API server, with the paths of this
//! cluster's folder.

use std::{fs, os::unix::net::UnixStream, path::Path, process::Command};

use anyhow::{ensure, Context, Result};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use crate::{process, Cluster};

/// The chart's release and namespace.
pub const RELEASE: &str = "caisson";
pub const NAMESPACE: &str = "caisson-system";

/// By which kubectl waits for the nodes: helm calls a DaemonSet ready that may have one pod unavailable.
pub const ROLLOUT: [&str; 6] = [
    "rollout",
    "status",
    "daemonset/caisson",
    "--namespace",
    NAMESPACE,
    "--timeout=10m",
];

/// Makes `runtimeClassName: sandbox` work in the cluster. Returns when the node is ready for it, which takes a VM's self-test.
pub fn install(cluster: &Cluster) -> Result<()> {
    let image = cluster.programs().dist().join("node-image.tar");
    ensure!(
        image.exists(),
        "no {}: cargo xtask node-image",
        image.display()
    );
    cluster.import(&image)?;
    upgrade(cluster, &[])?;
    cluster.kubectl(&ROLLOUT).map(drop)
}

/// Gives the release the values of a local cluster and `further` ones, and installs it where there is none. Does not wait for the node.
pub fn upgrade(cluster: &Cluster, further: &[(&str, &str)]) -> Result<()> {
    let layout = cluster.layout();
    let mut helm = helm(cluster, "upgrade");
    install_the_chart(&mut helm);
    for (value, is) in [
        ("install.prefix", layout.text("opt")),
        ("install.containerdConfig", layout.text("containerd.toml")),
        ("install.containerdSocket", layout.text("c.sock")),
        ("install.restart", "signal".to_owned()),
    ] {
        helm.arg("--set-string").arg(format!("{value}={is}"));
    }
    helm.arg("--set")
        .arg(format!("install.nodeProcess={}", supervisor(cluster)?));
    for (value, is) in further {
        helm.arg("--set-string").arg(format!("{value}={is}"));
    }
    process::output(&mut helm, "").map(drop)
}

/// The arguments of `helm upgrade` for the release with the values of a local cluster, also where there is none yet.
pub fn install_the_chart(upgrade: &mut Command) {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../chart");
    upgrade
        .args(["--install", "--create-namespace", RELEASE])
        .arg(&chart)
        .arg("--values")
        .arg(chart.join("values-local.yaml"));
}

/// The process that has the mount namespace which containerd and kubelet run in, and that lives as long as the cluster: containerd's
/// parent. The machine's first process may be one that nobody may look into.
fn supervisor(cluster: &Cluster) -> Result<u32> {
    let socket = cluster.layout().containerd_socket();
    let stream = UnixStream::connect(&socket).with_context(|| socket.display().to_string())?;
    let containerd = getsockopt(&stream, PeerCredentials)?.pid();
    let status = fs::read_to_string(format!("/proc/{containerd}/status"))?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    Ok(parent.context("containerd has no parent")?.trim().parse()?)
}

/// Runs the chart's test: a pod says that its kernel is not the node's. What it printed.
pub fn test(cluster: &Cluster) -> Result<String> {
    let mut helm = helm(cluster, "test");
    process::output(helm.args([RELEASE, "--logs", "--timeout=10m"]), "")
}

/// Takes the chart away again, and with it what it put on the node.
pub fn uninstall(cluster: &Cluster) -> Result<()> {
    let mut helm = helm(cluster, "uninstall");
    process::output(helm.args([RELEASE, "--wait", "--timeout=10m"]), "").map(drop)
}

fn helm(cluster: &Cluster, subcommand: &str) -> Command {
    let mut helm = Command::new(cluster.programs().kubernetes("helm"));
    helm.args([subcommand, "--namespace", NAMESPACE])
        .env("KUBECONFIG", cluster.layout().kubeconfig())
        // It keeps nothing in the user's home.
        .env("HELM_CACHE_HOME", cluster.layout().path("helm"))
        .env("HELM_CONFIG_HOME", cluster.layout().path("helm"))
        .env("HELM_DATA_HOME", cluster.layout().path("helm"));
    helm
}
