//! Tests the chart's admission policies as they are rendered: they say what the nodes say.
//! tests/k8s/admission.rs has an API server judge pods by them.

use std::collections::BTreeMap;

use anyhow::{ensure, Context, Result};
use caisson_oci::{devices, privileges, rules, Annotations, Error, NodeConfig};
use serde_json::{json, Value};

use crate::render::{check, helm, render, run, values_file, with, yaml};

#[test]
fn admission_is_not_there_unless_it_is_asked_for() -> Result<()> {
    let text = render(None, None)?;
    ensure!(!text.contains("caisson-pods") && !text.contains("caisson-isolation"));
    Ok(())
}

#[test]
fn policies_fit_the_schemas_and_deny() -> Result<()> {
    let text = rendered(&[])?;
    check(&text)?;
    for object in yaml(&text)? {
        if object["kind"] == "ValidatingAdmissionPolicy" {
            assert_eq!(object["spec"]["failurePolicy"], "Fail");
        }
        if object["kind"] == "ValidatingAdmissionPolicyBinding" {
            assert_eq!(object["spec"]["validationActions"], json!(["Deny"]));
        }
    }
    Ok(())
}

#[test]
fn namespaces_of_the_policy_are_those_of_the_nodes_for_each_class() -> Result<()> {
    let text = rendered(&[])?;
    let variable = variable(&pods(&text)?, "policy")?;
    let (map, index) = variable.rsplit_once("}[").context("no map")?;
    assert_eq!(index, "object.spec.runtimeClassName]");
    let by_class: BTreeMap<String, BTreeMap<String, String>> =
        serde_json::from_str(&format!("{map}}}"))?;

    let objects = yaml(&text)?;
    let map = objects.iter().find(|object| object["kind"] == "ConfigMap");
    let settings = map.context("no ConfigMap")?["data"]["settings.toml"].as_str();
    let settings = settings.context("no settings")?.to_owned();
    let node = NodeConfig::parse(&[("50-node.toml".to_owned(), settings)])?;
    let mut expected = BTreeMap::from([("sandbox".to_owned(), expressions(&node)?)]);
    for preset in node.presets.keys() {
        let config = node.with_preset(preset)?;
        expected.insert(format!("sandbox-{preset}"), expressions(&config)?);
    }
    assert_eq!(by_class, expected);
    Ok(())
}

#[test]
fn texts_are_those_of_the_nodes() -> Result<()> {
    let said = messages(&pods(&rendered(&[])?)?);
    for field in [
        "linux.namespaces.pid",
        "linux.namespaces.network",
        "linux.namespaces.ipc",
    ] {
        let rule = rules::RULES.iter().find(|rule| rule.field == field);
        let refused = Error::Refused {
            field,
            what: "(not listed, so the host's)".to_owned(),
            advice: rule.with_context(|| format!("no rule for {field}"))?.advice,
        };
        ensure!(said.contains(&refused.to_string()), "{refused}");
    }
    ensure!(said.contains(rules::MADE_UP), "{}", rules::MADE_UP);
    ensure!(said.contains(devices::ADVICE), "{}", devices::ADVICE);
    Ok(())
}

#[test]
fn annotations_that_are_known_are_those_that_the_nodes_know() -> Result<()> {
    let said = messages(&pods(&rendered(&[])?)?);
    let unknown = [("caisson.dev/nosuch".to_owned(), String::new())].into();
    let error = Annotations::parse(&unknown).err().context("it is known")?;
    let error = error.to_string();
    let known = error.split_once("caisson.dev/nosuch: ");
    let (_, known) = known.context("no key")?;
    ensure!(said.contains(known), "{known}");
    Ok(())
}

#[test]
fn default_capabilities_are_those_of_the_nodes() -> Result<()> {
    let added = variable(&pods(&rendered(&[])?)?, "added")?;
    let names = privileges::DEFAULT.map(|capability| format!("\"{capability}\""));
    let list = format!("[{}]", names.join(", "));
    ensure!(added.contains(&list), "{added} has not {list}");
    Ok(())
}

#[test]
fn class_is_given_where_the_api_server_can() -> Result<()> {
    let kind = "MutatingAdmissionPolicy";
    ensure!(!rendered(&[])?.contains(&format!("kind: {kind}")));
    for versions in [
        &["v1alpha1"][..],
        &["v1alpha1", "v1beta1"],
        &["v1alpha1", "v1beta1", "v1"],
    ] {
        let text = rendered(versions)?;
        let newest = versions.last().context("no version")?;
        if *newest == "v1alpha1" {
            check(&text)?;
        }
        let objects = yaml(&text)?.into_iter();
        let of_kind = objects.filter(|object| {
            let found = object["kind"].as_str().unwrap_or_default();
            found.starts_with(kind)
        });
        let api: Vec<_> = of_kind.map(|object| object["apiVersion"].clone()).collect();
        let expected = json!(format!("admissionregistration.k8s.io/{newest}"));
        assert_eq!(api, [expected.clone(), expected]);
    }
    Ok(())
}

#[test]
fn admission_on_an_older_cluster_is_refused_until_it_is_turned_off() -> Result<()> {
    let values = values_file(&json!({
        "admission": { "enabled": true }, "nodeRestriction": { "enabled": false },
    }))?;
    let mut helm = helm("template")?;
    helm.args(["--kube-version", "1.29.9"]);
    let error = run(with(&mut helm, None, Some(&values))?).err();
    let error = format!("{:#}", error.context("rendered")?);
    ensure!(error.contains("admission.enabled=false"), "{error}");
    Ok(())
}

/// Renders the chart with admission and presets, for an API server that has MutatingAdmissionPolicy
/// in these versions.
fn rendered(versions: &[&str]) -> Result<String> {
    let values = values_file(&json!({
        "admission": { "enabled": true },
        "policy": { "annotations": { "caisson.dev/devices=fuse": ["ci", "build-*"] } },
        "presets": {
            "strict": {
                "isolation": "strict", "components": "minimal", "namespaces": ["tenants-*"],
            },
            "nested": { "isolation": "nested", "settings": { "policy": { "privileges": [] } } },
            "plain": {},
        },
    }))?;
    let mut helm = helm("template")?;
    helm.arg("caisson");
    for version in versions {
        let api = format!("admissionregistration.k8s.io/{version}/MutatingAdmissionPolicy");
        helm.args(["--api-versions", &api]);
    }
    run(with(&mut helm, None, Some(&values))?)
}

/// Returns the policy for pods.
fn pods(text: &str) -> Result<Value> {
    let objects = yaml(text)?.into_iter();
    let mut policies = objects.filter(|object| object["kind"] == "ValidatingAdmissionPolicy");
    let pods = policies.find(|policy| policy["metadata"]["name"] == "caisson-pods");
    pods.context("no policy for pods")
}

fn variable(policy: &Value, name: &str) -> Result<String> {
    let mut variables = policy["spec"]["variables"].as_array().into_iter().flatten();
    let found = variables.find(|variable| variable["name"] == name);
    let expression = found.context("no such variable")?["expression"].as_str();
    Ok(expression.context("no expression")?.to_owned())
}

/// Returns all that the policy says.
fn messages(policy: &Value) -> String {
    let validations = policy["spec"]["validations"].as_array();
    let said = validations.into_iter().flatten();
    let said = said.filter_map(|validation| validation["messageExpression"].as_str());
    said.collect::<Vec<_>>().join("\n")
}

/// Returns a regular expression for the namespaces of each entry of a configuration's policy.
fn expressions(config: &NodeConfig) -> Result<BTreeMap<String, String>> {
    let policy = serde_json::to_value(&config.policy)?;
    let lists = ["namespaces", "privileges"].map(|key| (key, &policy[key]));
    let annotations = policy["annotations"].as_object().context("no table")?;
    let annotations = annotations.iter().map(|(key, list)| (key.as_str(), list));
    lists
        .into_iter()
        .chain(annotations)
        .map(|(key, list)| {
            let list: Vec<String> = serde_json::from_value(list.clone())?;
            let expression = match list.is_empty() {
                true => "^$".to_owned(),
                false => format!("^({})$", list.join("|").replace('*', ".*")),
            };
            Ok((key.to_owned(), expression))
        })
        .collect()
}
