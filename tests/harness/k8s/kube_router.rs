//! kube-router, which enforces NetworkPolicies on the tests' cluster. It does nothing else there:
//! the pods' network is the bridge plugin's, and Services are kube-proxy's.

use std::{
    fs::File,
    process::{Command, Stdio},
    sync::Once,
};

use anyhow::{Context, Result};
use caisson_local::{components::MARK, network::SERVICE_SUBNET, pki::NODE};

use super::{TestCluster, LIMIT};
use crate::{command, paths};

/// Where it says that it is well, on the node.
const HEALTH: &str = "http://127.0.0.1:20244/healthz";

/// Starts it on the cluster's node, unless it is there, and waits until it is well. It ends with
/// the cluster.
///
/// Panics if it can't be started, since no test can go on without it.
pub fn start(cluster: &TestCluster) {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        if let Err(error) = run(cluster) {
            panic!("no kube-router: {error:#}");
        }
    });
}

fn run(cluster: &TestCluster) -> Result<()> {
    let layout = cluster.cluster().layout();
    let log = File::create(layout.path("log/kube-router.log"))?;
    // The cluster's removal finds it by its mark.
    on_node(cluster)
        .arg(paths::kube_router()?)
        .args(["--run-firewall=true", "--run-router=false"])
        .args(["--run-service-proxy=false", "--metrics-port=0"])
        .arg(format!("--service-cluster-ip-range={SERVICE_SUBNET}"))
        .arg(format!("--hostname-override={NODE}"))
        .arg(format!("--kubeconfig={}", layout.kubeconfig().display()))
        .env(MARK, layout.dir())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("start kube-router")?;
    command::poll("kube-router", LIMIT, || {
        let mut ask = on_node(cluster);
        ask.args(["curl", "--silent", "--fail", HEALTH]);
        command::run(&mut ask, None, LIMIT)
            .ok()?
            .ok()
            .map(drop)
            .ok()
    })
}

/// Returns a command whose arguments are run in the node's network.
fn on_node(cluster: &TestCluster) -> Command {
    let mut ip = Command::new("ip");
    ip.args(["netns", "exec", cluster.cluster().layout().mark()]);
    ip
}
