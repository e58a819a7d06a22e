//! Tests the chart's access rules: the nodes' `[policy]`, and the nodes that the DaemonSet's pods
//! may change.

use anyhow::{ensure, Context, Result};
use caisson_oci::{NodeConfig, Policy};
use serde_json::json;

use crate::render::{at, helm, refuse, render, run, values_file, with, yaml};

#[test]
fn policy_of_the_chart_is_that_of_the_programs() -> Result<()> {
    for overlay in [None, Some("values-prod.yaml")] {
        let policy = policy(&render(overlay, None)?)?;
        assert_eq!(policy, Policy::default(), "{overlay:?}");
    }
    Ok(())
}

#[test]
fn policy_of_the_values_is_the_nodes_with_what_they_leave_out() -> Result<()> {
    let said = json!({ "policy": {
        "annotations": { "caisson.dev/devices=fuse": ["ci"], "caisson.dev/home": [] },
        "sources": { "company": ["team-*"] },
    } });
    let policy = policy(&render(None, Some(said))?)?;
    let annotation = |key: &str, value: &str, namespace: &str| {
        let given = [(key.to_owned(), value.to_owned())].into();
        policy.check_annotations(&given, namespace).is_ok()
    };
    assert!(annotation("caisson.dev/devices", "fuse", "ci"));
    assert!(!annotation("caisson.dev/devices", "tun", "ci"));
    assert!(!annotation("caisson.dev/devices", "fuse", "web"));
    assert!(!annotation("caisson.dev/home", "ephemeral", "ci"));
    assert!(annotation("caisson.dev/home-size", "1Gi", "ci"));
    assert!(policy.check_source("company", "team-a").is_ok());
    assert!(policy.check_source("other", "team-a").is_err());
    Ok(())
}

#[test]
fn table_with_values_of_its_own_is_refused_in_the_settings() -> Result<()> {
    for config in [
        "[policy.skills]\n",
        "[vm]\n[ policy ]\n",
        "policy.skills = {}",
    ] {
        let error = refuse(json!({ "config": config }))?;
        ensure!(error.contains("goes into the value `policy`"), "{error}");
    }
    let error = refuse(json!({ "config": "[pool]\nsize = 2\n" }))?;
    ensure!(error.contains("goes into the value `pool`"), "{error}");
    render(None, Some(json!({ "config": "# policy\n[vm]\n" })))?;
    Ok(())
}

#[test]
fn node_restriction_is_of_the_daemonsets_account_and_denies() -> Result<()> {
    let objects = yaml(&render(None, None)?)?;
    let of = |kind: &str| {
        let found = objects.iter().find(|object| object["kind"] == kind);
        found.with_context(|| format!("no {kind}"))
    };
    let account = &of("DaemonSet")?["spec"]["template"]["spec"]["serviceAccountName"];
    let account = account.as_str().context("no account")?;
    let policy = of("ValidatingAdmissionPolicy")?;
    assert_eq!(policy["spec"]["failurePolicy"], "Fail");
    let conditions = policy["spec"]["matchConditions"].as_array();
    let expected =
        format!("request.userInfo.username == 'system:serviceaccount:caisson-system:{account}'");
    let conditions = conditions.context("no conditions")?;
    assert_eq!(conditions.len(), 1);
    assert_eq!(conditions[0]["expression"], expected);
    let rule = &policy["spec"]["matchConstraints"]["resourceRules"][0];
    assert_eq!(rule["resources"], json!(["nodes", "nodes/status"]));
    let binding = &of("ValidatingAdmissionPolicyBinding")?["spec"];
    assert_eq!(binding["policyName"], policy["metadata"]["name"]);
    assert_eq!(binding["validationActions"], json!(["Deny"]));
    Ok(())
}

#[test]
fn node_restriction_on_an_older_cluster_is_refused_until_it_is_turned_off() -> Result<()> {
    let render = |enabled: bool| {
        let file = values_file(&at("nodeRestriction.enabled", &json!(enabled)))?;
        let mut helm = helm("template")?;
        helm.args(["--kube-version", "1.29.9"]);
        run(with(&mut helm, None, Some(&file))?)
    };
    let error = format!("{:#}", render(true).err().context("rendered")?);
    ensure!(error.contains("nodeRestriction.enabled=false"), "{error}");
    ensure!(!render(false)?.contains("kind: ValidatingAdmissionPolicy"));
    Ok(())
}

/// Returns the node's policy from the settings that are rendered.
fn policy(text: &str) -> Result<Policy> {
    let objects = yaml(text)?;
    let map = objects.iter().find(|object| object["kind"] == "ConfigMap");
    let settings = map.context("no ConfigMap")?["data"]["settings.toml"].as_str();
    let settings = settings.context("no settings")?.to_owned();
    Ok(NodeConfig::parse(&[("50-node.toml".to_owned(), settings)])?.policy)
}
