//! `caisson list`: prints the pods of this node, as their state folders and records have them.

use std::path::Path;

use anyhow::Result;
use caisson_node::{
    cgroup,
    config::NodeConfig,
    pool,
    record::{Degraded, Record},
    state::{self, Found},
};
use serde::Serialize;

/// A pod for programs.
#[derive(Serialize)]
struct Listed<'a> {
    id: &'a str,
    /// `namespace/name` of a pod of Kubernetes.
    name: Option<&'a str>,
    state: &'static str,
    preset: Option<&'a str>,
    /// In what it is worse off than the node's settings want.
    degraded: &'a [Degraded],
    /// The shim's pid, while it lives.
    shim: Option<u32>,
}

/// Prints one line for each pod, or an array in JSON.
pub fn run(config: &NodeConfig, json: bool) -> Result<()> {
    if json {
        let pods = state::list(&config.state_dir)?;
        let listed: Vec<_> = pods.iter().map(|pod| listed(config, pod)).collect();
        println!("{}", serde_json::to_string_pretty(&listed)?);
        return Ok(());
    }
    println!(
        "{:<40} {:<9} {:<18} {:<16} {:>8}  VM",
        "POD", "STATE", "CONTAINERS", "PRESET", "SHIM"
    );
    for pod in state::list(&config.state_dir)? {
        println!("{}", line(config, &pod));
    }
    let charged = cgroup::charged_memory(Path::new(pool::CGROUP))? >> 20;
    if config.pool.size > 0 || charged > 0 {
        // Not a line of the table, which scripts read.
        eprintln!(
            "{} has {charged} MiB, which no pod accounts for",
            pool::CGROUP
        );
    }
    Ok(())
}

fn listed<'a>(config: &NodeConfig, pod: &'a Found) -> Listed<'a> {
    let record = record(pod);
    Listed {
        id: &pod.id,
        name: pod.name.as_deref(),
        state: state(config, pod),
        preset: record.and_then(|record| record.preset.as_deref()),
        degraded: record.map_or(&[], |record| &record.degraded),
        shim: pod.shim,
    }
}

fn line(config: &NodeConfig, pod: &Found) -> String {
    let shim = pod
        .shim
        .map_or_else(|| "gone".to_owned(), |pid| pid.to_string());
    let processes: Vec<_> = pod
        .processes
        .iter()
        .map(|(role, pid)| format!("{role} {pid}"))
        .collect();
    let name = pod.name.as_deref().unwrap_or_default();
    let (state, containers) = (state(config, pod), containers(pod));
    let vm = processes.join(", ");
    let preset = record(pod).and_then(|record| record.preset.as_deref());
    let preset = preset.unwrap_or("-");
    format!(
        "{:<40} {state:<9} {containers:<18} {preset:<16} {shim:>8}  {vm}  {name}",
        pod.id
    )
}

/// What the pod is doing. Without its shim it is dead, whatever its record says: its VM has died
/// with the shim.
fn state(config: &NodeConfig, pod: &Found) -> &'static str {
    match (&pod.shim, &pod.record) {
        (None, _) => "dead",
        (Some(_), Ok(Some(record))) => record.state.name(),
        (Some(_), Ok(None)) if pool::is_ready(&config.state_dir, &pod.id) => "in pool",
        (Some(_), Ok(None)) => "starting",
        (Some(_), Err(_)) => "unknown",
    }
}

fn record(pod: &Found) -> Option<&Record> {
    pod.record.as_ref().ok()?.as_ref()
}

/// How many containers run and how many have ended.
fn containers(pod: &Found) -> String {
    let Ok(Some(record)) = &pod.record else {
        return "-".to_owned();
    };
    let (live, ended) = record.count();
    match (pod.shim, live, ended) {
        (None, 0, 0) => "0".to_owned(),
        (None, live, ended) => format!("{} ended", live + ended),
        (Some(_), live, 0) => live.to_string(),
        (Some(_), live, ended) => format!("{live}, {ended} ended"),
    }
}
