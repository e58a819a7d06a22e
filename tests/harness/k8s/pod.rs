//! A pod of the cluster with one container, `main`.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{json, Value};

use super::{line, set_class, Namespace, LIMIT};
use crate::{
    command::{self, Output},
    fixture, Runtime,
};

/// A pod to be created.
pub struct PodBuilder<'n> {
    namespace: &'n Namespace<'n>,
    name: String,
    runtime: Runtime,
    object: Value,
}

impl<'n> PodBuilder<'n> {
    pub(super) fn new(namespace: &'n Namespace<'n>, name: &str) -> Self {
        let object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name, "labels": { "app": name } },
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "enableServiceLinks": false,
                "containers": [{ "name": "main", "image": fixture::full_name("busybox") }],
            },
        });
        Self {
            namespace,
            name: name.to_owned(),
            runtime: Runtime::Caisson,
            object,
        }
    }

    /// Selects a RuntimeClass, in place of the runtime's own.
    pub fn class(self, name: &str) -> Self {
        self.spec(|spec| spec["runtimeClassName"] = name.into())
    }

    /// Selects the runtime. The default is a VM.
    pub fn runtime(mut self, runtime: Runtime) -> Self {
        self.runtime = runtime;
        self
    }

    /// Sets a shell line as the container's command.
    pub fn sh(mut self, line: &str) -> Self {
        self.container()["command"] = json!(["sh", "-c", line]);
        self
    }

    /// Sets a label of the pod. The default of `app` is the pod's name.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.object["metadata"]["labels"][key] = value.into();
        self
    }

    /// Sets an annotation of the pod.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.object["metadata"]["annotations"][key] = value.into();
        self
    }

    /// Changes the pod's spec.
    pub fn spec(mut self, edit: impl FnOnce(&mut Value)) -> Self {
        edit(&mut self.object["spec"]);
        self
    }

    /// Changes the container.
    pub fn main(mut self, edit: impl FnOnce(&mut Value)) -> Self {
        edit(self.container());
        self
    }

    /// Creates the pod without waiting for it.
    pub fn create(mut self) -> Result<Pod<'n>> {
        self.namespace.cluster().image("busybox")?;
        if self.object["spec"]["runtimeClassName"].is_null() {
            set_class(&mut self.object["spec"], self.runtime);
        }
        self.namespace.apply(&self.object)?;
        Ok(Pod::new(self.namespace, &self.name))
    }

    /// Creates the pod and waits until it is ready.
    pub fn start(self) -> Result<Pod<'n>> {
        let pod = self.create()?;
        pod.wait("condition=Ready")?;
        Ok(pod)
    }

    fn container(&mut self) -> &mut Value {
        &mut self.object["spec"]["containers"][0]
    }
}

/// An existing pod.
pub struct Pod<'n> {
    namespace: &'n Namespace<'n>,
    name: String,
}

impl<'n> Pod<'n> {
    pub(super) fn new(namespace: &'n Namespace<'n>, name: &str) -> Self {
        Self {
            namespace,
            name: name.to_owned(),
        }
    }

    /// Returns its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits as `kubectl wait --for` does.
    pub fn wait(&self, what: &str) -> Result<()> {
        self.namespace.wait(&format!("pod/{}", self.name), what)
    }

    /// Runs a shell line that must exit with 0. Returns its standard output without the white space
    /// around it.
    pub fn exec(&self, shell: &str) -> Result<String> {
        line(self.try_exec(shell)?).with_context(|| format!("exec in {}: {shell}", self.name))
    }

    /// Like [`Pod::exec`], whatever the exit code.
    pub fn try_exec(&self, shell: &str) -> Result<Output> {
        self.namespace
            .kubectl(&["exec", &self.name, "--", "sh", "-c", shell])
    }

    /// Returns what its container logged.
    pub fn logs(&self) -> Result<String> {
        Ok(self.namespace.kubectl(&["logs", &self.name])?.ok()?.text())
    }

    /// Waits until its container has logged a text.
    pub fn wait_for_log(&self, text: &str) -> Result<()> {
        command::poll(
            &format!("{text:?} in the log of {}", self.name),
            LIMIT,
            || self.logs().ok().filter(|log| log.contains(text)).map(drop),
        )
    }

    /// Returns its address.
    pub fn ip(&self) -> Result<String> {
        self.get("{.status.podIP}")
    }

    /// Returns one value of the pod, by a JSONPath.
    pub fn get(&self, path: &str) -> Result<String> {
        self.namespace.get(&format!("pod/{}", self.name), path)
    }

    /// Waits until `kubectl describe pod` prints all of these texts.
    pub fn described(&self, texts: &[&str]) -> Result<String> {
        self.namespace
            .described(&format!("pod/{}", self.name), texts)
    }

    /// Returns the command `kubectl VERB OPTIONS… POD`, without further arguments.
    pub fn kubectl_command(&self, verb: &str, options: &[&str]) -> Command {
        let mut kubectl = self.namespace.kubectl_command();
        kubectl.arg(verb).args(options).arg(&self.name);
        kubectl
    }

    /// Asks for a claim by the annotation, in place of the one that the pod has.
    pub fn claim(&self, claim: &str) -> Result<()> {
        let annotation = format!("caisson.dev/claim={claim}");
        let args = ["annotate", "--overwrite", "pod", &self.name, &annotation];
        self.namespace.kubectl(&args)?.ok().map(drop)
    }

    /// Deletes the pod and waits until it is gone.
    pub fn delete(self) -> Result<()> {
        self.namespace
            .kubectl(&["delete", "pod", &self.name])?
            .ok()
            .map(drop)
    }
}
