//! Tests what the token of the DaemonSet's pod can change: only what is Caisson's, on the pod's own
//! node.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result};
use caisson_tests::{
    command::{self, poll, Output, Stdin},
    k8s::TestCluster,
};
use serde_json::{json, Value};

use crate::{cluster, node, LIMIT};

/// A node object without a machine.
const OTHER: &str = "zz-other";

#[test]
fn token_of_a_nodes_pod_changes_what_is_ours_on_that_node() -> Result<()> {
    let (_turn, cluster) = cluster()?;
    let agent = Agent::of(cluster)?;
    let own = json!({ "caisson.dev/probe": "1" });
    let none = json!({ "caisson.dev/probe": null });
    for values in [own, none] {
        let metadata = json!({ "labels": values, "annotations": values });
        agent
            .patch(&agent.node, "", &json!({ "metadata": metadata }))?
            .ok()?;
    }
    agent
        .patch(&agent.node, "status", &condition("CaissonReady"))?
        .ok()?;
    Ok(())
}

#[test]
fn token_of_a_nodes_pod_changes_nothing_of_another_node() -> Result<()> {
    let (_turn, cluster) = cluster()?;
    let agent = Agent::of(cluster)?;
    let label = json!({ "metadata": { "labels": { "caisson.dev/probe": "1" } } });
    for (subresource, patch) in [("", label), ("status", condition("CaissonReady"))] {
        agent.refused(OTHER, subresource, &patch, "may change no other")?;
    }
    // The policy does not restrict other users.
    let label = ["label", "node", OTHER, "pool=theirs"];
    cluster.kubectl(&label)?.ok().map(drop)
}

#[test]
fn token_of_a_nodes_pod_changes_nothing_else_of_that_node() -> Result<()> {
    let (_turn, cluster) = cluster()?;
    let agent = Agent::of(cluster)?;
    let label = json!({ "metadata": { "labels": { "pool": "mine" } } });
    let images = json!([{ "names": ["example.com/a"], "sizeBytes": 1 }]);
    for (subresource, patch, text) in [
        ("", label.clone(), "the labels"),
        (
            "",
            json!({ "metadata": { "labels": { "kubernetes.io/os": null } } }),
            "the labels",
        ),
        (
            "",
            json!({ "metadata": { "annotations": { "a": "b" } } }),
            "the annotations",
        ),
        (
            "",
            json!({ "metadata": { "finalizers": ["a.example/b"] } }),
            "finalizers",
        ),
        (
            "",
            json!({ "spec": { "unschedulable": true } }),
            "the node's spec",
        ),
        ("status", label, "the labels"),
        (
            "status",
            condition("Ready"),
            "CaissonReady of the status only",
        ),
        (
            "status",
            json!({ "status": { "images": images } }),
            "CaissonReady of the status only",
        ),
    ] {
        agent.refused(&agent.node, subresource, &patch, text)?;
    }
    Ok(())
}

fn condition(kind: &str) -> Value {
    let condition = json!({ "type": kind, "status": "True", "reason": "Test" });
    json!({ "status": { "conditions": [condition] } })
}

/// `kubectl` with the token of the DaemonSet's pod and no other credentials.
struct Agent {
    /// The pod's node.
    node: String,
    kubectl: PathBuf,
    arguments: Vec<String>,
    _objects: Objects,
}

impl Agent {
    /// Returns once the policy is in force, which is a moment after its creation.
    fn of(cluster: &'static TestCluster) -> Result<Self> {
        let ask = |args: &[&str]| -> Result<String> { Ok(cluster.kubectl(args)?.ok()?.line()) };
        let namespaced = |args: &[&str]| ask(&[args, &["--namespace=caisson-system"]].concat());
        let component = "--selector=app.kubernetes.io/component=node";
        let pod = namespaced(&["get", "pods", component, "--output=name"])?;
        let pod = format!("--bound-object-name={}", pod.trim_start_matches("pod/"));
        let token = namespaced(&[
            "create",
            "token",
            "caisson",
            "--bound-object-kind=Pod",
            &pod,
        ])?;
        let server = "--output=jsonpath={.clusters[0].cluster.server}";
        let server = ask(&["config", "view", "--raw", server])?;
        let name = node(cluster)?["metadata"]["name"].clone();
        let agent = Self {
            node: name.as_str().context("a node without a name")?.to_owned(),
            kubectl: cluster.kubectl_command().get_program().into(),
            arguments: vec![
                "--kubeconfig=/dev/null".to_owned(),
                "--insecure-skip-tls-verify".to_owned(),
                format!("--server={server}"),
                format!("--token={token}"),
            ],
            _objects: Objects::make(cluster)?,
        };
        let label = json!({ "metadata": { "labels": { "caisson.dev/probe": "1" } } });
        poll("the policy", LIMIT, || {
            agent.refused(OTHER, "", &label, "may change no other").ok()
        })?;
        Ok(agent)
    }

    fn patch(&self, node: &str, subresource: &str, patch: &Value) -> Result<Output> {
        let mut kubectl = Command::new(&self.kubectl);
        kubectl.args(&self.arguments).args(["patch", "node", node]);
        kubectl.args(["--type=strategic", "--patch", &patch.to_string()]);
        if !subresource.is_empty() {
            kubectl.arg(format!("--subresource={subresource}"));
        }
        command::run(&mut kubectl, None, LIMIT)
    }

    fn refused(&self, node: &str, subresource: &str, patch: &Value, text: &str) -> Result<()> {
        let output = self.patch(node, subresource, patch)?;
        let error = output.errors();
        let by_us = error.contains("ValidatingAdmissionPolicy 'caisson'") && error.contains(text);
        anyhow::ensure!(
            output.code != 0 && by_us,
            "{patch}: {}{error}",
            output.text()
        );
        Ok(())
    }
}

/// The other node, and the rights that kubectl needs to patch a status, since it reads it first.
/// Dropping this deletes them.
struct Objects(&'static TestCluster);

impl Objects {
    fn make(cluster: &'static TestCluster) -> Result<Self> {
        let objects = Self(cluster);
        objects.kubectl("apply")?.ok()?;
        Ok(objects)
    }

    fn kubectl(&self, verb: &str) -> Result<Output> {
        let role = "test-reads-node-status";
        let metadata = json!({ "name": role });
        let rule = json!({ "apiGroups": [""], "resources": ["nodes/status"], "verbs": ["get"] });
        let group = "rbac.authorization.k8s.io";
        let account =
            json!({ "kind": "ServiceAccount", "name": "caisson", "namespace": "caisson-system" });
        let items = json!([
            {
                "apiVersion": "v1", "kind": "Node", "metadata": { "name": OTHER },
                "spec": { "unschedulable": true },
            },
            {
                "apiVersion": format!("{group}/v1"), "kind": "ClusterRole", "metadata": metadata,
                "rules": [rule],
            },
            {
                "apiVersion": format!("{group}/v1"), "kind": "ClusterRoleBinding",
                "metadata": metadata, "subjects": [account],
                "roleRef": { "apiGroup": group, "kind": "ClusterRole", "name": role },
            },
        ]);
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
        let mut kubectl = self.0.kubectl_command();
        kubectl.args([verb, "--filename", "-"]);
        let stdin = Stdin::from(list.to_string().into_bytes());
        command::run(&mut kubectl, Some(stdin), LIMIT)
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        let _ = self.kubectl("delete");
    }
}
