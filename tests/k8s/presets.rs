//! Tests the chart's presets on the node: each has a class whose pods have its settings.

use anyhow::Result;
use caisson_local::caisson;
use caisson_tests::k8s::Namespace;

use crate::{cluster, node};

const PRESETS: &str = r#"{
    "small": { "components": "minimal", "settings": { "vm": { "limit_cpus": 1 } } },
    "strict": { "isolation": "strict" }
}"#;

#[test]
fn pods_of_a_presets_class_have_its_settings_and_no_annotation_changes_them() -> Result<()> {
    let (_turn, cluster) = cluster()?;
    caisson::upgrade_json(cluster.cluster(), &[("presets", PRESETS)])?;
    cluster.cluster().kubectl(&caisson::ROLLOUT)?;
    let namespace = cluster.namespace()?;
    let pod = |name: &str, class: &str| namespace.pod(name).class(class).sh("sleep 1000");
    let small = pod("small", "sandbox-small").start()?;
    assert_eq!(small.exec("nproc")?, "1");
    let widened = pod("widened", "sandbox-small").annotation("caisson.dev/home", "ephemeral");
    let text = format!(
        "with the preset small: annotation caisson.dev/home: is not allowed in the namespace {}",
        namespace.name()
    );
    widened.create()?.described(&[&text])?;
    let strict = pod("strict", "sandbox-strict").create()?;
    match by_kvm(&namespace)? {
        true => strict.wait("condition=Ready"),
        // No node can run it.
        false => strict
            .described(&["FailedScheduling", "affinity/selector"])
            .map(drop),
    }
}

/// Whether the node's VMs run by KVM.
fn by_kvm(namespace: &Namespace<'_>) -> Result<bool> {
    let node = node(namespace.cluster())?;
    Ok(node["metadata"]["labels"]["caisson.dev/accelerator"] == "kvm")
}
