//! Tests events of pods that are worse off than their node's settings want.

use std::sync::MutexGuard;

use anyhow::Result;
use caisson_local::caisson;
use caisson_tests::{
    command,
    k8s::{TestCluster, LIMIT},
};

use crate::{cluster, node};

#[test]
fn pod_that_is_emulated_for_want_of_kvm_has_an_event() -> Result<()> {
    let (_turn, cluster) = with_events()?;
    let emulated = node(cluster)?["metadata"]["labels"]["caisson.dev/accelerator"] == "tcg";
    let namespace = cluster.namespace()?;
    let pod = namespace.pod("vm").sh("sleep 100000").start()?;
    if emulated {
        return pod.described(&["Emulated", "`caisson check`"]).map(drop);
    }
    assert!(!namespace.describe("pod/vm").contains("Emulated"));
    Ok(())
}

#[test]
fn pod_that_booted_for_want_of_a_template_has_an_event() -> Result<()> {
    let (_turn, cluster) = with_events()?;
    let caisson = |args: &[&str]| {
        let output = command::run(cluster.caisson().args(args), None, LIMIT)?;
        anyhow::Ok(output.ok()?.text())
    };
    let list = caisson(&["template", "list"])?;
    for name in list
        .lines()
        .skip(1)
        .filter_map(|line| line.split(' ').next())
    {
        caisson(&["template", "remove", name])?;
    }
    let namespace = cluster.namespace()?;
    let pod = namespace.pod("vm").sh("sleep 100000").start()?;
    let described = pod.described(&["StartedCold", "`caisson template list`"])?;
    assert_eq!(described.matches("StartedCold").count(), 1, "{described}");
    Ok(())
}

fn with_events() -> Result<(MutexGuard<'static, ()>, &'static TestCluster)> {
    let (turn, cluster) = cluster()?;
    caisson::upgrade_json(cluster.cluster(), &[("podEvents.enabled", "true")])?;
    cluster.kubectl(&caisson::ROLLOUT)?.ok()?;
    Ok((turn, cluster))
}
