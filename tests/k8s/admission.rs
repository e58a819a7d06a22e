//! Tests the chart's admission policies: what `kubectl apply` says of a pod that a node would
//! refuse. The API server judges the pods and does not store them.

use std::sync::{MutexGuard, PoisonError};

use anyhow::{ensure, Context, Result};
use caisson_local::caisson;
use caisson_oci::{devices, rules, Annotations, Error, NodeConfig};
use caisson_tests::{
    command::{poll, Output},
    fixture,
    k8s::{Namespace, TestCluster},
};
use serde_json::{json, Value};

use crate::{LIMIT, TURN};

const PRESETS: &str = r#"{
    "strict": { "isolation": "strict", "components": "minimal" },
    "teams": { "namespaces": ["team-*"] }
}"#;

#[test]
fn pod_that_asks_for_nothing_more_is_admitted() -> Result<()> {
    let (_turn, namespace) = admission()?;
    for class in ["sandbox", "sandbox-strict"] {
        let mut pod = pod(class);
        pod["metadata"]["annotations"] = json!({ "caisson.dev/secret-fd.main": "v/k=K" });
        pod["spec"]["volumes"] = json!([{ "name": "v", "hostPath": { "path": "/var/lib/x" } }]);
        namespace.judge(&pod)?.ok().context(class)?;
    }
    Ok(())
}

#[test]
fn namespace_of_the_host_is_refused_as_by_the_node() -> Result<()> {
    let (_turn, namespace) = admission()?;
    for (key, field) in [
        ("hostNetwork", "linux.namespaces.network"),
        ("hostPID", "linux.namespaces.pid"),
        ("hostIPC", "linux.namespaces.ipc"),
    ] {
        let mut pod = pod("sandbox");
        pod["spec"][key] = true.into();
        let rule = rules::RULES.iter().find(|rule| rule.field == field);
        let refused = Error::Refused {
            field,
            what: "(not listed, so the host's)".to_owned(),
            advice: rule.context("no rule")?.advice,
        };
        refused_with(namespace.judge(&pod)?, &refused.to_string())?;
        // The same pod without our class is none of our business.
        pod["spec"]["runtimeClassName"] = Value::Null;
        namespace.judge(&pod)?.ok().context(key)?;
    }
    Ok(())
}

#[test]
fn volume_that_a_vm_cannot_show_is_refused_as_by_the_node() -> Result<()> {
    let (_turn, namespace) = admission()?;
    for (path, kind, text) in [
        ("/proc", "", "is in the proc of the host"),
        ("/proc/sys", "Directory", rules::MADE_UP),
        ("/sys/fs/cgroup", "", "is in the sysfs of the host"),
        ("/dev/sda", "", devices::ADVICE),
        ("/srv/disk", "BlockDevice", devices::ADVICE),
    ] {
        let mut pod = pod("sandbox");
        let host = json!({ "path": path, "type": kind });
        pod["spec"]["volumes"] = json!([{ "name": "v", "hostPath": host }]);
        let said = namespace.judge(&pod)?;
        let text = [&format!("hostPath \"{path}\""), text];
        refused_with(said.clone(), text[0])?;
        refused_with(said, text[1])?;
    }
    for path in ["/procs", "/dev", "/dev/fuse", "/dev/shm/x"] {
        let mut pod = pod("sandbox");
        pod["spec"]["volumes"] = json!([{ "name": "v", "hostPath": { "path": path } }]);
        namespace.judge(&pod)?.ok().context(path)?;
    }
    Ok(())
}

#[test]
fn annotation_that_is_unknown_is_refused_as_by_the_node() -> Result<()> {
    let (_turn, namespace) = admission()?;
    for key in ["caisson.dev/skils", "caisson.dev/home.main"] {
        let error = Annotations::parse(&[(key.to_owned(), "x@1".to_owned())].into());
        let error = error.err().context("the node knows it")?.to_string();
        refused_with(namespace.judge(&annotated("sandbox", key, "x@1"))?, &error)?;
    }
    Ok(())
}

#[test]
fn annotation_that_is_not_allowed_is_refused_as_by_the_node() -> Result<()> {
    let (_turn, namespace) = admission()?;
    let node = NodeConfig::default();
    let given = [("caisson.dev/devices".to_owned(), "fuse".to_owned())].into();
    let error = node.policy.check_annotations(&given, namespace.name());
    let error = error.err().context("the node allows it")?.to_string();
    let pod = annotated("sandbox", "caisson.dev/devices", "fuse");
    refused_with(namespace.judge(&pod)?, &error)?;

    let home = annotated("sandbox", "caisson.dev/home", "ephemeral");
    namespace.judge(&home)?.ok()?;
    let home = annotated("sandbox-strict", "caisson.dev/home", "ephemeral");
    let text = format!(
        "with the preset strict: annotation caisson.dev/home: is not allowed in the namespace {}; \
         \"caisson.dev/home\" in [policy.annotations] of the node's configuration",
        namespace.name()
    );
    refused_with(namespace.judge(&home)?, &text)
}

#[test]
fn annotation_that_is_added_later_is_refused() -> Result<()> {
    let (_turn, namespace) = admission()?;
    namespace.apply(&pod("sandbox-strict"))?;
    let later = annotated("sandbox-strict", "caisson.dev/skills", "x@1");
    refused_with(
        namespace.judge(&later)?,
        "annotation caisson.dev/skills: is not allowed",
    )?;
    let label = ["label", "pod", "judged", "some=label"];
    namespace.kubectl(&label)?.ok().map(drop)
}

#[test]
fn privileges_and_namespaces_of_a_preset_hold() -> Result<()> {
    let (_turn, namespace) = admission()?;
    for (context, text) in [
        (json!({ "privileged": true }), "process: privileged: true"),
        (
            json!({ "capabilities": { "add": ["SYS_ADMIN", "CHOWN"] } }),
            "process.capabilities: SYS_ADMIN",
        ),
    ] {
        let with = |class: &str| {
            let mut pod = pod(class);
            pod["spec"]["containers"][0]["securityContext"] = context.clone();
            pod
        };
        namespace.judge(&with("sandbox"))?.ok()?;
        let text = format!(
            "with the preset strict: config.json: {text} is not allowed in the namespace {}; \
             \"privileges\" in [policy]",
            namespace.name()
        );
        refused_with(namespace.judge(&with("sandbox-strict"))?, &text)?;
    }
    let text = format!(
        "with the preset teams: the pod is not allowed in the namespace {}; \"namespaces\" in",
        namespace.name()
    );
    refused_with(namespace.judge(&pod("sandbox-teams"))?, &text)
}

#[test]
fn namespace_with_the_label_has_pods_of_our_classes_only() -> Result<()> {
    let (_turn, namespace) = admission()?;
    let judged = |pod: &Value| -> Result<Value> {
        Ok(serde_json::from_slice(&namespace.judge(pod)?.ok()?.stdout)?)
    };
    let mut plain = pod("sandbox");
    plain["spec"]["runtimeClassName"] = Value::Null;
    assert_eq!(judged(&plain)?["spec"]["runtimeClassName"], Value::Null);

    let label = "caisson.dev/isolation=sandbox";
    let name = namespace.name().to_owned();
    let cluster = namespace.cluster();
    cluster
        .kubectl(&["label", "namespace", &name, label])?
        .ok()?;
    // The API servers of the tests' clusters have MutatingAdmissionPolicy.
    let given = poll("the class to be given", LIMIT, || {
        let made = judged(&plain).ok()?;
        (made["spec"]["runtimeClassName"] == "sandbox").then_some(made)
    })?;
    // What the API server takes from the class follows.
    assert!(given["spec"]["overhead"]["memory"].is_string(), "{given}");
    assert_eq!(given["spec"]["nodeSelector"]["caisson.dev/ready"], "true");
    let strict = judged(&pod("sandbox-strict"))?;
    assert_eq!(strict["spec"]["runtimeClassName"], "sandbox-strict");

    let other = json!({
        "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
        "metadata": { "name": "test-runc" }, "handler": "runc",
    });
    namespace.apply(&other)?;
    let said = namespace.judge(&pod("test-runc"));
    let removed = cluster.kubectl(&["delete", "runtimeclass", "test-runc"])?;
    removed.ok()?;
    refused_with(
        said?,
        "set runtimeClassName to one of sandbox, sandbox-strict, sandbox-teams",
    )
}

/// Returns a namespace of a cluster with the chart's admission policies in force. Whether the node
/// is ready does not matter.
fn admission() -> Result<(MutexGuard<'static, ()>, Namespace<'static>)> {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = TestCluster::shared();
    let there = ["get", "validatingadmissionpolicy", "caisson-pods"];
    if cluster.kubectl(&there)?.code != 0 {
        let values = [("admission.enabled", "true"), ("presets", PRESETS)];
        caisson::upgrade_json(cluster.cluster(), &values)?;
    }
    let namespace = cluster.namespace()?;
    poll("the policy", LIMIT, || {
        let said = namespace.judge(&annotated("sandbox-strict", "caisson.dev/none", "x"));
        refused_with(said.ok()?, "annotation caisson.dev/none").ok()
    })?;
    Ok((turn, namespace))
}

fn pod(class: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "judged" },
        "spec": {
            "runtimeClassName": class,
            "containers": [{ "name": "main", "image": fixture::full_name("busybox") }],
        },
    })
}

fn annotated(class: &str, key: &str, value: &str) -> Value {
    let mut pod = pod(class);
    pod["metadata"]["annotations"] = json!({ key: value });
    pod
}

fn refused_with(said: Output, text: &str) -> Result<()> {
    let errors = said.errors();
    let by_us = errors.contains("ValidatingAdmissionPolicy 'caisson-") && errors.contains(text);
    ensure!(
        said.code != 0 && by_us,
        "no {text:?} in {errors}{}",
        said.text()
    );
    Ok(())
}
