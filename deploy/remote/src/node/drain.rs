//! `caisson node drain`: the command that the chart's hook runs before the chart is removed.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{bail, Context, Result};
use clap::Args;
use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Node};
use kube::{
    api::{Patch, PatchParams},
    Api, Client, ResourceExt,
};
use serde_json::json;
use tokio::time::Instant;

use super::{
    api::{connect, list_nodes, DaemonSetName, DRAIN, MANAGER},
    standing::{condition_of, CONDITION},
};

/// The time between two looks at the nodes.
const PAUSE: Duration = Duration::from_secs(2);

#[derive(Args)]
pub struct Arguments {
    /// The DaemonSet whose pods are told
    #[arg(long, value_name = "NAMESPACE/NAME")]
    daemonset: DaemonSetName,
    /// Seconds to wait for the nodes
    #[arg(long, default_value_t = 600)]
    timeout: u64,
}

/// Returns when no node has the condition any more. A node has it from the first step of an
/// installation to the last step of its removal. The error names the nodes that still have it.
pub async fn run(arguments: &Arguments) -> Result<()> {
    let client = connect().await?;
    tell(&client, &arguments.daemonset).await?;
    let end = Instant::now() + Duration::from_secs(arguments.timeout);
    let mut before = BTreeSet::new();
    loop {
        let left = not_given_back(&list_nodes(&client).await?);
        if left.is_empty() {
            println!("all nodes are as they were");
            return Ok(());
        }
        if left != before {
            println!("waiting for {}: {}", left.len(), some(&left));
        }
        if Instant::now() >= end {
            bail!(
                "after {} s {} still have Caisson: {}. Their condition {CONDITION} says why (kubectl describe node); \
                 a node whose pod of {}/{} does not run can't give anything back",
                arguments.timeout,
                if left.len() == 1 { "one node" } else { "nodes" },
                some(&left),
                arguments.daemonset.namespace,
                arguments.daemonset.name,
            );
        }
        before = left;
        tokio::time::sleep(PAUSE).await;
    }
}

async fn tell(client: &Client, of: &DaemonSetName) -> Result<()> {
    let daemonsets: Api<DaemonSet> = Api::namespaced(client.clone(), &of.namespace);
    let patch = json!({ "metadata": { "annotations": { DRAIN: "true" } } });
    let params = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..Default::default()
    };
    let patch = Patch::Merge(patch);
    match daemonsets.patch_metadata(&of.name, &params, &patch).await {
        Ok(_) => Ok(()),
        // There are no pods to tell; the nodes show whether something is left.
        Err(kube::Error::Api(status)) if status.code == 404 => {
            println!("there is no DaemonSet {}/{}", of.namespace, of.name);
            Ok(())
        }
        Err(error) => Err(error).with_context(|| format!("annotate {}/{}", of.namespace, of.name)),
    }
}

fn not_given_back(nodes: &[Node]) -> BTreeSet<String> {
    nodes
        .iter()
        .filter(|node| condition_of(node).is_some())
        .map(ResourceExt::name_any)
        .collect()
}

/// Returns the first few names.
pub fn some(names: &BTreeSet<String>) -> String {
    const SHOWN: usize = 10;
    let mut text: Vec<_> = names.iter().take(SHOWN).map(String::as_str).collect();
    if names.len() > SHOWN {
        text.push("…");
    }
    text.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, condition: &str) -> Node {
        serde_json::from_value(json!({
            "metadata": { "name": name },
            "status": { "conditions": [{ "type": condition, "status": "False" }] },
        }))
        .unwrap()
    }

    #[test]
    fn node_with_the_condition_is_waited_for_whatever_it_says() {
        let nodes = [node("a", "Ready"), node("b", CONDITION)];
        assert_eq!(not_given_back(&nodes), BTreeSet::from(["b".to_owned()]));
        assert!(not_given_back(&nodes[..1]).is_empty());
    }

    #[test]
    fn many_names_are_cut_short() {
        let names: BTreeSet<_> = (0..30).map(|n| format!("n{n:02}")).collect();
        assert!(some(&names).ends_with("n09, …"));
    }
}
