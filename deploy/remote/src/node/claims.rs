//! Claims pods of this node for whoever has annotated them with `caisson.dev/claim`
//! ([`caisson_oci::claim_annotation`]). The result is a condition of the pod and an event.
//!
//! A claim that succeeded is never made again. One that failed is made again when the annotation
//! has changed.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    time::Duration,
};

use anyhow::{bail, Context, Result};
use caisson_oci::{
    annotations::{HOME, HOME_PATH, HOME_SIZE, SKILLS},
    claim::{Claim, Secret as Bytes},
    claim_annotation::{Asked, KEY},
};
use futures::TryStreamExt;
use k8s_openapi::{
    api::core::v1::{Pod, Secret},
    jiff::Timestamp,
};
use kube::{
    api::{Patch, PatchParams, WatchEvent, WatchParams},
    Api,
};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{
    api::MANAGER,
    host,
    pod_event::{self, OwnNode, PodEvent, PodName},
    standing::{seconds, shortened},
};

/// The condition's type.
const CONDITION: &str = "caisson.dev/Claimed";
/// The time between the end of a watch and the next one.
const PAUSE: Duration = Duration::from_secs(2);
/// How long `caisson claim` may take. Its own limits end it before.
const LIMIT: Duration = Duration::from_secs(15 * 60);
/// How often and after which time the API server is told again if it can't be told.
const TELL_TRIES: usize = 60;
const TELL_AGAIN: Duration = Duration::from_secs(5);

/// The node whose pods are claimed.
#[derive(Clone)]
pub struct Claims(pub OwnNode);

/// A pod that asks to be claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asking {
    pod: PodName,
    /// The annotation's value.
    value: String,
}

/// The result of a claim, as the condition has it.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    status: &'static str,
    reason: &'static str,
    message: String,
}

impl Claims {
    /// Claims the pods that ask for it, for ever.
    pub async fn serve(self) -> Result<Infallible> {
        // What was tried last, by the pod's uid.
        let mut tried = HashMap::new();
        loop {
            if let Err(error) = self.watch(&mut tried).await {
                eprintln!("watch the pods of node {}: {error:#}", self.0.node);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn watch(&self, tried: &mut HashMap<String, String>) -> Result<()> {
        let pods: Api<Pod> = Api::all(self.0.client.clone());
        let own = format!("spec.nodeName={}", self.0.node);
        // From version 0 on, a watch begins with what is there.
        let stream = pods
            .watch(&WatchParams::default().fields(&own), "0")
            .await?;
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.try_next().await? {
            match event {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) => {
                    let Some(asking) = asking(&pod) else { continue };
                    let last = tried.insert(asking.pod.uid.clone(), asking.value.clone());
                    if last.as_ref() != Some(&asking.value) {
                        tokio::spawn(self.clone().claim(asking));
                    }
                }
                WatchEvent::Deleted(pod) => {
                    tried.remove(&pod.metadata.uid.unwrap_or_default());
                }
                WatchEvent::Bookmark(_) => {}
                WatchEvent::Error(status) => bail!("{}", status.message),
            }
        }
        Ok(())
    }

    /// Claims a pod and tells the result.
    async fn claim(self, asking: Asking) {
        let told = told(self.give(&asking).await);
        let pod = format!("{}/{}", asking.pod.namespace, asking.pod.name);
        println!("pod {pod}: {}: {}", told.reason, told.message);
        for _ in 0..TELL_TRIES {
            match self.tell(&asking, &told).await {
                Ok(()) => return,
                Err(error) => eprintln!("pod {pod}: {error:#}"),
            }
            tokio::time::sleep(TELL_AGAIN).await;
        }
    }

    /// Returns where the containers have the claim.
    async fn give(&self, asking: &Asking) -> Result<String> {
        let claim = self.collect(asking).await?;
        let pod = format!("{}/{}", asking.pod.namespace, asking.pod.name);
        let arguments = ["claim", "--json", &pod].map(Into::into);
        let input = serde_json::to_vec(&claim)?;
        let asked = host::tell(self.0.process, &self.0.program, &arguments, input);
        let answer = tokio::time::timeout(LIMIT, asked).await;
        answer.with_context(|| format!("no answer within {LIMIT:?}"))?
    }

    /// Reads what the annotation names.
    async fn collect(&self, asking: &Asking) -> Result<Claim> {
        let asked = Asked::parse(&asking.value)?;
        let annotations = [
            (SKILLS, asked.skills),
            (HOME, asked.home),
            (HOME_SIZE, asked.home_size),
            (HOME_PATH, asked.home_path),
        ];
        let annotations = annotations.into_iter();
        let annotations = annotations.filter_map(|(key, value)| Some((key.to_owned(), value?)));
        let mut env = BTreeMap::new();
        for (name, value) in self.secret(asking, asked.env_from.as_ref()).await? {
            let text = String::from_utf8(value.0);
            let text = text.map_err(|_| anyhow::anyhow!("the variable {name} is not UTF-8"))?;
            env.insert(name, text);
        }
        env.extend(asked.env);
        Ok(Claim {
            annotations: annotations.collect(),
            env,
            secrets: self.secret(asking, asked.secret.as_ref()).await?,
            secret_fds: self.secret(asking, asked.secret_fd.as_ref()).await?,
            token: Some(hex::encode(Sha256::digest(&asking.value))),
        })
    }

    /// Reads a Secret of the pod's namespace, if one is named.
    async fn secret(
        &self,
        asking: &Asking,
        name: Option<&String>,
    ) -> Result<BTreeMap<String, Bytes>> {
        let Some(name) = name else {
            return Ok(BTreeMap::new());
        };
        let namespace = &asking.pod.namespace;
        let secrets: Api<Secret> = Api::namespaced(self.0.client.clone(), namespace);
        let secret = match secrets.get(name).await {
            Err(kube::Error::Api(status)) if status.code == 403 => bail!(
                "the node agent may not read Secrets in the namespace {namespace}; the chart's value \
                 claims.secretNamespaces lists those where it may"
            ),
            found => found.with_context(|| format!("read the Secret {namespace}/{name}"))?,
        };
        let data = secret.data.unwrap_or_default().into_iter();
        Ok(data.map(|(key, value)| (key, Bytes(value.0))).collect())
    }

    /// Sets the pod's condition and makes an event. A pod that is gone needs neither.
    async fn tell(&self, asking: &Asking, told: &Told) -> Result<()> {
        let PodName {
            namespace,
            name,
            uid,
        } = &asking.pod;
        let pods: Api<Pod> = Api::namespaced(self.0.client.clone(), namespace);
        let now = seconds(Timestamp::now());
        let condition = json!({
            "type": CONDITION,
            "status": told.status,
            "reason": told.reason,
            "message": told.message,
            "lastTransitionTime": now,
        });
        // The uid is compared: another pod may have the name by now.
        let patch = json!({
            "metadata": { "uid": uid },
            "status": { "conditions": [condition] },
        });
        let params = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..Default::default()
        };
        let patch = Patch::Strategic(patch);
        match pods.patch_status(name, &params, &patch).await {
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return Ok(()),
            done => done.context("set the condition")?,
        };
        let event = PodEvent {
            name: None,
            kind: if told.status == "True" {
                "Normal"
            } else {
                "Warning"
            },
            reason: told.reason,
            message: &told.message,
        };
        // The condition says the same, so a lost event is no reason to set that again.
        if let Err(error) = pod_event::make(&self.0, &asking.pod, &event).await {
            eprintln!("{error:#}");
        }
        Ok(())
    }
}

fn told(given: Result<String>) -> Told {
    match given {
        Ok(containers) => {
            let names = containers.lines().filter_map(|line| line.split(' ').next());
            let names: Vec<_> = names.collect();
            Told {
                status: "True",
                reason: "Claimed",
                message: shortened(&format!("claimed, in {}", names.join(", "))),
            }
        }
        Err(error) => Told {
            status: "False",
            reason: "ClaimFailed",
            message: shortened(&format!("{error:#}")),
        },
    }
}

/// Returns what a pod asks for, if it asks, runs with all its containers and has not been claimed.
fn asking(pod: &Pod) -> Option<Asking> {
    let metadata = &pod.metadata;
    let value = metadata.annotations.as_ref()?.get(KEY)?;
    let status = pod.status.as_ref()?;
    let mut conditions = status.conditions.iter().flatten();
    let claimed = conditions.any(|found| found.type_ == CONDITION && found.status == "True");
    let running = |name: &str| {
        let mut containers = status.container_statuses.iter().flatten();
        let found = containers.find(|container| container.name == name);
        let state = found.and_then(|container| container.state.as_ref());
        state.is_some_and(|state| state.running.is_some())
    };
    let mut containers = pod.spec.as_ref()?.containers.iter();
    let ends = metadata.deletion_timestamp.is_some();
    if claimed || ends || !containers.all(|container| running(&container.name)) {
        return None;
    }
    Some(Asking {
        pod: PodName {
            namespace: metadata.namespace.clone()?,
            name: metadata.name.clone()?,
            uid: metadata.uid.clone()?,
        },
        value: value.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn pod(change: impl FnOnce(&mut Value)) -> Pod {
        let mut pod = json!({
            "metadata": {
                "namespace": "team", "name": "warm", "uid": "u1", "annotations": { KEY: "{}" },
            },
            "spec": { "containers": [{ "name": "main" }] },
            "status": {
                "containerStatuses": [{
                    "name": "main", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                    "state": { "running": {} },
                }],
            },
        });
        change(&mut pod);
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn pod_that_runs_and_is_annotated_asks() {
        let asking = asking(&pod(|_| ())).unwrap();
        assert_eq!(
            (asking.pod.namespace.as_str(), asking.value.as_str()),
            ("team", "{}")
        );
    }

    #[test]
    fn pod_that_is_not_annotated_or_does_not_run_does_not_ask() {
        let container = "/status/containerStatuses/0/state";
        for pod in [
            pod(|pod| pod["metadata"]["annotations"] = json!({ "a": "b" })),
            pod(|pod| *pod.pointer_mut(container).unwrap() = json!({ "waiting": {} })),
            pod(|pod| pod["status"]["containerStatuses"] = json!([])),
            pod(|pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")),
        ] {
            assert_eq!(asking(&pod), None);
        }
    }

    #[test]
    fn pod_asks_again_after_a_failure_only() {
        let with = |status: &str| {
            let condition = json!({ "type": CONDITION, "status": status });
            asking(&pod(|pod| pod["status"]["conditions"] = json!([condition]))).is_some()
        };
        assert!(with("False"));
        assert!(!with("True"));
    }

    #[test]
    fn result_of_a_claim_names_the_containers_or_the_reason() {
        let good = told(Ok(
            "one /run/caisson/claim\ntwo /run/caisson/claim".to_owned()
        ));
        assert_eq!(
            (good.status, good.message.as_str()),
            ("True", "claimed, in one, two")
        );
        let bad = told(Err(anyhow::anyhow!("in use").context("home a")));
        assert_eq!(
            (bad.reason, bad.message.as_str()),
            ("ClaimFailed", "home a: in use")
        );
    }
}
