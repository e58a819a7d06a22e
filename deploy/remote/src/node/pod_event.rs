//! Makes events of pods, which `kubectl describe pod` shows.

use std::path::PathBuf;

use anyhow::{Context, Result};
use k8s_openapi::{api::core::v1::Event, jiff::Timestamp};
use kube::{api::PostParams, Api, Client};
use serde_json::json;

use super::{
    api::MANAGER,
    standing::{seconds, shortened},
};

/// The agent's own node.
#[derive(Clone)]
pub struct OwnNode {
    pub client: Client,
    /// The node's name.
    pub node: String,
    /// A process in the node's mount namespace.
    pub process: u32,
    /// The installed `caisson`, as the node sees it.
    pub program: PathBuf,
}

/// A pod as an event names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodName {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// An event of a pod on this node.
pub struct PodEvent<'a> {
    /// The event's own name, if it is to be made once only.
    pub name: Option<String>,
    /// `Normal` or `Warning`.
    pub kind: &'static str,
    pub reason: &'a str,
    pub message: &'a str,
}

/// Makes an event. It is no error if one of that name is there, or the pod's namespace is going.
pub async fn make(own: &OwnNode, pod: &PodName, event: &PodEvent<'_>) -> Result<()> {
    let PodName {
        namespace,
        name,
        uid,
    } = pod;
    let now = seconds(Timestamp::now());
    let mut object: Event = serde_json::from_value(json!({
        "metadata": { "namespace": namespace },
        "involvedObject": {
            "apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name, "uid": uid,
        },
        "type": event.kind,
        "reason": event.reason,
        "message": shortened(event.message),
        "source": { "component": MANAGER, "host": own.node },
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }))?;
    object.metadata.name.clone_from(&event.name);
    if event.name.is_none() {
        object.metadata.generate_name = Some("caisson-".to_owned());
    }
    let events: Api<Event> = Api::namespaced(own.client.clone(), namespace);
    match events.create(&PostParams::default(), &object).await {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        made => made
            .map(drop)
            .with_context(|| format!("make the event {} of pod {namespace}/{name}", event.reason)),
    }
}
