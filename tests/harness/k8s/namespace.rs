//! A namespace of the cluster, one test's.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{json, Value};

use super::{line, Pod, PodBuilder, TestCluster, LIMIT};
use crate::command::{self, Output, Stdin};

/// Dropped, it is deleted with everything in it.
pub struct Namespace<'c> {
    cluster: &'c TestCluster,
    name: String,
}

impl<'c> Namespace<'c> {
    pub(super) fn new(cluster: &'c TestCluster, name: String) -> Result<Self> {
        cluster.kubectl(&["create", "namespace", &name])?.ok()?;
        let namespace = Self { cluster, name };
        // Pods are refused before the controller has made it.
        command::poll("the default ServiceAccount", LIMIT, || {
            let output = namespace.kubectl(&["get", "serviceaccount", "default"]);
            output.ok().filter(|output| output.code == 0)
        })?;
        Ok(namespace)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cluster.
    pub fn cluster(&self) -> &'c TestCluster {
        self.cluster
    }

    /// `kubectl` in this namespace, arguments to follow.
    pub fn kubectl_command(&self) -> Command {
        let mut kubectl = self.cluster.kubectl_command();
        kubectl.args(["--namespace", &self.name]);
        kubectl
    }

    /// Runs `kubectl` in this namespace.
    pub fn kubectl(&self, args: &[&str]) -> Result<Output> {
        command::run(self.kubectl_command().args(args), None, LIMIT)
    }

    /// Applies an object.
    pub fn apply(&self, object: &Value) -> Result<()> {
        self.apply_text(&object.to_string())
    }

    /// Applies a manifest in YAML or JSON.
    pub fn apply_text(&self, manifest: &str) -> Result<()> {
        let mut kubectl = self.kubectl_command();
        kubectl.args(["apply", "--filename", "-"]);
        let stdin = Stdin::from(manifest.as_bytes().to_vec());
        command::run(&mut kubectl, Some(stdin), LIMIT)?
            .ok()
            .map(drop)
    }

    /// One value of an object, by a JSONPath such as `{.status.phase}`.
    pub fn get(&self, object: &str, path: &str) -> Result<String> {
        line(self.kubectl(&["get", object, "--output", &format!("jsonpath={path}")])?)
    }

    /// Waits as `kubectl wait` does; the error shows what the object's events and status say.
    pub fn wait(&self, object: &str, what: &str) -> Result<()> {
        let output = self.kubectl(&["wait", &format!("--for={what}"), object, "--timeout=110s"])?;
        output.ok().map(drop).with_context(|| self.describe(object))
    }

    /// Waits until a Deployment or StatefulSet has all its pods of the newest form.
    pub fn rolled_out(&self, object: &str) -> Result<()> {
        let output = self.kubectl(&["rollout", "status", object, "--timeout=110s"])?;
        output.ok().map(drop).with_context(|| self.describe("pods"))
    }

    /// What `kubectl describe` says.
    pub fn describe(&self, object: &str) -> String {
        match self.kubectl(&["describe", object]) {
            Ok(output) => output.text(),
            Err(error) => format!("{error:#}"),
        }
    }

    /// Waits until `kubectl describe` of an object says all of these texts; what it said.
    pub fn described(&self, object: &str, texts: &[&str]) -> Result<String> {
        let mut last = String::new();
        command::poll(&format!("{texts:?} of {object}"), LIMIT, || {
            last = self.describe(object);
            texts.iter().all(|text| last.contains(text)).then_some(())
        })
        .with_context(|| last.clone())?;
        Ok(last)
    }

    /// A pod with one container, to be started.
    pub fn pod(&self, name: &str) -> PodBuilder<'_> {
        PodBuilder::new(self, name)
    }

    /// A pod that is there, by its name.
    pub fn existing(&self, name: &str) -> Pod<'_> {
        Pod::new(self, name)
    }

    /// The names of the pods with a label, `app=web`, that are not about to go.
    pub fn pods(&self, label: &str) -> Result<Vec<String>> {
        let output = self.kubectl(&["get", "pods", "--selector", label, "--output", "json"])?;
        let pods: Value = serde_json::from_str(&output.ok()?.text())?;
        let items = pods["items"].as_array().context("items")?;
        let there = items
            .iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        Ok(there
            .filter_map(|pod| Some(pod["metadata"]["name"].as_str()?.to_owned()))
            .collect())
    }

    /// A Service of this name for the pods with the label `app` of that value, port 80 to 8080.
    pub fn service(&self, name: &str, app: &str) -> Result<()> {
        self.apply(&json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": name },
            "spec": { "selector": { "app": app }, "ports": [{ "port": 80, "targetPort": 8080 }] },
        }))
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        // Not waited for: pods have a grace period.
        let args = ["delete", "namespace", &self.name, "--wait=false"];
        let _ = self.cluster.kubectl(&args);
    }
}
