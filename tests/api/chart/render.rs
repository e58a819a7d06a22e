//! Renders the chart with helm and checks the result.

use std::{collections::BTreeMap, fs, path::PathBuf, process::Command, sync::OnceLock};

use anyhow::{ensure, Context, Result};
use caisson_tests::paths;
use jsonschema::Validator;
use serde_json::{json, Value};
use tempfile::NamedTempFile;

/// The Kubernetes version of the schemas, for which helm renders.
const KUBERNETES: &str = "1.33.4";

/// Returns values with one value set, at a path like `a.b`.
pub fn at(path: &str, value: &Value) -> Value {
    path.rsplit('.')
        .fold(value.clone(), |below, key| json!({ key: below }))
}

pub fn chart() -> PathBuf {
    paths::workspace().join("deploy/chart")
}

pub fn default_values() -> Result<Value> {
    let values = yaml(&fs::read_to_string(chart().join("values.yaml"))?)?;
    values.into_iter().next().context("no values")
}

/// Returns a file of `cargo xtask test-tools --chart`.
pub fn tool(name: &str) -> Result<PathBuf> {
    let path = paths::target().join("cache/tools").join(name);
    ensure!(
        path.exists(),
        "no {}: cargo xtask test-tools --chart",
        path.display()
    );
    Ok(path)
}

/// Returns helm with a subcommand. It reads no configuration of this machine.
pub fn helm(subcommand: &str) -> Result<Command> {
    let mut helm = Command::new(tool("kubernetes/bin/helm")?);
    helm.arg(subcommand)
        .args([
            "--namespace",
            "caisson-system",
            "--kube-version",
            KUBERNETES,
        ])
        .env("HELM_CONFIG_HOME", "/nonexistent")
        .env("KUBECONFIG", "/nonexistent");
    Ok(helm)
}

/// Adds the values and the chart to a helm command.
pub fn with<'h>(
    helm: &'h mut Command,
    overlay: Option<&str>,
    values: Option<&NamedTempFile>,
) -> Result<&'h mut Command> {
    if let Some(overlay) = overlay {
        helm.arg("--values").arg(chart().join(overlay));
    }
    if let Some(values) = values {
        helm.arg("--values").arg(values.path());
    }
    Ok(helm.arg(chart()))
}

pub fn run(helm: &mut Command) -> Result<String> {
    let output = helm.output().context("start helm")?;
    ensure!(
        output.status.success(),
        "helm: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Writes a file of values. JSON is valid YAML.
pub fn values_file(values: &Value) -> Result<NamedTempFile> {
    let file = NamedTempFile::new()?;
    fs::write(&file, values.to_string())?;
    Ok(file)
}

/// Renders the chart with these values.
pub fn render(overlay: Option<&str>, values: Option<Value>) -> Result<String> {
    let mut helm = helm("template")?;
    helm.arg("caisson");
    let file = values.as_ref().map(values_file).transpose()?;
    run(with(&mut helm, overlay, file.as_ref())?)
}

/// Returns helm's error for values that it must refuse.
pub fn refuse(values: Value) -> Result<String> {
    let shown = values.to_string();
    match render(None, Some(values)) {
        Ok(_) => anyhow::bail!("{shown} is not refused"),
        Err(error) => Ok(error.to_string()),
    }
}

/// Returns the documents of a YAML text that are not empty.
pub fn yaml(text: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).context("understand YAML")?;
    Ok(documents
        .into_iter()
        .filter(|document| !document.is_null())
        .collect())
}

/// Checks that every object of the text is known to the API and has only fields that the API has.
pub fn check(text: &str) -> Result<()> {
    let objects = yaml(text)?;
    ensure!(objects.len() > 5, "{} objects", objects.len());
    for object in objects {
        let kind = format!(
            "{} {}",
            object["apiVersion"].as_str().unwrap_or_default(),
            object["kind"].as_str().unwrap_or_default()
        );
        let name = &object["metadata"]["name"];
        let validator = validators()?.get(&kind);
        let validator = validator.with_context(|| format!("the API has no {kind}"))?;
        let errors: Vec<_> = validator
            .iter_errors(&object)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        ensure!(errors.is_empty(), "{kind} {name}: {}", errors.join("\n"));
    }
    Ok(())
}

/// Returns the validators by `APIVERSION KIND`, for the kinds that the chart has.
fn validators() -> Result<&'static BTreeMap<String, Validator>> {
    static VALIDATORS: OnceLock<Result<BTreeMap<String, Validator>, String>> = OnceLock::new();
    let made = VALIDATORS.get_or_init(|| make_validators().map_err(|error| format!("{error:#}")));
    made.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
}

fn make_validators() -> Result<BTreeMap<String, Validator>> {
    let api: Value = serde_json::from_slice(&fs::read(tool("kubernetes/swagger.json")?)?)?;
    let mut definitions = api["definitions"].clone();
    let all = definitions.as_object_mut().context("no definitions")?;
    let mut kinds = BTreeMap::new();
    for (name, definition) in all.iter_mut() {
        // Strict: only described fields are allowed. A definition without properties stays open,
        // for example what a webhook gets.
        if definition["properties"].is_object() && definition["additionalProperties"].is_null() {
            definition["additionalProperties"] = json!(false);
        }
        for kind in definition["x-kubernetes-group-version-kind"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let text = |key: &str| kind[key].as_str().unwrap_or_default();
            let group = text("group");
            let version = if group.is_empty() {
                text("version").to_owned()
            } else {
                format!("{group}/{}", text("version"))
            };
            kinds.insert(format!("{version} {}", text("kind")), name.clone());
        }
    }
    // The description has these two as strings, but the API also takes numbers (their
    // UnmarshalJSON).
    for name in [
        "io.k8s.apimachinery.pkg.api.resource.Quantity",
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString",
    ] {
        let definition = all.get_mut(name).with_context(|| format!("no {name}"))?;
        definition["type"] = json!(["string", "number"]);
    }
    let wanted = [
        "admissionregistration.k8s.io/v1alpha1 MutatingAdmissionPolicy",
        "admissionregistration.k8s.io/v1alpha1 MutatingAdmissionPolicyBinding",
        "admissionregistration.k8s.io/v1 ValidatingAdmissionPolicy",
        "admissionregistration.k8s.io/v1 ValidatingAdmissionPolicyBinding",
        "apps/v1 DaemonSet",
        "batch/v1 Job",
        "node.k8s.io/v1 RuntimeClass",
        "rbac.authorization.k8s.io/v1 ClusterRole",
        "rbac.authorization.k8s.io/v1 ClusterRoleBinding",
        "rbac.authorization.k8s.io/v1 Role",
        "rbac.authorization.k8s.io/v1 RoleBinding",
        "v1 ConfigMap",
        "v1 Pod",
        "v1 Service",
        "v1 ServiceAccount",
    ];
    let mut validators = operators()?;
    for kind in wanted {
        let name = kinds.get(kind).with_context(|| format!("no {kind}"))?;
        let schema = json!({
            "$schema": "http://json-schema.org/draft-07/schema#",
            "$ref": format!("#/definitions/{name}"),
            "definitions": definitions,
        });
        let validator = jsonschema::validator_for(&schema).with_context(|| kind.to_owned())?;
        validators.insert(kind.to_owned(), validator);
    }
    Ok(validators)
}

/// Returns the validators of the Prometheus Operator's objects, by its CustomResourceDefinitions.
fn operators() -> Result<BTreeMap<String, Validator>> {
    let mut validators = BTreeMap::new();
    for file in ["servicemonitors.yaml", "prometheusrules.yaml"] {
        let text = fs::read_to_string(tool(&format!("chart/{file}"))?)?;
        let definition = yaml(&text)?.into_iter().next().context("no definition")?;
        let spec = &definition["spec"];
        let version = &spec["versions"][0];
        let mut schema = version["schema"]["openAPIV3Schema"].clone();
        schema["properties"]["metadata"] = json!({ "type": "object" });
        close(&mut schema);
        let validator = jsonschema::validator_for(&schema).with_context(|| file.to_owned())?;
        let words = [&spec["group"], &version["name"], &spec["names"]["kind"]];
        let [group, name, kind] = words.map(|word| word.as_str().unwrap_or_default());
        validators.insert(format!("{group}/{name} {kind}"), validator);
    }
    Ok(validators)
}

/// Allows only described fields, as the API server does with `--validate=strict`.
fn close(schema: &mut Value) {
    if schema["properties"].is_object() && schema["additionalProperties"].is_null() {
        schema["additionalProperties"] = json!(false);
    }
    match schema {
        Value::Object(object) => object.values_mut().for_each(close),
        Value::Array(array) => array.iter_mut().for_each(close),
        _ => {}
    }
}
