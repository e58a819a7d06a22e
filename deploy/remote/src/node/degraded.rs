//! Says by events of pods in what they are worse off than their node's settings want.

use std::{collections::HashSet, convert::Infallible, time::Duration};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde::Deserialize;

use super::{
    host,
    pod_event::{self, OwnNode, PodEvent, PodName},
};

/// How often the node's pods are looked at.
const PAUSE: Duration = Duration::from_secs(10);
/// How long `caisson list` may take.
const LIMIT: Duration = Duration::from_secs(30);

/// The node whose pods are looked at.
pub struct DegradedPods(pub OwnNode);

/// What `caisson list --json` says of a pod, as far as it is needed.
#[derive(Debug, Deserialize)]
struct Listed {
    id: String,
    /// `namespace/name`; none for a container that is no pod of Kubernetes.
    name: Option<String>,
    degraded: Vec<String>,
}

impl DegradedPods {
    /// Makes events, for ever.
    pub async fn tell(self) -> Infallible {
        let mut told = HashSet::new();
        loop {
            tokio::time::sleep(PAUSE).await;
            if let Err(error) = self.look(&mut told).await {
                eprintln!("events of degraded pods: {error:#}");
            }
        }
    }

    /// Makes the events that the pods of `told` have not had. Then it has those that still are.
    async fn look(&self, told: &mut HashSet<String>) -> Result<()> {
        let arguments = ["list", "--json"].map(Into::into);
        let asked = host::ask(self.0.process, &self.0.program, &arguments);
        let text = tokio::time::timeout(LIMIT, asked)
            .await
            .context("caisson list does not answer")??;
        let pods: Vec<Listed> = serde_json::from_str(&text).context("caisson list --json")?;
        told.retain(|id| pods.iter().any(|pod| pod.id == *id));
        for pod in &pods {
            let name = pod.name.as_deref().and_then(|name| name.split_once('/'));
            let Some((namespace, name)) = name else {
                continue;
            };
            if !pod.degraded.is_empty() && !told.contains(&pod.id) {
                self.tell_of(pod, namespace, name).await?;
                told.insert(pod.id.clone());
            }
        }
        Ok(())
    }

    async fn tell_of(&self, listed: &Listed, namespace: &str, name: &str) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.0.client.clone(), namespace);
        let found = pods.get_metadata_opt(name).await;
        let found = found.with_context(|| format!("get pod {namespace}/{name}"))?;
        let Some(uid) = found.and_then(|pod| pod.metadata.uid) else {
            return Ok(());
        };
        let pod = PodName {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid,
        };
        for degraded in &listed.degraded {
            let (reason, message) = explained(degraded);
            let event = PodEvent {
                // Another agent of this node may have made it.
                name: Some(format!("caisson-{degraded}-{}", listed.id)),
                kind: "Warning",
                reason,
                message: &message,
            };
            pod_event::make(&self.0, &pod, &event).await?;
        }
        Ok(())
    }
}

/// The reason and the message of the event for what `caisson list` says.
fn explained(degraded: &str) -> (&'static str, String) {
    match degraded {
        "cold" => (
            "StartedCold",
            "the VM booted, which takes longer than to start from a template; \
             `caisson template list` on the node says which templates there are"
                .to_owned(),
        ),
        "emulated" => (
            "Emulated",
            "KVM does not work on the node, so the VM's instructions are emulated, which is slow; \
             `caisson check` on the node says why"
                .to_owned(),
        ),
        other => ("Degraded", other.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_of_a_newer_caisson_is_understood() {
        let text =
            r#"[{"id": "a", "name": null, "state": "running", "degraded": ["new"], "x": 1}]"#;
        let pods: Vec<Listed> = serde_json::from_str(text).unwrap();
        assert_eq!(
            explained(&pods[0].degraded[0]),
            ("Degraded", "new".to_owned())
        );
    }

    #[test]
    fn each_reason_says_where_to_look() {
        for (degraded, reason) in [("cold", "StartedCold"), ("emulated", "Emulated")] {
            let (found, message) = explained(degraded);
            assert_eq!(found, reason);
            assert!(message.contains("`caisson "), "{message}");
        }
    }
}
