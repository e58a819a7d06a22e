//! Tests which extended resources the chart's RuntimeClasses have in their overhead.

use anyhow::{Context, Result};
use serde_json::{json, Value};

use crate::render::{check, helm, render, run, values_file, with, yaml};

const SLOT: &str = "caisson.dev/vm-slot";
const KVM: &str = "caisson.dev/kvm";

#[test]
fn classes_have_no_extended_resources_unless_they_are_asked_for() -> Result<()> {
    let text = render(
        None,
        Some(json!({ "presets": { "strict": { "isolation": "strict" } } })),
    )?;
    assert!(!text.contains(SLOT) && !text.contains(KVM), "{text}");
    assert!(!text.contains("device-plugins"), "{text}");
    Ok(())
}

#[test]
fn every_class_takes_a_slot_and_those_of_nodes_with_kvm_that_too() -> Result<()> {
    let values = json!({
        "capacity": { "enabled": true },
        "presets": {
            "strict": { "isolation": "strict", "overhead": { "memory": "999Mi" } },
            "chosen": { "nodeSelector": { "caisson.dev/accelerator": "kvm" } },
            "plain": {},
        },
    });
    let text = render(None, Some(values))?;
    check(&text)?;
    let takes = |name: &str| -> Result<_> {
        let overhead = overhead(&text, name)?;
        assert!(overhead["memory"].is_string(), "{name}: {overhead}");
        Ok((overhead[SLOT].clone(), overhead[KVM].clone()))
    };
    let both = (json!("1"), json!("1"));
    let slot = (json!("1"), Value::Null);
    assert_eq!(takes("sandbox")?, slot);
    assert_eq!(takes("sandbox-plain")?, slot);
    assert_eq!(takes("sandbox-strict")?, both);
    assert_eq!(takes("sandbox-chosen")?, both);
    Ok(())
}

#[test]
fn class_of_nodes_with_kvm_takes_kvm() -> Result<()> {
    let values = json!({ "capacity": { "enabled": true } });
    let text = render(Some("values-prod.yaml"), Some(values))?;
    assert_eq!(overhead(&text, "sandbox")?[KVM], "1");
    Ok(())
}

#[test]
fn nodes_pods_mount_the_kubelets_folder_of_device_plugins() -> Result<()> {
    let values = json!({ "capacity": { "enabled": true, "devicePluginDir": "/srv/plugins" } });
    let objects = yaml(&render(None, Some(values))?)?;
    let daemonset = objects.iter().find(|object| object["kind"] == "DaemonSet");
    let spec = &daemonset.context("no DaemonSet")?["spec"]["template"]["spec"];
    let named = |list: &Value| {
        let mut all = list.as_array().into_iter().flatten();
        all.find(|found| found["name"] == "device-plugins").cloned()
    };
    let volume = named(&spec["volumes"]).context("no volume")?;
    // The kubelet says so if there is no such folder.
    let expected = json!({ "path": "/srv/plugins", "type": "Directory" });
    assert_eq!(volume["hostPath"], expected);
    let mount = named(&spec["containers"][0]["volumeMounts"]).context("no mount")?;
    assert_eq!(mount["mountPath"], "/var/lib/kubelet/device-plugins");
    Ok(())
}

#[test]
fn capacity_on_an_older_cluster_is_refused_until_it_is_turned_off() -> Result<()> {
    let values = values_file(&json!({
        "capacity": { "enabled": true }, "nodeRestriction": { "enabled": false },
    }))?;
    let mut helm = helm("template")?;
    helm.args(["--kube-version", "1.25.9"]);
    let error = run(with(&mut helm, None, Some(&values))?).err();
    let error = format!("{:#}", error.context("rendered")?);
    assert!(error.contains("capacity.enabled=false"), "{error}");
    Ok(())
}

/// Returns the overhead of a RuntimeClass.
fn overhead(text: &str, name: &str) -> Result<Value> {
    let objects = yaml(text)?.into_iter();
    let mut classes = objects.filter(|object| object["kind"] == "RuntimeClass");
    let class = classes.find(|class| class["metadata"]["name"] == name);
    Ok(class.with_context(|| format!("no class {name}"))?["overhead"]["podFixed"].clone())
}
