//! The agent's own metrics: whether the node is ready, what it has tried, and its process.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use prometheus::{
    process_collector::ProcessCollector, Gauge, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};

use crate::node::progress::Wanted;

/// The agent's metrics. Clones count together.
#[derive(Clone)]
pub struct Health(Arc<Metrics>);

struct Metrics {
    registry: Registry,
    ready: IntGauge,
    steps: IntCounterVec,
    answers: IntCounterVec,
    collected: IntGauge,
    collection: Gauge,
}

impl Health {
    /// Begins with everything at 0.
    pub fn new() -> Result<Self> {
        let metrics = Metrics {
            registry: Registry::new(),
            ready: IntGauge::new(
                "caisson_agent_node_ready",
                "Whether the node is ready for pods: 1 or 0.",
            )?,
            steps: IntCounterVec::new(
                Opts::new(
                    "caisson_agent_steps_total",
                    "Installations and removals that the agent has tried.",
                ),
                &["step", "result"],
            )?,
            answers: IntCounterVec::new(
                Opts::new(
                    "caisson_agent_metrics_requests_total",
                    "Requests for metrics, by the status that they were answered with.",
                ),
                &["code"],
            )?,
            collected: IntGauge::new(
                "caisson_agent_collection_success",
                "Whether the node's metrics could be had for this scrape: 1 or 0.",
            )?,
            collection: Gauge::new(
                "caisson_agent_collection_duration_seconds",
                "How long it took to get the node's metrics for this scrape.",
            )?,
        };
        for step in [Wanted::Installed, Wanted::Removed] {
            for is_well in [true, false] {
                metrics.steps.with_label_values(&labels(step, is_well));
            }
        }
        let Metrics { registry, .. } = &metrics;
        registry.register(Box::new(metrics.ready.clone()))?;
        registry.register(Box::new(metrics.steps.clone()))?;
        registry.register(Box::new(metrics.answers.clone()))?;
        registry.register(Box::new(metrics.collected.clone()))?;
        registry.register(Box::new(metrics.collection.clone()))?;
        registry.register(Box::new(ProcessCollector::for_self()))?;
        Ok(Self(Arc::new(metrics)))
    }

    /// Notes whether the node is ready.
    pub fn ready(&self, is_ready: bool) {
        self.0.ready.set(is_ready.into());
    }

    /// Counts a step that has ended.
    pub fn step(&self, wanted: Wanted, is_well: bool) {
        self.0
            .steps
            .with_label_values(&labels(wanted, is_well))
            .inc();
    }

    /// Counts an answer to a request for metrics.
    pub fn answered(&self, code: u16) {
        self.0.answers.with_label_values(&[&code.to_string()]).inc();
    }

    /// Notes how the last collection went.
    pub fn collected(&self, is_well: bool, took: Duration) {
        self.0.collected.set(is_well.into());
        self.0.collection.set(took.as_secs_f64());
    }

    /// Returns all of it in Prometheus' text format.
    pub fn text(&self) -> String {
        let families = self.0.registry.gather();
        TextEncoder::new()
            .encode_to_string(&families)
            .unwrap_or_default()
    }
}

fn labels(wanted: Wanted, is_well: bool) -> [&'static str; 2] {
    let step = match wanted {
        Wanted::Installed => "install",
        Wanted::Removed => "uninstall",
    };
    [step, if is_well { "ok" } else { "failed" }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_says_what_was_tried_and_what_the_process_takes() {
        let health = Health::new().unwrap();
        health.ready(true);
        health.step(Wanted::Installed, false);
        health.answered(401);
        let text = health.text();
        for line in [
            "caisson_agent_node_ready 1",
            r#"caisson_agent_steps_total{result="failed",step="install"} 1"#,
            r#"caisson_agent_steps_total{result="ok",step="uninstall"} 0"#,
            r#"caisson_agent_metrics_requests_total{code="401"} 1"#,
        ] {
            assert!(text.lines().any(|other| other == line), "{line}:\n{text}");
        }
        assert!(text.contains("process_resident_memory_bytes "), "{text}");
    }
}
