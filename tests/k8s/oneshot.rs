//! Tests nodes that are set up once: no pod of the chart stays on them.

use anyhow::{Context, Result};
use caisson_local::caisson;
use caisson_tests::{command::poll, k8s::TestCluster};
use serde_json::json;

use crate::{cluster, condition, node, LIMIT, READY};

#[test]
fn node_that_is_set_up_once_keeps_no_pod_and_is_given_back() -> Result<()> {
    let (_turn, cluster) = cluster()?;
    caisson::uninstall(cluster.cluster())?;
    caisson::upgrade_json(cluster.cluster(), &[("node.oneshot.enabled", "true")])?;
    no_pod_is_left(cluster)?;
    let ready = node(cluster)?;
    assert_eq!(ready["metadata"]["labels"][READY], "true");
    assert_eq!(condition(&ready)["status"], "True");
    let namespace = cluster.namespace()?;
    let pod = namespace.pod("vm").sh("sleep 100000").start()?;

    // A pod that runs stays on the version that it started with.
    let config = json!("[log]\nlevel = \"debug\"").to_string();
    let values = [("node.oneshot.enabled", "true"), ("config", &config)];
    caisson::upgrade_json(cluster.cluster(), &values)?;
    no_pod_is_left(cluster)?;
    let layout = cluster.cluster().layout().clone();
    let settings = std::fs::read_to_string(layout.path("caisson/config.d/50-node.toml"))?;
    assert!(settings.contains("debug"), "{settings}");
    pod.exec("true")?;

    pod.delete()?;
    caisson::uninstall(cluster.cluster())?;
    no_pod_is_left(cluster)?;
    let node = node(cluster)?;
    assert!(condition(&node).is_null());
    assert!(node["metadata"]["labels"][READY].is_null());
    assert!(!layout.path("opt").exists());
    Ok(())
}

/// Waits until the chart's namespace has neither a DaemonSet nor a pod.
fn no_pod_is_left(cluster: &TestCluster) -> Result<()> {
    let get = [
        "get",
        "daemonsets,pods",
        "--namespace",
        "caisson-system",
        "--output=name",
    ];
    let mut last = String::new();
    let gone = poll("no pod", LIMIT, || {
        last = cluster.kubectl(&get).ok()?.ok().ok()?.text();
        last.trim().is_empty().then_some(())
    });
    gone.with_context(|| last.clone())
}
