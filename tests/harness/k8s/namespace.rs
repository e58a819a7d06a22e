//! A namespace of the cluster that belongs to one test.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{json, Value};

use super::{line, Pod, PodBuilder, TestCluster, LIMIT};
use crate::command::{self, Output, Stdin};

/// A namespace of the cluster. Dropping it deletes it with everything in it.
pub struct Namespace<'c> {
    cluster: &'c TestCluster,
    name: String,
}

impl<'c> Namespace<'c> {
    pub(super) fn new(cluster: &'c TestCluster, name: String) -> Result<Self> {
        cluster.kubectl(&["create", "namespace", &name])?.ok()?;
        let namespace = Self { cluster, name };
        // Pods are refused until the controller has made it.
        command::poll("the default ServiceAccount", LIMIT, || {
            let output = namespace.kubectl(&["get", "serviceaccount", "default"]);
            output.ok().filter(|output| output.code == 0)
        })?;
        Ok(namespace)
    }

    /// Returns its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the cluster.
    pub fn cluster(&self) -> &'c TestCluster {
        self.cluster
    }

    /// Returns a `kubectl` command for this namespace, without further arguments.
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
        self.try_apply(manifest, &[])?.ok().map(drop)
    }

    /// Has the API server judge an object without storing it. Returns what `kubectl apply` says,
    /// in JSON the object as it would be stored.
    pub fn judge(&self, object: &Value) -> Result<Output> {
        self.try_apply(&object.to_string(), &["--dry-run=server", "--output=json"])
    }

    fn try_apply(&self, manifest: &str, options: &[&str]) -> Result<Output> {
        let mut kubectl = self.kubectl_command();
        kubectl.args(["apply", "--filename", "-"]).args(options);
        let stdin = Stdin::from(manifest.as_bytes().to_vec());
        command::run(&mut kubectl, Some(stdin), LIMIT)
    }

    /// Returns one value of an object, by a JSONPath such as `{.status.phase}`.
    pub fn get(&self, object: &str, path: &str) -> Result<String> {
        line(self.kubectl(&["get", object, "--output", &format!("jsonpath={path}")])?)
    }

    /// Waits as `kubectl wait` does. The error shows the object's events and status.
    pub fn wait(&self, object: &str, what: &str) -> Result<()> {
        let output = self.kubectl(&["wait", &format!("--for={what}"), object, "--timeout=110s"])?;
        output.ok().map(drop).with_context(|| self.describe(object))
    }

    /// Waits until a Deployment or StatefulSet has all its pods in the newest revision.
    pub fn rolled_out(&self, object: &str) -> Result<()> {
        let output = self.kubectl(&["rollout", "status", object, "--timeout=110s"])?;
        output.ok().map(drop).with_context(|| self.describe("pods"))
    }

    /// Returns the output of `kubectl describe`.
    pub fn describe(&self, object: &str) -> String {
        match self.kubectl(&["describe", object]) {
            Ok(output) => output.text(),
            Err(error) => format!("{error:#}"),
        }
    }

    /// Waits until `kubectl describe` of an object prints all of these texts. Returns its output.
    pub fn described(&self, object: &str, texts: &[&str]) -> Result<String> {
        let mut last = String::new();
        command::poll(&format!("{texts:?} of {object}"), LIMIT, || {
            last = self.describe(object);
            texts.iter().all(|text| last.contains(text)).then_some(())
        })
        .with_context(|| last.clone())?;
        Ok(last)
    }

    /// Begins building a pod with one container.
    pub fn pod(&self, name: &str) -> PodBuilder<'_> {
        PodBuilder::new(self, name)
    }

    /// Returns an existing pod by its name.
    pub fn existing(&self, name: &str) -> Pod<'_> {
        Pod::new(self, name)
    }

    /// Returns the names of the pods with a label such as `app=web`, without those that are being
    /// deleted.
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

    /// Creates a Service of this name for the pods whose label `app` has that value, from port 80
    /// to 8080.
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
        // Does not wait for the deletion, since pods have a grace period.
        let args = ["delete", "namespace", &self.name, "--wait=false"];
        let _ = self.cluster.kubectl(&args);
    }
}
