//! Tests the chart's presets: what a node makes of their settings, and their RuntimeClasses.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result};
use caisson_oci::{config::Accelerator, Egress, NodeConfig};
use caisson_tests::paths;
use serde_json::{json, Value};

use crate::render::{check, refuse, render, yaml};

const DEVICES: &str = "caisson.dev/devices";
const HOME: &str = "caisson.dev/home";
const SKILLS: &str = "caisson.dev/skills";

#[test]
fn isolation_of_a_preset_is_what_its_name_says() -> Result<()> {
    let presets = json!({
        "standard": { "isolation": "standard" },
        "strict": { "isolation": "strict" },
        "nested": { "isolation": "nested" },
    });
    let node = node(&render(None, Some(json!({ "presets": presets })))?)?;
    let standard = node.with_preset("standard")?;
    assert_eq!((&standard.vm, &standard.policy), (&node.vm, &node.policy));
    assert_eq!(standard.hypervisor, node.hypervisor);
    let strict = node.with_preset("strict")?;
    assert_eq!(strict.hypervisor.accelerator, Accelerator::Kvm);
    assert_eq!(strict.vm.limit_cpus, Some(2));
    assert_eq!(strict.vm.limit_memory_mib, Some(4096));
    assert!(!allows(&strict, DEVICES, "fuse"));
    assert_eq!(standard.network.egress, Egress::Open);
    assert_eq!(strict.network.egress, Egress::parse("deny")?);
    let nested = node.with_preset("nested")?;
    assert_eq!(nested.vm.default_memory_mib, 2048);
    assert!(allows(&nested, DEVICES, "fuse,tun"));
    Ok(())
}

#[test]
fn components_of_a_preset_are_what_their_name_says() -> Result<()> {
    let presets = json!({
        "minimal": { "components": "minimal" },
        "workspace": { "components": "workspace" },
        "batch": { "components": "batch" },
    });
    let values = json!({ "presets": presets, "pool": { "size": 2, "memoryMiB": 128 } });
    let node = node(&render(None, Some(values))?)?;
    let has = |preset: &str| -> Result<_> {
        let config = node.with_preset(preset)?;
        Ok((
            allows(&config, HOME, "ephemeral"),
            allows(&config, SKILLS, "docx@1"),
            config.pool.size,
        ))
    };
    assert_eq!(has("minimal")?, (false, false, 2));
    assert_eq!(has("workspace")?, (true, true, 2));
    assert_eq!(has("batch")?, (false, true, 0));
    Ok(())
}

#[test]
fn settings_of_a_preset_go_before_its_profiles_also_where_they_are_empty() -> Result<()> {
    let settings = json!({
        "vm": { "limit_memory_mib": 1_048_576 },
        "policy": { "privileges": [], "annotations": { DEVICES: [] } },
    });
    let preset = json!({ "isolation": "nested", "namespaces": ["team-*"], "settings": settings });
    let text = render(None, Some(json!({ "presets": { "own": preset } })))?;
    let own = node(&text)?.with_preset("own")?;
    assert_eq!(own.vm.limit_memory_mib, Some(1_048_576));
    assert_eq!(own.vm.default_memory_mib, 2048);
    assert!(!allows(&own, DEVICES, "fuse"));
    let policy = toml::Table::try_from(&own.policy)?;
    assert_eq!(policy["privileges"], toml::Value::Array(Vec::new()));
    assert_eq!(policy["namespaces"], toml::Value::from(vec!["team-*"]));
    Ok(())
}

#[test]
fn preset_has_a_class_of_its_own_with_its_handler() -> Result<()> {
    let presets = json!({
        "strict": { "isolation": "strict", "overhead": { "memory": "999Mi" } },
        "batch": { "components": "batch", "nodeSelector": { "pool": "batch" } },
    });
    let class = json!({ "name": "vm", "handler": "vms", "nodeSelector": { "pool": "all" } });
    let text = render(
        None,
        Some(json!({ "presets": presets, "runtimeClass": class })),
    )?;
    check(&text)?;
    let classes = classes(&text)?;
    let names: Vec<_> = classes.keys().map(String::as_str).collect();
    assert_eq!(names, ["vm", "vm-batch", "vm-strict"]);
    assert_eq!(classes["vm-strict"]["handler"], "vms-strict");
    let overhead = |name: &str| &classes[name]["overhead"]["podFixed"]["memory"];
    assert_eq!(
        (overhead("vm-strict"), overhead("vm-batch")),
        (&json!("999Mi"), &json!("256Mi"))
    );
    let nodes = |name: &str| classes[name]["scheduling"]["nodeSelector"].clone();
    let ready = "caisson.dev/ready";
    // A node without KVM would refuse the pods of a strict preset.
    let kvm = json!({ ready: "true", "caisson.dev/accelerator": "kvm", "pool": "all" });
    assert_eq!(nodes("vm-strict"), kvm);
    assert_eq!(nodes("vm-batch"), json!({ ready: "true", "pool": "batch" }));
    Ok(())
}

#[test]
fn preset_that_cannot_be_is_refused_by_its_name() -> Result<()> {
    for (preset, part) in [
        (json!({ "a b": {} }), "'a b' does not match pattern"),
        (
            json!({ "a": { "isolation": "loose" } }),
            "/presets/a/isolation",
        ),
        (
            json!({ "a": { "components": "all" } }),
            "/presets/a/components",
        ),
        (json!({ "a": { "nosuch": 1 } }), "/presets/a"),
        (
            json!({ "a": { "settings": { "state_dir": "/x" } } }),
            "/presets/a/settings",
        ),
        (
            json!({ "a": { "settings": { "pool": { "size": 2 } } } }),
            "/presets/a/settings/pool/size",
        ),
    ] {
        let error = refuse(json!({ "presets": preset }))?;
        assert!(error.contains(part), "{error}");
    }
    let error = refuse(json!({ "config": "[presets.x.vm]\n" }))?;
    assert!(error.contains("goes into the value `presets`"), "{error}");
    Ok(())
}

/// The values are what `helm install --values` takes.
#[test]
fn helm_release_of_the_examples_is_rendered_and_fits_the_schemas() -> Result<()> {
    let path = paths::workspace().join("deploy/examples/flux/presets.yaml");
    let objects = yaml(&fs::read_to_string(path)?)?;
    let release = objects
        .iter()
        .find(|object| object["kind"] == "HelmRelease");
    let values = release.context("no HelmRelease")?["spec"]["values"].clone();
    let text = render(None, Some(values))?;
    check(&text)?;
    let node = node(&text)?;
    let presets: Vec<_> = node.presets.keys().map(String::as_str).collect();
    assert_eq!(presets, ["ci", "notebooks", "strict"]);
    let ci = node.with_preset("ci")?;
    assert!(allows(&ci, DEVICES, "fuse"));
    Ok(())
}

/// Returns the configuration of a node with the settings that are rendered.
fn node(text: &str) -> Result<NodeConfig> {
    let objects = yaml(text)?;
    let map = objects.iter().find(|object| object["kind"] == "ConfigMap");
    let settings = map.context("no ConfigMap")?["data"]["settings.toml"].as_str();
    let settings = settings.context("no settings")?.to_owned();
    Ok(NodeConfig::parse(&[("50-node.toml".to_owned(), settings)])?)
}

fn allows(config: &NodeConfig, key: &str, value: &str) -> bool {
    let given = [(key.to_owned(), value.to_owned())].into();
    config.policy.check_annotations(&given, "anybody").is_ok()
}

/// Returns the RuntimeClasses by name.
fn classes(text: &str) -> Result<BTreeMap<String, Value>> {
    let objects = yaml(text)?.into_iter();
    let classes = objects.filter(|object| object["kind"] == "RuntimeClass");
    classes
        .map(|class| {
            let name = class["metadata"]["name"].as_str().context("no name")?;
            Ok((name.to_owned(), class))
        })
        .collect()
}
