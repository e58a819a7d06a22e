//! Exchanges with the API server what `serve` and the chart's other pods need: objects, events and
//! watches.

use std::{convert::Infallible, str::FromStr, time::Duration};

use anyhow::{bail, Context, Result};
use futures::TryStreamExt;
use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        core::v1::{Event, Node},
    },
    jiff::Timestamp,
};
use kube::{
    api::{ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
    Api, Client,
};
use serde_json::json;
use tokio::sync::watch;

use super::{
    progress::Wanted,
    standing::{seconds, NodeEvent, Patches, Standing},
};

/// The annotation by which `drain` asks a DaemonSet's pods to give their nodes back.
pub const DRAIN: &str = "caisson.dev/drain";
/// The field manager under which the objects are changed.
pub const MANAGER: &str = "caisson";
/// The time between the end of a watch and the next one.
const PAUSE: Duration = Duration::from_secs(2);

/// The name of a DaemonSet, `NAMESPACE/NAME`.
#[derive(Debug, Clone)]
pub struct DaemonSetName {
    pub namespace: String,
    pub name: String,
}

impl FromStr for DaemonSetName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => Ok(Self {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }),
            _ => Err("not NAMESPACE/NAME".to_owned()),
        }
    }
}

/// Returns the name of the node that this pod is on.
pub fn node_name() -> Result<String> {
    std::env::var("NODE_NAME").context("NODE_NAME is not set: which node is this?")
}

/// Connects to the API server as the pod's service account, or as KUBECONFIG says.
pub async fn connect() -> Result<Client> {
    Client::try_default()
        .await
        .context("find the API server (in a pod: its service account's token)")
}

/// Lists the cluster's nodes.
pub async fn list_nodes(client: &Client) -> Result<Vec<Node>> {
    let nodes: Api<Node> = Api::all(client.clone());
    // From the API server's cache, since there may be thousands.
    let list = nodes.list(&ListParams::default().match_any()).await;
    Ok(list.context("list the nodes")?.items)
}

/// One node object.
pub struct NodeApi {
    client: Client,
    nodes: Api<Node>,
    name: String,
}

impl NodeApi {
    /// Connects without asking for the node itself yet.
    pub async fn connect(name: &str) -> Result<Self> {
        let client = connect().await?;
        Ok(Self {
            nodes: Api::all(client.clone()),
            client,
            name: name.to_owned(),
        })
    }

    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Returns the node as it is now.
    pub async fn get(&self) -> Result<Node> {
        let node = self.nodes.get(&self.name).await;
        node.with_context(|| format!("get node {}", self.name))
    }

    /// Makes the node object show this standing. Does nothing where it does already.
    pub async fn publish(&self, standing: &Standing) -> Result<()> {
        let Patches { labels, status } = standing.patches(&self.get().await?, Timestamp::now());
        let params = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..Default::default()
        };
        let set_labels = async || match labels {
            Some(labels) => {
                let patch = Patch::Merge(labels);
                let done = self.nodes.patch(&self.name, &params, &patch).await;
                done.map(drop)
                    .with_context(|| format!("set the labels of node {}", self.name))
            }
            None => Ok(()),
        };
        let set_condition = async || match status {
            Some(status) => {
                let patch = Patch::Strategic(status);
                let done = self.nodes.patch_status(&self.name, &params, &patch).await;
                done.map(drop)
                    .with_context(|| format!("set the condition of node {}", self.name))
            }
            None => Ok(()),
        };
        // The condition is set before the labels and removed after them: a node without the
        // condition has nothing of Caisson's left.
        if matches!(standing, Standing::Removed) {
            set_labels().await?;
            set_condition().await
        } else {
            set_condition().await?;
            set_labels().await
        }
    }

    /// Creates an event for the node.
    pub async fn event(&self, event: &NodeEvent) -> Result<()> {
        let uid = self.get().await?.metadata.uid;
        let now = seconds(Timestamp::now());
        let object: Event = serde_json::from_value(json!({
            "metadata": { "generateName": "caisson-", "namespace": "default" },
            "involvedObject": { "apiVersion": "v1", "kind": "Node", "name": self.name, "uid": uid },
            "type": event.kind,
            "reason": event.reason,
            "message": event.message,
            "source": { "component": MANAGER, "host": self.name },
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }))?;
        // Events of objects without a namespace are in this namespace.
        let events: Api<Event> = Api::namespaced(self.client.clone(), "default");
        let made = events.create(&PostParams::default(), &object).await;
        made.with_context(|| format!("make the event {} of node {}", event.reason, self.name))?;
        Ok(())
    }
}

/// Sends what is wanted whenever that may have changed, for ever. The API server's first answer is
/// sent too.
pub async fn watch_wanted(
    client: Client,
    of: &DaemonSetName,
    tell: watch::Sender<Option<Wanted>>,
) -> Result<Infallible> {
    let daemonsets: Api<DaemonSet> = Api::namespaced(client, &of.namespace);
    loop {
        if let Err(error) = watch_once(&daemonsets, &of.name, &tell).await {
            eprintln!("watch DaemonSet {}/{}: {error:#}", of.namespace, of.name);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn watch_once(
    daemonsets: &Api<DaemonSet>,
    name: &str,
    tell: &watch::Sender<Option<Wanted>>,
) -> Result<()> {
    // The API server ends a watch after its default time, 290 s.
    let params = WatchParams::default().fields(&format!("metadata.name={name}"));
    // From version 0 on, a watch begins with what is there.
    let stream = daemonsets.watch(&params, "0").await?;
    let mut stream = std::pin::pin!(stream);
    while let Some(event) = stream.try_next().await? {
        match event {
            WatchEvent::Added(found) | WatchEvent::Modified(found) => {
                tell.send_if_modified(|told| {
                    let new = Some(wanted(&found));
                    std::mem::replace(told, new) != new
                });
            }
            // Its pods end too. What is on the node stays there for the next one, unless the node
            // was drained before.
            WatchEvent::Deleted(_) | WatchEvent::Bookmark(_) => {}
            WatchEvent::Error(status) => bail!("{}", status.message),
        }
    }
    Ok(())
}

fn wanted(daemonset: &DaemonSet) -> Wanted {
    let annotations = daemonset.metadata.annotations.as_ref();
    match annotations
        .and_then(|all| all.get(DRAIN))
        .map(String::as_str)
    {
        Some("true") => Wanted::Removed,
        _ => Wanted::Installed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotated(annotations: serde_json::Value) -> DaemonSet {
        serde_json::from_value(json!({ "metadata": { "annotations": annotations } })).unwrap()
    }

    #[test]
    fn daemonset_with_the_annotation_wants_the_node_back() {
        assert_eq!(
            wanted(&annotated(json!({ DRAIN: "true" }))),
            Wanted::Removed
        );
    }

    #[test]
    fn daemonset_without_the_annotation_wants_the_node_set_up() {
        for annotations in [json!({}), json!(null), json!({ DRAIN: "false" })] {
            assert_eq!(wanted(&annotated(annotations)), Wanted::Installed);
        }
    }

    #[test]
    fn daemonset_is_named_with_its_namespace() {
        let name: DaemonSetName = "a/b".parse().unwrap();
        assert_eq!((name.namespace.as_str(), name.name.as_str()), ("a", "b"));
        for wrong in ["a", "/b", "a/", ""] {
            assert!(wrong.parse::<DaemonSetName>().is_err(), "{wrong}");
        }
    }
}
