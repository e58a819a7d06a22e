//! Tests the extended resources that a node offers: the scheduler counts VMs by them.

use std::sync::MutexGuard;

use anyhow::{Context, Result};
use caisson_local::caisson;
use caisson_tests::{
    command::poll,
    k8s::{program, TestCluster},
    proc, Runtime,
};
use serde_json::json;

use crate::{cluster, condition, node, LIMIT};

const SLOT: &str = "caisson.dev/vm-slot";
const KVM: &str = "caisson.dev/kvm";

#[test]
fn pod_without_a_slot_is_pending_until_another_one_ends() -> Result<()> {
    let (_turn, cluster) = with_slots(1)?;
    let namespace = cluster.namespace()?;
    let pod = |name: &str| namespace.pod(name).sh("sleep 100000");
    let first = pod("first").start()?;
    let second = pod("second").create()?;
    second.described(&["FailedScheduling", &format!("Insufficient {SLOT}")])?;
    // runc's pods take none.
    pod("runc").runtime(Runtime::Runc).start()?;
    first.delete()?;
    second.wait("condition=Ready")
}

#[test]
fn pod_that_needs_kvm_is_pending_where_vms_are_emulated() -> Result<()> {
    let (_turn, cluster) = with_slots(5)?;
    let emulated = node(cluster)?["metadata"]["labels"]["caisson.dev/accelerator"] == "tcg";
    wait_for(
        cluster,
        "allocatable",
        KVM,
        if emulated { "0" } else { "1000" },
    )?;
    let namespace = cluster.namespace()?;
    let pod = namespace.pod("kvm").runtime(Runtime::Runc);
    let pod = pod.sh("sleep 100000").main(|container| {
        container["resources"] = json!({ "limits": { KVM: "1" } });
    });
    if emulated {
        let texts = ["FailedScheduling", &format!("Insufficient {KVM}")];
        return pod.create()?.described(&texts).map(drop);
    }
    pod.start().map(drop)
}

#[test]
fn pod_with_a_slot_goes_on_when_the_kubelet_starts_again() -> Result<()> {
    let (_turn, cluster) = with_slots(2)?;
    let namespace = cluster.namespace()?;
    let pod = namespace.pod("stays").sh("sleep 100000").start()?;
    let boot = || pod.exec("cat /proc/sys/kernel/random/boot_id");
    let before = boot()?;
    let kubelet = program(cluster.cluster(), "kubelet")?;
    proc::kill(kubelet, libc::SIGTERM);
    poll("another kubelet", LIMIT, || {
        let found = program(cluster.cluster(), "kubelet").ok();
        found.filter(|found| *found != kubelet)
    })?;
    // It knows of a new pod, so it has looked at those that it had.
    namespace.pod("new").sh("sleep 100000").start()?;
    assert_eq!(namespace.get("pod/stays", "{.status.phase}")?, "Running");
    assert_eq!(boot()?, before);
    wait_for(cluster, "allocatable", SLOT, "2")
}

#[test]
fn node_that_cannot_be_set_up_offers_no_slots() -> Result<()> {
    let (_turn, cluster) = with_slots(3)?;
    let broken = [
        ("capacity", slots(3)),
        ("config", json!("[vm]\nnosuch = 1").to_string()),
    ];
    upgrade(cluster, &broken)?;
    poll("the node to say why", LIMIT, || {
        let node = node(cluster).ok()?;
        (condition(&node)["reason"] == "InstallFailed").then_some(())
    })?;
    wait_for(cluster, "allocatable", SLOT, "0")?;
    wait_for(cluster, "capacity", SLOT, "3")?;
    upgrade(cluster, &[("capacity", slots(3))])?;
    wait_for(cluster, "allocatable", SLOT, "3")
}

/// Returns the cluster, whose node offers this many slots.
fn with_slots(number: u32) -> Result<(MutexGuard<'static, ()>, &'static TestCluster)> {
    let (turn, cluster) = cluster()?;
    upgrade(cluster, &[("capacity", slots(number))])?;
    cluster.cluster().kubectl(&caisson::ROLLOUT)?;
    wait_for(cluster, "allocatable", SLOT, &number.to_string())?;
    Ok((turn, cluster))
}

fn slots(number: u32) -> String {
    json!({ "enabled": true, "vmSlots": number }).to_string()
}

fn upgrade(cluster: &TestCluster, values: &[(&str, String)]) -> Result<()> {
    let values: Vec<_> = values
        .iter()
        .map(|(key, value)| (*key, value.as_str()))
        .collect();
    caisson::upgrade_json(cluster.cluster(), &values)
}

/// Waits until the node has this much of a resource.
fn wait_for(cluster: &TestCluster, field: &str, resource: &str, number: &str) -> Result<()> {
    let mut last = None;
    let found = poll("the resource", LIMIT, || {
        last = Some(node(cluster).ok()?["status"][field][resource].clone());
        last.as_ref().filter(|found| **found == number).map(drop)
    });
    found.with_context(|| format!("{field} of {resource}: {last:?}, not {number}"))
}
