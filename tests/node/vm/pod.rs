//! Pods on the node by crictl, as a kubelet asks for them.

use std::time::Duration;

use anyhow::{Context, Result};
use caisson_tests::{fixture, Output};
use serde_json::{json, Value};

use crate::site::Site;

/// A running pod.
pub struct Pod<'n> {
    site: &'n Site,
    /// containerd's id.
    pub id: String,
    name: String,
}

/// A running container of a pod.
pub struct Container<'n> {
    site: &'n Site,
    /// containerd's id.
    pub id: String,
}

impl Site {
    /// Starts a pod in a VM. `more` is merged into its PodSandboxConfig.
    pub fn pod(&self, name: &str, more: Value) -> Result<Pod<'_>> {
        self.pod_of("sandbox", name, more)
    }

    /// Starts a pod of a runtime handler.
    pub fn pod_of(&self, handler: &str, name: &str, more: Value) -> Result<Pod<'_>> {
        let mut config = json!({
            "metadata": { "name": name, "namespace": "tests", "uid": name, "attempt": 1 },
            "log_directory": format!("/var/log/pods/{name}"),
            "linux": {},
        });
        merge(&mut config, more);
        let file = config_file(name);
        let id = self.sh(&format!(
            "set -e; mkdir -p /run/tests
            cat >{file} <<'EOF'\n{config:#}\nEOF
            crictl runp --runtime {handler} {file}"
        ))?;
        Ok(Pod {
            site: self,
            id,
            name: name.to_owned(),
        })
    }
}

impl<'n> Pod<'n> {
    /// Starts a container of the image busybox in the pod. `more` is merged into its
    /// ContainerConfig.
    pub fn container(&self, script: &str, more: Value) -> Result<Container<'n>> {
        let mut config = json!({
            "metadata": { "name": "main" },
            "image": { "image": fixture::full_name("busybox") },
            "command": ["sh", "-c", script],
            "log_path": "main.log",
            "linux": {},
        });
        merge(&mut config, more);
        let file = format!("/run/tests/{}-main.json", self.name);
        let pod = config_file(&self.name);
        let id = self.site.sh(&format!(
            "set -e
            cat >{file} <<'EOF'\n{config:#}\nEOF
            id=$(crictl create {} {file} {pod})
            crictl start $id >&2
            echo $id",
            self.id
        ))?;
        Ok(Container {
            site: self.site,
            id,
        })
    }

    /// Starts a container that sleeps.
    pub fn sleeping(&self) -> Result<Container<'n>> {
        self.container("sleep 100000", json!({}))
    }

    /// Returns the pid of a process of the pod's VM, such as `qemu`, or of its `SHIM`, as
    /// `caisson list` shows it.
    pub fn process(&self, role: &str) -> Result<u32> {
        let pod = &self.id;
        let line = self.site.sh(&format!("caisson list | grep ^{pod}"))?;
        // POD STATE CONTAINERS SHIM  ROLE PID, ROLE PID  NAME
        let number = |text: &str| text.trim_end_matches(',').parse().ok();
        let words: Vec<&str> = line.split_whitespace().collect();
        let found = match role {
            "SHIM" => words.iter().skip(3).find_map(|word| number(word)),
            role => words
                .windows(2)
                .find_map(|pair| number(pair[1]).filter(|_| pair[0] == role)),
        };
        found.with_context(|| format!("no {role} in {line:?}"))
    }

    /// Stops and removes the pod with its containers.
    pub fn remove(self) -> Result<()> {
        let id = &self.id;
        self.site
            .sh(&format!("crictl stopp {id} && crictl rmp {id}"))
            .map(drop)
    }
}

impl Container<'_> {
    /// Runs a script in the container. Returns its output without the white space around it.
    pub fn sh(&self, script: &str) -> Result<String> {
        let output = self.exec(script)?;
        Ok(output.ok().with_context(|| script.to_owned())?.line())
    }

    /// Runs a script in the container. Returns its output whatever its status.
    pub fn exec(&self, script: &str) -> Result<Output> {
        let quoted = script.replace('\'', r"'\''");
        let line = format!("crictl exec --sync {} sh -c '{quoted}'", self.id);
        self.site.run(&line, Duration::from_secs(300))
    }

    /// Waits until the container has ended. Returns its status as CRI has it.
    pub fn ended(&self) -> Result<Value> {
        let id = &self.id;
        let text = self.site.poll(
            "the container to end",
            &format!(
                "status=$(crictl inspect {id}); echo \"$status\" >&2
                grep -q CONTAINER_EXITED <<<\"$status\" && echo \"$status\""
            ),
        )?;
        let status: Value = serde_json::from_str(&text)?;
        Ok(status["status"].clone())
    }
}

fn config_file(pod: &str) -> String {
    format!("/run/tests/{pod}.json")
}

/// Puts the members of `more` into `config`; those that both have as objects are merged.
fn merge(config: &mut Value, more: Value) {
    match (config, more) {
        (Value::Object(config), Value::Object(more)) => {
            for (key, value) in more {
                merge(config.entry(key).or_insert(Value::Null), value);
            }
        }
        (config, more) => *config = more,
    }
}
