//! Pods, their containers and VMs by state, what they lack, and what their egress has dropped.

use std::collections::BTreeMap;

use caisson_node::{
    config::NodeConfig,
    pool,
    record::{Degraded, MachineState, PodState, Record},
    state::Found,
};

use super::family::Family;

/// Returns the metrics of these pods. Members of the pool are no pods.
pub fn families(config: &NodeConfig, found: &[Found]) -> Vec<Family> {
    let (members, pods): (Vec<_>, Vec<_>) =
        found.iter().partition(|found| pool::is_member(&found.id));
    vec![
        by_state(&pods),
        containers(&pods),
        vms(&pods),
        degraded(&pods),
        denied(&pods),
        waiting(config, &members),
        wanted(config),
    ]
}

fn by_state(pods: &[&Found]) -> Family {
    let all = ["starting", "running", "ended", "dead", "unknown"];
    // As `caisson list` tells.
    let state = |pod: &&Found| match (pod.shim, &pod.record) {
        (None, _) => "dead",
        (Some(_), Ok(Some(record))) => record.state.name(),
        (Some(_), Ok(None)) => PodState::Starting.name(),
        (Some(_), Err(_)) => "unknown",
    };
    let help = "Pods that have a state folder. The shim of a dead one was killed.";
    counted(
        Family::gauge("caisson_pods", help),
        "state",
        &all,
        pods.iter().map(state),
    )
}

fn containers(pods: &[&Found]) -> Family {
    let counts = live(pods).map(Record::count);
    let (live, ended) = counts.fold((0, 0), |(live, ended), more| {
        (live + more.0, ended + more.1)
    });
    Family::gauge("caisson_containers", "Containers in pods that run.")
        .with(&[("state", "running")], live as f64)
        .with(&[("state", "ended")], ended as f64)
}

fn vms(pods: &[&Found]) -> Family {
    let all = ["booting", "running", "paused", "ended"];
    let machines = live(pods).filter_map(|record| record.machine.as_ref());
    let states = machines.map(|machine| match machine.state {
        MachineState::Booting => "booting",
        MachineState::Running => "running",
        MachineState::Paused => "paused",
        MachineState::Ended(_) => "ended",
    });
    let help = "VMs of pods, without those that wait in the pool.";
    counted(Family::gauge("caisson_vms", help), "state", &all, states)
}

fn degraded(pods: &[&Found]) -> Family {
    let reasons = live(pods).flat_map(|record| &record.degraded);
    let reasons = reasons.map(|degraded| match degraded {
        Degraded::Cold => "cold",
        Degraded::Emulated => "emulated",
    });
    let help = "Pods whose VM booted where it was to start from a template (cold), or is emulated \
                since KVM does not work (emulated).";
    let family = Family::gauge("caisson_pods_degraded", help);
    counted(family, "reason", &["cold", "emulated"], reasons)
}

fn denied(pods: &[&Found]) -> Family {
    let mut family = Family::counter(
        "caisson_pod_egress_denied_packets_total",
        "Packets of a pod that its egress has dropped; for pods whose egress is not open.",
    );
    for pod in pods.iter().filter(|pod| pod.shim.is_some()) {
        let record = pod.record.as_ref().ok().and_then(Option::as_ref);
        let Some(denied) = record.and_then(|record| record.denied) else {
            continue;
        };
        let name = pod.name.as_deref().and_then(|name| name.split_once('/'));
        let (namespace, name) = name.unwrap_or(("", &pod.id));
        family = family.with(&[("namespace", namespace), ("pod", name)], denied as f64);
    }
    family
}

fn waiting(config: &NodeConfig, members: &[&Found]) -> Family {
    let alive = members.iter().filter(|member| member.shim.is_some());
    let states = alive.map(
        |member| match pool::is_ready(&config.state_dir, &member.id) {
            true => "ready",
            false => "starting",
        },
    );
    let help = "VMs that wait for a pod to come, or will.";
    let family = Family::gauge("caisson_pool_vms", help);
    counted(family, "state", &["starting", "ready"], states)
}

fn wanted(config: &NodeConfig) -> Family {
    let help = "VMs that the node is to keep ready (pool.size).";
    Family::gauge("caisson_pool_size", help).with(&[], f64::from(config.pool.size))
}

/// Returns the records of the pods whose shims live.
fn live<'f>(pods: &'f [&'f Found]) -> impl Iterator<Item = &'f Record> {
    let pods = pods.iter().filter(|pod| pod.shim.is_some());
    pods.filter_map(|pod| pod.record.as_ref().ok()?.as_ref())
}

/// Adds a series for each of `all` values of a label, with the number of times that it is there.
fn counted<'v>(
    family: Family,
    label: &str,
    all: &[&'v str],
    found: impl Iterator<Item = &'v str>,
) -> Family {
    let mut counts: BTreeMap<_, _> = all.iter().map(|value| (*value, 0_u32)).collect();
    for value in found {
        *counts.entry(value).or_default() += 1;
    }
    counts.into_iter().fold(family, |family, (value, count)| {
        family.with(&[(label, value)], f64::from(count))
    })
}
