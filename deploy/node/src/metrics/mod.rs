//! `caisson metrics`: prints what this node's pods, VMs and stores are like now, and what its shims
//! have counted, in Prometheus' text format.
//!
//! Everything is read from files: from state folders, stores and `/proc`. No shim is asked, so one
//! that hangs holds nothing up. The values of labels are from closed lists, except the name of a
//! pod where a figure is the pod's own.

mod family;
mod memory;
mod pods;
mod starts;
mod stores;

use std::io::Write;

use anyhow::{Context, Result};
use caisson_node::{accelerator, config::NodeConfig, counters, state};
use caisson_vmm::Accelerator;
use prometheus::{Encoder, TextEncoder};

use family::Family;

/// Prints the metrics.
///
/// # Errors
/// If a folder of state or of a store is there and can't be read.
pub fn run(config: &NodeConfig) -> Result<()> {
    let mut text = Vec::new();
    let families: Vec<_> = families(config)?
        .into_iter()
        .filter_map(Family::filled)
        .collect();
    TextEncoder::new()
        .encode(&families, &mut text)
        .context("encode the metrics")?;
    std::io::stdout()
        .write_all(&text)
        .context("print the metrics")
}

fn families(config: &NodeConfig) -> Result<Vec<Family>> {
    let found = state::list(&config.state_dir)?;
    let mut families = vec![build(), accelerators(config)];
    families.extend(pods::families(config, &found));
    families.push(memory::family(&found));
    families.extend(starts::families(&counters::read(&config.state_dir)?));
    families.extend(stores::families(config)?);
    Ok(families)
}

fn build() -> Family {
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    Family::gauge(
        "caisson_build_info",
        "The version of Caisson that new pods get; always 1.",
    )
    .with(&version, 1.0)
}

fn accelerators(config: &NodeConfig) -> Family {
    let known = accelerator::known(config);
    let is = |one| f64::from(u8::from(known == Some(one)));
    Family::gauge(
        "caisson_accelerator",
        "1 for what executes the guests' instructions; 0 for both before the first VM.",
    )
    .with(&[("accelerator", "kvm")], is(Accelerator::Kvm))
    .with(&[("accelerator", "tcg")], is(Accelerator::Tcg))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_without_pods_has_its_metrics_at_zero() {
        let dir = tempfile::tempdir().unwrap();
        let config = NodeConfig {
            state_dir: dir.path().join("state"),
            store_dir: dir.path().join("store"),
            ..NodeConfig::default()
        };
        let families = families(&config).unwrap();
        let families: Vec<_> = families.into_iter().filter_map(Family::filled).collect();
        let text = TextEncoder::new().encode_to_string(&families).unwrap();
        for line in [
            "caisson_pods{state=\"running\"} 0",
            "caisson_start_failures_total{task=\"pod\",reason=\"vm\"} 0",
            "caisson_pod_start_duration_seconds_count{origin=\"template\"} 0",
            "caisson_memory_bytes{component=\"guest\"} 0",
            "caisson_skills 0",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}:\n{text}");
        }
    }
}
