//! Tests what the chart has for Prometheus and Grafana. Needs Debian's `prometheus` for promtool.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{ensure, Context, Result};
use caisson_tests::paths;
use serde_json::{json, Value};

use super::render::{at, chart, check, render, tool, yaml};

/// Turns on what is monitored by, in values that say something of it.
pub fn turned_on(mut values: Value) -> Value {
    if let Some(metrics) = values.get_mut("metrics").and_then(Value::as_object_mut) {
        metrics.entry("enabled").or_insert(json!(true));
        for part in ["serviceMonitor", "rules", "dashboard"] {
            if let Some(part) = metrics.get_mut(part).and_then(Value::as_object_mut) {
                part.entry("enabled").or_insert(json!(true));
            }
        }
    }
    values
}

/// Returns what [`super::values`] has of monitoring.
pub fn values() -> Vec<(&'static str, Value, &'static str)> {
    vec![
        ("metrics.enabled", json!(true), "--metrics-port=8443"),
        ("metrics.port", json!(9999), "--metrics-port=9999"),
        ("metrics.tlsSecret", json!("mine"), "secretName: mine"),
        (
            "metrics.serviceMonitor.enabled",
            json!(true),
            "kind: ServiceMonitor",
        ),
        (
            "metrics.serviceMonitor.labels",
            json!({ "release": "prom" }),
            "release: prom",
        ),
        (
            "metrics.serviceMonitor.interval",
            json!("17s"),
            "interval: 17s",
        ),
        ("metrics.rules.enabled", json!(true), "kind: PrometheusRule"),
        (
            "metrics.rules.labels",
            json!({ "role": "alerts" }),
            "role: alerts",
        ),
        ("metrics.dashboard.enabled", json!(true), "caisson.json: "),
        (
            "metrics.dashboard.labels",
            json!({ "grafana_dashboard": "yes" }),
            "grafana_dashboard: \"yes\"",
        ),
        (
            "metrics.dashboard.annotations",
            json!({ "grafana_folder": "Nodes" }),
            "grafana_folder: Nodes",
        ),
    ]
}

fn all() -> Result<Vec<Value>> {
    let everything = json!({ "metrics": {
        "tlsSecret": "mine", "serviceMonitor": {}, "rules": {}, "dashboard": {},
    }});
    let text = render(None, Some(turned_on(everything)))?;
    check(&text)?;
    yaml(&text)
}

fn of(kind: &str) -> Result<Value> {
    let mut objects = all()?.into_iter();
    let found = objects.find(|object| object["kind"] == kind);
    found.with_context(|| format!("no {kind}"))
}

/// Runs a program with this input, which it has to take.
fn accepts(program: &mut Command, input: &str) -> Result<()> {
    let mut child = program
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{program:?}: packaging/setup test"))?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    ensure!(output.status.success(), "{program:?}: {said}");
    Ok(())
}

fn rules() -> Result<String> {
    Ok(of("PrometheusRule")?["spec"].to_string())
}

fn check_rules(text: &str) -> Result<()> {
    accepts(
        Command::new("promtool").args(["check", "rules", "/dev/stdin"]),
        text,
    )
}

fn dashboard() -> Result<String> {
    let objects = all()?;
    let mut maps = objects
        .iter()
        .filter(|object| object["kind"] == "ConfigMap");
    let text = maps.find_map(|map| map["data"]["caisson.json"].as_str());
    Ok(text.context("no dashboard")?.to_owned())
}

fn check_dashboard(text: &str) -> Result<()> {
    accepts(
        &mut Command::new(tool("chart/bin/grafana-dashboard")?),
        text,
    )
}

#[test]
fn rules_of_the_chart_pass_promtool() -> Result<()> {
    check_rules(&rules()?)
}

#[test]
fn promtool_finds_a_rule_that_cannot_be_evaluated() -> Result<()> {
    let broken = rules()?.replace(
        "caisson_agent_node_ready == 0",
        "caisson_agent_node_ready = 0",
    );
    assert!(check_rules(&broken).is_err());
    Ok(())
}

#[test]
fn alerts_fire_for_what_they_are_for_and_for_nothing_else() -> Result<()> {
    let dir = tempfile::tempdir()?;
    fs::write(dir.path().join("rules.yaml"), rules()?)?;
    let tests = paths::workspace().join("tests/api/chart/alerts.yaml");
    fs::copy(tests, dir.path().join("alerts.yaml"))?;
    let mut promtool = Command::new("promtool");
    promtool.args(["test", "rules", "alerts.yaml"]);
    accepts(promtool.current_dir(dir.path()), "")
}

#[test]
fn dashboard_fits_grafanas_schema() -> Result<()> {
    check_dashboard(&dashboard()?)
}

#[test]
fn grafanas_schema_has_no_other_fields() -> Result<()> {
    let broken = dashboard()?.replace("\"schemaVersion\"", "\"schemaversion\"");
    assert!(check_dashboard(&broken).is_err());
    Ok(())
}

#[test]
fn every_alert_has_a_severity_a_summary_and_a_description() -> Result<()> {
    let rule = of("PrometheusRule")?;
    let groups = rule["spec"]["groups"].as_array().context("no groups")?;
    for alert in groups
        .iter()
        .flat_map(|group| group["rules"].as_array())
        .flatten()
    {
        let said = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
        assert!(said(&alert["labels"]["severity"]), "{alert}");
        for text in ["summary", "description"] {
            assert!(said(&alert["annotations"][text]), "{alert}");
        }
    }
    Ok(())
}

#[test]
fn agent_asks_who_may_read_metrics_only_where_they_are_enabled() -> Result<()> {
    let reviews = |text: &str| text.contains("tokenreviews");
    assert!(!reviews(&render(None, None)?));
    let on = render(None, Some(at("metrics.enabled", &json!(true))))?;
    assert!(reviews(&on));
    Ok(())
}

#[test]
fn queries_of_rules_and_dashboard_are_of_metrics_that_there_are() -> Result<()> {
    let known = fs::read_to_string(paths::workspace().join("docs/monitoring.md"))?;
    let texts = [
        fs::read_to_string(chart().join("monitoring/rules.yaml"))?,
        fs::read_to_string(chart().join("monitoring/dashboard.json"))?,
    ];
    let mut unknown = BTreeSet::new();
    for text in &texts {
        let words = text.split(|c: char| !(c.is_ascii_lowercase() || c == '_'));
        for word in words.filter(|word| word.starts_with("caisson_")) {
            let parts = ["_bucket", "_sum", "_count"];
            let metric = parts.iter().find_map(|part| word.strip_suffix(part));
            let metric = metric.unwrap_or(word);
            if !known.contains(&format!("`{metric}`")) {
                unknown.insert(metric.to_owned());
            }
        }
    }
    assert!(unknown.is_empty(), "not in docs/monitoring.md: {unknown:?}");
    Ok(())
}
