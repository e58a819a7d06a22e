//! Installs Caisson in the cluster as its users do: imports the node image into containerd and
//! installs the chart, with the paths of this cluster's folder.

use std::{fs, os::unix::net::UnixStream, path::Path, process::Command};

use anyhow::{ensure, Context, Result};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use crate::{process, Cluster};

/// The chart's release and namespace.
pub const RELEASE: &str = "caisson";
pub const NAMESPACE: &str = "caisson-system";

/// The kubectl arguments that wait for the nodes: helm already calls a DaemonSet ready when one of
/// its pods is unavailable, if it may be.
pub const ROLLOUT: [&str; 6] = [
    "rollout",
    "status",
    "daemonset/caisson",
    "--namespace",
    NAMESPACE,
    "--timeout=10m",
];

/// Makes `runtimeClassName: sandbox` work in the cluster. Returns when the node is ready for it,
/// which takes as long as a VM's self-test.
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

/// Upgrades the release with the values of a local cluster and the `further` ones, or installs it
/// if there is none. Does not wait for the node.
pub fn upgrade(cluster: &Cluster, further: &[(&str, &str)]) -> Result<()> {
    let mut helm = upgrade_command(cluster)?;
    for (value, is) in further {
        helm.arg("--set-string").arg(format!("{value}={is}"));
    }
    process::output(&mut helm, "").map(drop)
}

/// Does as [`upgrade`], with values in JSON.
pub fn upgrade_json(cluster: &Cluster, further: &[(&str, &str)]) -> Result<()> {
    let mut helm = upgrade_command(cluster)?;
    for (value, is) in further {
        helm.arg("--set-json").arg(format!("{value}={is}"));
    }
    process::output(&mut helm, "").map(drop)
}

fn upgrade_command(cluster: &Cluster) -> Result<Command> {
    let layout = cluster.layout();
    let mut helm = helm(cluster, "upgrade");
    install_the_chart(&mut helm);
    for (value, is) in [
        ("install.prefix", layout.text("opt")),
        ("install.configFile", layout.text("caisson/config.toml")),
        ("install.containerdConfig", layout.text("containerd.toml")),
        ("install.containerdSocket", layout.text("c.sock")),
        ("install.restart", "signal".to_owned()),
    ] {
        helm.arg("--set-string").arg(format!("{value}={is}"));
    }
    helm.arg("--set")
        .arg(format!("install.nodeProcess={}", supervisor(cluster)?));
    Ok(helm)
}

/// Adds the arguments of `helm upgrade` that set the values of a local cluster and install the
/// release if there is none.
pub fn install_the_chart(upgrade: &mut Command) {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../chart");
    upgrade
        .args(["--install", "--create-namespace", RELEASE])
        .arg(&chart)
        .arg("--values")
        .arg(chart.join("values-local.yaml"));
}

/// Returns the process, containerd's parent, whose mount namespace containerd and the kubelet run
/// in and that lives as long as the cluster. The machine's first process may be one that nobody may
/// look into.
fn supervisor(cluster: &Cluster) -> Result<u32> {
    let socket = cluster.layout().containerd_socket();
    let stream = UnixStream::connect(&socket).with_context(|| socket.display().to_string())?;
    let containerd = getsockopt(&stream, PeerCredentials)?.pid();
    let status = fs::read_to_string(format!("/proc/{containerd}/status"))?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    Ok(parent.context("containerd has no parent")?.trim().parse()?)
}

/// Runs the chart's test, a pod that checks that its kernel is not the node's. Returns what it
/// printed.
pub fn test(cluster: &Cluster) -> Result<String> {
    let mut helm = helm(cluster, "test");
    process::output(helm.args([RELEASE, "--logs", "--timeout=10m"]), "")
}

/// Uninstalls the chart, and with it what it put on the node.
pub fn uninstall(cluster: &Cluster) -> Result<()> {
    let mut helm = helm(cluster, "uninstall");
    process::output(helm.args([RELEASE, "--wait", "--timeout=10m"]), "").map(drop)
}

fn helm(cluster: &Cluster, subcommand: &str) -> Command {
    let mut helm = Command::new(cluster.programs().kubernetes("helm"));
    helm.args([subcommand, "--namespace", NAMESPACE])
        .env("KUBECONFIG", cluster.layout().kubeconfig())
        // Keep helm's cache out of the user's home.
        .env("HELM_CACHE_HOME", cluster.layout().path("helm"))
        .env("HELM_CONFIG_HOME", cluster.layout().path("helm"))
        .env("HELM_DATA_HOME", cluster.layout().path("helm"));
    helm
}
