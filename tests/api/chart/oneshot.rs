//! Tests what the chart renders where the nodes are set up once. tests/k8s/oneshot.rs has helm run
//! it.

use std::collections::BTreeSet;

use anyhow::{ensure, Context, Result};
use serde_json::{json, Value};

use crate::render::{check, refuse, render, yaml};

#[test]
fn daemonset_is_there_while_helm_runs_only() -> Result<()> {
    let daemonsets = of_kind(&oneshot(json!({}))?, "DaemonSet")?;
    let hooks: BTreeSet<_> = daemonsets
        .iter()
        .map(|daemonset| annotation(daemonset, "helm.sh/hook"))
        .collect();
    let expected = ["post-install,post-upgrade,post-rollback", "pre-delete"];
    assert_eq!(hooks, expected.map(str::to_owned).into());
    for daemonset in &daemonsets {
        let policy = annotation(daemonset, "helm.sh/hook-delete-policy");
        assert_eq!(policy, "before-hook-creation,hook-succeeded");
        // The one of the removal gives the nodes back from the beginning.
        let drains = annotation(daemonset, "caisson.dev/drain") == "true";
        let removes = annotation(daemonset, "helm.sh/hook") == "pre-delete";
        assert_eq!(drains, removes);
    }
    Ok(())
}

#[test]
fn jobs_run_after_the_daemonset_is_made() -> Result<()> {
    let text = oneshot(json!({}))?;
    let weight = |object: &Value| -> Result<i64> {
        match annotation(object, "helm.sh/hook-weight").as_str() {
            "" => Ok(0),
            weight => Ok(weight.parse()?),
        }
    };
    let jobs = of_kind(&text, "Job")?;
    let names: Vec<_> = jobs.iter().map(|job| &job["metadata"]["name"]).collect();
    assert_eq!(names, ["caisson-drain", "caisson-await"]);
    for daemonset in of_kind(&text, "DaemonSet")? {
        for job in &jobs {
            ensure!(weight(&daemonset)? < weight(job)?);
        }
    }
    Ok(())
}

#[test]
fn pod_that_waits_for_the_nodes_may_look_and_no_more() -> Result<()> {
    let text = oneshot(json!({}))?;
    let job = of_kind(&text, "Job")?.into_iter();
    let mut job = job.filter(|job| job["metadata"]["name"] == "caisson-await");
    let spec = job.next().context("no Job")?["spec"]["template"]["spec"].clone();
    assert_eq!(spec["hostPID"], Value::Null);
    assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
    let rights = |kind: &str| -> Result<Value> {
        let mut roles = of_kind(&text, kind)?.into_iter();
        let role = roles.find(|role| role["metadata"]["name"] == "caisson-await");
        Ok(role.context("no role")?["rules"].clone())
    };
    assert_eq!(rights("Role")?[0]["verbs"], json!(["get"]));
    assert_eq!(rights("ClusterRole")?[0]["verbs"], json!(["list"]));
    Ok(())
}

#[test]
fn nodes_that_are_not_given_back_get_no_daemonset_at_the_removal() -> Result<()> {
    let text = oneshot(json!({ "drain": { "enabled": false } }))?;
    assert_eq!(of_kind(&text, "DaemonSet")?.len(), 1);
    Ok(())
}

#[test]
fn what_needs_a_pod_that_stays_is_refused() -> Result<()> {
    for (key, value) in [
        ("pool", json!({ "size": 1, "memoryMiB": 100 })),
        ("capacity", json!({ "enabled": true })),
        ("metrics", json!({ "enabled": true })),
        ("claims", json!({ "enabled": true })),
        ("podEvents", json!({ "enabled": true })),
    ] {
        let error = refuse(json!({ "node": { "oneshot": { "enabled": true } }, key: value }))?;
        ensure!(error.contains("with node.oneshot no pod"), "{error}");
    }
    Ok(())
}

/// Renders the chart for nodes that are set up once, with further values.
fn oneshot(mut values: Value) -> Result<String> {
    values["node"] = json!({ "oneshot": { "enabled": true } });
    let text = render(None, Some(values))?;
    check(&text)?;
    Ok(text)
}

fn of_kind(text: &str, kind: &str) -> Result<Vec<Value>> {
    let objects = yaml(text)?.into_iter();
    Ok(objects.filter(|object| object["kind"] == kind).collect())
}

fn annotation(object: &Value, key: &str) -> String {
    let found = object["metadata"]["annotations"][key].as_str();
    found.unwrap_or_default().to_owned()
}
