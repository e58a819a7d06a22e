//! `caisson node await`: the command that the chart's hook runs where the nodes are set up once.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{bail, Context, Result};
use clap::Args;
use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Node};
use kube::{Api, Client, ResourceExt};
use tokio::time::Instant;

use super::{
    api::{connect, list_nodes, DaemonSetName},
    drain::some,
    standing::{condition_of, CONDITION},
};

/// The time between two looks at the DaemonSet.
const PAUSE: Duration = Duration::from_secs(2);

#[derive(Args)]
pub struct Arguments {
    /// The DaemonSet whose pods set the nodes up
    #[arg(long, value_name = "NAMESPACE/NAME")]
    daemonset: DaemonSetName,
    /// Seconds to wait for the nodes
    #[arg(long, default_value_t = 240)]
    timeout: u64,
}

/// How many nodes a DaemonSet has, and how many of them are set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rollout {
    nodes: i32,
    ready: i32,
}

/// Returns when all nodes of the DaemonSet are ready. The error names those that are not.
pub async fn run(arguments: &Arguments) -> Result<()> {
    let client = connect().await?;
    let DaemonSetName { namespace, name } = &arguments.daemonset;
    let daemonsets: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let end = Instant::now() + Duration::from_secs(arguments.timeout);
    let mut before = None;
    loop {
        let found = daemonsets.get(name).await;
        let found = found.with_context(|| format!("get DaemonSet {namespace}/{name}"));
        let now = found.map(|found| rollout(&found));
        match now {
            Ok(Some(now)) if now.ready == now.nodes => {
                println!("{} nodes are ready", now.nodes);
                return Ok(());
            }
            Ok(now) if now != before => {
                if let Some(now) = now {
                    println!("{} of {} nodes are ready", now.ready, now.nodes);
                }
                before = now;
            }
            Ok(_) => {}
            // The API server may be away for a moment.
            Err(error) if Instant::now() < end => eprintln!("{error:#}"),
            Err(error) => return Err(error),
        }
        if Instant::now() >= end {
            bail!(
                "after {} s {}",
                arguments.timeout,
                not_ready(&client, before).await?
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Returns `None` where the DaemonSet's controller has not seen it yet.
fn rollout(daemonset: &DaemonSet) -> Option<Rollout> {
    let status = daemonset.status.as_ref()?;
    let seen = status.observed_generation >= daemonset.metadata.generation;
    seen.then_some(Rollout {
        nodes: status.desired_number_scheduled,
        ready: status.number_ready,
    })
}

/// Says which nodes are not ready, and why one of them is not.
async fn not_ready(client: &Client, last: Option<Rollout>) -> Result<String> {
    Ok(describe(&list_nodes(client).await?, last))
}

fn describe(nodes: &[Node], last: Option<Rollout>) -> String {
    let count = last.map_or_else(
        || "no node is ready".to_owned(),
        |last| format!("{} of {} nodes are ready", last.ready, last.nodes),
    );
    let failing = nodes.iter().filter_map(|node| {
        let condition = condition_of(node)?;
        (condition.status != "True").then(|| (node.name_any(), condition))
    });
    let failing: Vec<_> = failing.collect();
    let Some((first, condition)) = failing.first() else {
        return format!("{count}; `kubectl describe pod` says why the others' pods do not run");
    };
    let names: BTreeSet<_> = failing.iter().map(|(name, _)| name.clone()).collect();
    format!(
        "{count}. {CONDITION} is false of {}; of {first}: {}",
        some(&names),
        condition.message.as_deref().unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn daemonset(generation: i64, observed: i64) -> DaemonSet {
        serde_json::from_value(json!({
            "metadata": { "generation": generation },
            "status": {
                "observedGeneration": observed, "currentNumberScheduled": 3,
                "desiredNumberScheduled": 3, "numberMisscheduled": 0, "numberReady": 2,
            },
        }))
        .unwrap()
    }

    #[test]
    fn status_of_an_older_daemonset_does_not_count() {
        let expected = Rollout { nodes: 3, ready: 2 };
        assert_eq!(rollout(&daemonset(2, 2)), Some(expected));
        assert_eq!(rollout(&daemonset(2, 1)), None);
        assert_eq!(rollout(&DaemonSet::default()), None);
    }

    #[test]
    fn nodes_that_are_not_ready_are_named_with_a_reason() {
        let node = |name: &str, status: &str| -> Node {
            let condition = json!({ "type": CONDITION, "status": status, "message": "no QEMU" });
            let node =
                json!({ "metadata": { "name": name }, "status": { "conditions": [condition] } });
            serde_json::from_value(node).unwrap()
        };
        let said = describe(
            &[node("a", "True"), node("b", "False"), node("c", "False")],
            Some(Rollout { nodes: 3, ready: 1 }),
        );
        assert_eq!(
            said,
            "1 of 3 nodes are ready. CaissonReady is false of b, c; of b: no QEMU"
        );
    }
}
