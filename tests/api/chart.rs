//! Tests the chart `deploy/chart`: helm renders it, and the result is checked against the schemas
//! of Kubernetes' API as strictly as `kubectl apply --validate=strict` does.
//!
//! Needs `cargo xtask test-tools --chart`.

#[path = "chart/admission.rs"]
mod admission;
#[path = "chart/capacity.rs"]
mod capacity;
#[path = "chart/monitoring.rs"]
mod monitoring;
#[path = "chart/oneshot.rs"]
mod oneshot;
#[path = "chart/policy.rs"]
mod policy;
#[path = "chart/presets.rs"]
mod presets;
#[path = "chart/render.rs"]
mod render;

use std::{collections::BTreeSet, fs};

use anyhow::{ensure, Context, Result};
use serde_json::{json, Value};

use render::{at, chart, check, default_values, helm, refuse, render, run, with, yaml};

const OVERLAYS: [Option<&str>; 3] = [None, Some("values-local.yaml"), Some("values-prod.yaml")];

/// For each value of `values.yaml`, returns another value and what is then rendered.
fn values() -> Vec<(&'static str, Value, &'static str)> {
    let digest = format!("sha256:{}", "0a".repeat(32));
    let mut values = vec![
        (
            "image.repository",
            json!("r.example/n"),
            "image: r.example/n:",
        ),
        ("image.tag", json!("9.9"), "image: caisson.dev/node:9.9"),
        (
            "image.digest",
            json!(digest),
            "image: caisson.dev/node@sha256:0a0a",
        ),
        (
            "image.pullPolicy",
            json!("Always"),
            "imagePullPolicy: Always",
        ),
        (
            "image.pullSecrets",
            json!([{ "name": "s3cret" }]),
            "- name: s3cret",
        ),
        ("runtimeClass.name", json!("vm"), "runtimeClassName: vm"),
        (
            "runtimeClass.handler",
            json!("vm-handler"),
            "--handler=vm-handler",
        ),
        (
            "runtimeClass.overhead",
            json!({ "memory": "999Mi" }),
            "memory: 999Mi",
        ),
        (
            "runtimeClass.nodeSelector",
            json!({ "pool": "vms" }),
            "pool: vms",
        ),
        (
            "runtimeClass.tolerations",
            json!([{ "key": "vms", "operator": "Exists" }]),
            "key: vms",
        ),
        (
            "node.oneshot",
            json!({ "enabled": true, "timeoutSeconds": 77 }),
            "--timeout=77",
        ),
        (
            "node.nodeSelector",
            json!({ "pool": "these" }),
            "pool: these",
        ),
        (
            "node.tolerations",
            json!([{ "key": "mine", "operator": "Equal", "value": "x", "effect": "NoExecute" }]),
            "key: mine",
        ),
        (
            "node.affinity",
            json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [{ "matchExpressions": [{ "key": "a", "operator": "Exists" }] }] } } }),
            "nodeSelectorTerms:",
        ),
        (
            "node.priorityClassName",
            json!("mine"),
            "priorityClassName: mine",
        ),
        (
            "node.updateStrategy",
            json!({ "type": "OnDelete", "rollingUpdate": null }),
            "type: OnDelete",
        ),
        (
            "node.resources",
            json!({ "limits": { "memory": "7Gi" } }),
            "memory: 7Gi",
        ),
        (
            "node.podAnnotations",
            json!({ "a.example/b": "true" }),
            "a.example/b: \"true\"",
        ),
        ("node.podLabels", json!({ "team": "t" }), "team: t"),
        (
            "node.terminationGracePeriodSeconds",
            json!(77),
            "terminationGracePeriodSeconds: 77",
        ),
        (
            "install.prefix",
            json!("/srv/caisson"),
            "--prefix=/srv/caisson",
        ),
        (
            "install.containerdConfig",
            json!("/etc/c.toml"),
            "--containerd-config=/etc/c.toml",
        ),
        (
            "install.containerdSocket",
            json!("/run/c.sock"),
            "--containerd-socket=/run/c.sock",
        ),
        (
            "install.restart",
            json!("systemd:k3s.service"),
            "--restart=systemd:k3s.service",
        ),
        ("install.selfTest", json!(false), "--no-self-test"),
        (
            "install.configFile",
            json!("/srv/config.toml"),
            "value: /srv/config.toml",
        ),
        ("install.nodeProcess", json!(7), "--node-process=7"),
        ("install.retrySeconds", json!(3), "--retry=3"),
        ("install.retryMaxSeconds", json!(33), "--retry-max=33"),
        (
            "config",
            json!("[vm]\ndefault_cpus = 2\n"),
            "default_cpus = 2",
        ),
        ("pool", json!({ "size": 2, "memoryMiB": 100 }), "size = 2"),
        (
            "capacity",
            json!({ "enabled": true, "vmSlots": 7, "devicePluginDir": "/srv/device-plugins" }),
            "--vm-slots=7",
        ),
        (
            "presets",
            json!({ "strict": { "isolation": "strict" } }),
            "handler: sandbox-strict",
        ),
        (
            "policy.namespaces",
            json!(["team-*"]),
            r#""namespaces" = ["team-*"]"#,
        ),
        (
            "policy.privileges",
            json!(["ci"]),
            r#""privileges" = ["ci"]"#,
        ),
        (
            "policy.annotations",
            json!({ "caisson.dev/devices=fuse": ["ci", "build-*"] }),
            r#""caisson.dev/devices=fuse" = ["ci","build-*"]"#,
        ),
        (
            "policy.skills",
            json!({ "docx@1.4": ["team-a"] }),
            r#""docx@1.4" = ["team-a"]"#,
        ),
        (
            "policy.sources",
            json!({ "company": ["team-a"] }),
            r#""company" = ["team-a"]"#,
        ),
        ("claims.enabled", json!(true), "- --claims"),
        (
            "claims.secretNamespaces",
            json!(["team-a"]),
            "namespace: team-a",
        ),
        ("podEvents.enabled", json!(true), "- --pod-events"),
        ("nodeRestriction.enabled", json!(false), ""),
        ("admission.enabled", json!(true), "name: caisson-pods"),
        ("drain.enabled", json!(false), ""),
        ("drain.timeoutSeconds", json!(55), "--timeout=55"),
        ("test.image", json!("r.example/t:1"), "image: r.example/t:1"),
        (
            "test.resources",
            json!({ "limits": { "memory": "99Mi" } }),
            "memory: 99Mi",
        ),
    ];
    values.extend(monitoring::values());
    values
}

/// Returns values that the chart does not allow, and helm's error for each.
fn refused() -> Vec<(&'static str, Value)> {
    vec![
        ("image.digest", json!("sha256:short")),
        ("image.pullPolicy", json!("Sometimes")),
        ("image.repository", json!("")),
        ("runtimeClass.name", json!("Sand box")),
        ("runtimeClass.overhead", json!({ "memory": "much" })),
        ("runtimeClass.tolerations", json!([{ "operator": "Is" }])),
        ("node.updateStrategy", json!({ "type": "Recreate" })),
        ("node.podLabels", json!({ "n": 1 })),
        ("install.prefix", json!("opt/caisson")),
        ("install.containerdConfig", json!("etc/c.toml")),
        ("install.restart", json!("docker")),
        ("install.selfTest", json!("yes")),
        ("install.retrySeconds", json!(0)),
        ("config", json!({ "vm": { "default_cpus": 2 } })),
        ("pool.size", json!(-1)),
        ("node.oneshot.enabled", json!("yes")),
        ("node.oneshot.timeoutSeconds", json!(0)),
        ("capacity.enabled", json!("yes")),
        ("capacity.vmSlots", json!(0)),
        ("capacity.devicePluginDir", json!("device-plugins")),
        ("policy.annotations", json!({ "caisson.dev/nosuch": ["*"] })),
        ("policy.skills", json!({ "docx": "team-a" })),
        ("policy.sources", json!({ "company": ["Team A"] })),
        ("presets", json!({ "strict": { "isolation": "loose" } })),
        ("policy.privileges", json!("ci")),
        ("claims.enabled", json!("yes")),
        ("podEvents.enabled", json!("yes")),
        ("nodeRestriction.enabled", json!("no")),
        ("admission.enabled", json!("yes")),
        ("metrics.port", json!(80)),
        ("metrics.tlsSecret", json!("A Secret")),
        ("metrics.serviceMonitor.interval", json!("often")),
        ("metrics.dashboard.labels", json!({ "n": 1 })),
        ("drain.timeoutSeconds", json!("10m")),
    ]
}

#[test]
fn chart_passes_helms_lint_with_each_overlay() -> Result<()> {
    for overlay in OVERLAYS {
        let mut helm = helm("lint")?;
        helm.arg("--strict");
        run(with(&mut helm, overlay, None)?).with_context(|| format!("{overlay:?}"))?;
    }
    Ok(())
}

#[test]
fn objects_fit_the_schemas_with_each_overlay() -> Result<()> {
    for overlay in OVERLAYS {
        let text = render(overlay, None)?;
        check(&text).with_context(|| format!("{overlay:?}"))?;
    }
    Ok(())
}

#[test]
fn every_value_changes_what_is_rendered_and_fits_the_schemas() -> Result<()> {
    let default = render(None, None)?;
    for (path, value, expected) in values() {
        let values = monitoring::turned_on(at(path, &value));
        let text = render(None, Some(values))?;
        ensure!(text != default, "{path} changes nothing");
        ensure!(
            text.contains(expected),
            "{path}: no {expected:?} in\n{text}"
        );
        check(&text).with_context(|| path.to_owned())?;
    }
    Ok(())
}

#[test]
fn memory_of_the_pool_is_asked_for_and_allowed() -> Result<()> {
    let values = json!({ "pool": { "size": 2, "memoryMiB": 100 } });
    let text = render(None, Some(values.clone()))?;
    for memory in ["memory: 232Mi", "memory: 1224Mi"] {
        ensure!(text.contains(memory), "no {memory} in\n{text}");
    }
    let mut unknown = values;
    unknown["node"] = json!({ "resources": { "requests": { "memory": "1G" } } });
    let error = refuse(unknown)?;
    ensure!(error.contains("say it in Mi or Gi"), "{error}");
    Ok(())
}

#[test]
fn every_value_of_the_file_is_exercised() -> Result<()> {
    let known: BTreeSet<_> = values()
        .iter()
        .map(|(path, ..)| (*path).to_owned())
        .collect();
    let mut found = BTreeSet::new();
    leaves(&default_values()?, "", &known, &mut found);
    assert_eq!(found, known);
    Ok(())
}

#[test]
fn values_of_the_overlays_are_known_to_the_file() -> Result<()> {
    let known: BTreeSet<_> = values()
        .iter()
        .map(|(path, ..)| (*path).to_owned())
        .collect();
    for overlay in OVERLAYS.into_iter().flatten() {
        let mut found = BTreeSet::new();
        leaves(
            &yaml(&fs::read_to_string(chart().join(overlay))?)?[0],
            "",
            &known,
            &mut found,
        );
        assert!(found.is_subset(&known), "{overlay}: {found:?}");
    }
    Ok(())
}

#[test]
fn every_key_of_the_values_has_a_comment() -> Result<()> {
    let text = fs::read_to_string(chart().join("values.yaml"))?;
    for (path, ..) in values() {
        let (depth, key) = (path.matches('.').count(), path.rsplit('.').next());
        let begin = format!("{}{}:", "  ".repeat(depth), key.unwrap_or_default());
        let lines: Vec<_> = text.lines().collect();
        let commented = lines
            .windows(2)
            .any(|two| two[1].starts_with(&begin) && two[0].trim_start().starts_with('#'));
        assert!(commented, "{path} has no comment above it");
    }
    Ok(())
}

#[test]
fn value_that_is_not_known_is_refused_at_each_place() -> Result<()> {
    let mut places: BTreeSet<_> = values()
        .iter()
        .filter_map(|(path, ..)| Some(path.rsplit_once('.')?.0))
        .collect();
    places.insert("");
    for place in places {
        let path = format!("{place}.nosuch");
        let error = refuse(at(path.trim_start_matches('.'), &json!(1)))?;
        let says = "additional properties 'nosuch' not allowed";
        ensure!(error.contains(says), "{path}: {error}");
    }
    Ok(())
}

#[test]
fn value_that_cannot_be_is_refused_by_its_name() -> Result<()> {
    for (path, value) in refused() {
        let error = refuse(at(path, &value))?;
        let pointer = format!("/{}", path.replace('.', "/"));
        ensure!(error.contains(&pointer), "{path}: {error}");
    }
    Ok(())
}

#[test]
fn schemas_find_a_field_that_is_not_known() -> Result<()> {
    for (from, to) in [
        ("hostPID: true", "hostPid: true"),
        ("privileged: true", "privileged: \"true\""),
        ("podFixed:", "podfixed:"),
        ("resourceNames:", "names:"),
    ] {
        let text = render(None, None)?;
        ensure!(text.contains(from), "no {from}");
        ensure!(check(&text.replace(from, to)).is_err(), "{to} is let pass");
    }
    Ok(())
}

#[test]
fn rights_are_these_and_no_more() -> Result<()> {
    let expected = [
        "ClusterRole caisson-drain: list nodes ",
        "ClusterRole caisson-test: get nodes ",
        "ClusterRole caisson: get,patch nodes ",
        "ClusterRole caisson: patch nodes/status ",
        "Role caisson-drain: patch daemonsets caisson",
        "Role caisson-events: create events ",
        "Role caisson: watch daemonsets caisson",
    ];
    let mut expected: BTreeSet<_> = expected.map(str::to_owned).into();
    assert_eq!(rights(None)?, expected);
    let values = json!({ "claims": { "enabled": true, "secretNamespaces": ["team-a"] } });
    let of_claims = [
        "ClusterRole caisson-claims: create events ",
        "ClusterRole caisson-claims: patch pods/status ",
        "ClusterRole caisson-claims: watch pods ",
        "Role caisson-claims: get secrets ",
    ];
    let mut with_claims = expected.clone();
    with_claims.extend(of_claims.map(str::to_owned));
    assert_eq!(rights(Some(values))?, with_claims);
    let values = json!({ "podEvents": { "enabled": true } });
    let of_events = [
        "ClusterRole caisson-pod-events: create events ",
        "ClusterRole caisson-pod-events: get pods ",
    ];
    expected.extend(of_events.map(str::to_owned));
    assert_eq!(rights(Some(values))?, expected);
    Ok(())
}

/// Returns the rights that the chart gives with these values.
fn rights(values: Option<Value>) -> Result<BTreeSet<String>> {
    let mut rights = BTreeSet::new();
    for object in yaml(&render(None, values)?)? {
        for rule in object["rules"].as_array().into_iter().flatten() {
            let words = |key: &str| -> Vec<_> {
                let all = rule[key].as_array().into_iter().flatten();
                all.filter_map(Value::as_str).map(str::to_owned).collect()
            };
            rights.insert(format!(
                "{} {}: {} {} {}",
                object["kind"].as_str().unwrap_or_default(),
                object["metadata"]["name"].as_str().unwrap_or_default(),
                words("verbs").join(","),
                words("resources").join(","),
                words("resourceNames").join(","),
            ));
        }
    }
    Ok(rights)
}

#[test]
fn daemonset_does_not_select_the_other_pods() -> Result<()> {
    let objects = yaml(&render(None, None)?)?;
    let of = |kind: &str| objects.iter().find(|object| object["kind"] == kind);
    let daemonset = of("DaemonSet").context("no DaemonSet")?;
    let selector = daemonset["spec"]["selector"]["matchLabels"].as_object();
    let selector = selector.context("no selector")?;
    let selects = |labels: &Value| selector.iter().all(|(key, value)| &labels[key] == value);
    assert!(selects(
        &daemonset["spec"]["template"]["metadata"]["labels"]
    ));
    assert!(!selects(
        &of("Job").context("no Job")?["spec"]["template"]["metadata"]["labels"]
    ));
    assert!(!selects(
        &of("Pod").context("no Pod")?["metadata"]["labels"]
    ));
    Ok(())
}

#[test]
fn removal_and_test_are_hooks_with_all_that_they_need() -> Result<()> {
    let objects = yaml(&render(None, None)?)?;
    for (suffix, hook) in [("-drain", "pre-delete"), ("-test", "test")] {
        for object in &objects {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            if name.ends_with(suffix) {
                let found = &object["metadata"]["annotations"]["helm.sh/hook"];
                assert_eq!(found, hook, "{} {name}", object["kind"]);
            }
        }
    }
    Ok(())
}

#[test]
fn settings_are_the_same_text_for_the_node() -> Result<()> {
    let config = "# a comment\n[vm]\n  default_cpus = 2\n\n[log]\nlevel = \"warn\"\n";
    let text = render(None, Some(json!({ "config": config })))?;
    let objects = yaml(&text)?;
    let map = objects.iter().find(|object| object["kind"] == "ConfigMap");
    let settings = map.context("no ConfigMap")?["data"]["settings.toml"].as_str();
    let settings = settings.unwrap_or_default();
    assert!(settings.starts_with(config), "{settings}");
    let rest = &settings[config.len()..];
    assert!(rest.trim_start().starts_with("[policy]"), "{rest}");
    Ok(())
}

#[test]
fn versions_of_chart_and_programs_are_one() -> Result<()> {
    let chart = &yaml(&fs::read_to_string(chart().join("Chart.yaml"))?)?[0];
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    Ok(())
}

/// Collects the paths of the keys of `values` that are known or have nothing below them.
fn leaves(values: &Value, path: &str, known: &BTreeSet<String>, found: &mut BTreeSet<String>) {
    match values.as_object() {
        Some(object) if !known.contains(path) && !object.is_empty() => {
            for (key, value) in object {
                let below = format!("{path}.{key}");
                leaves(value, below.trim_start_matches('.'), known, found);
            }
        }
        _ => {
            found.insert(path.to_owned());
        }
    }
}
