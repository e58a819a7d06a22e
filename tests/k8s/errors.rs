//! Tests what `kubectl describe pod` shows for a pod that can't run.

use std::fs;

use anyhow::Result;
use caisson_tests::{
    command,
    k8s::{Namespace, TestCluster, LIMIT},
};
use serde_json::json;

const SKILLS: &str = "caisson.dev/skills";
const HOME: &str = "caisson.dev/home";

#[test]
fn skill_that_is_not_there_is_named() -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    let pod = namespace
        .pod("worker")
        .annotation(SKILLS, "compiler@1.2")
        .sh("sleep 1000")
        .create()?;
    pod.described(&["compiler@1.2", "caisson skill"])?;
    Ok(())
}

#[test]
fn home_in_use_names_the_pod_that_has_it() -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    let first = namespace
        .pod("first")
        .annotation(HOME, "persistent/work")
        .sh("sleep 1000")
        .start()?;
    let second = namespace
        .pod("second")
        .annotation(HOME, "persistent/work")
        .sh("sleep 1000")
        .create()?;
    let expected = format!("home {0}/work is in use by {0}/first", namespace.name());
    second.described(&[&expected])?;
    // The kubelet tries again, and then the home is free.
    first.delete()?;
    second.wait("condition=Ready")
}

#[test]
fn home_over_the_limit_is_named_with_the_limit() -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    let pod = namespace
        .pod("greedy")
        .annotation(HOME, "persistent/large")
        .annotation("caisson.dev/home-size", "51Gi")
        .sh("sleep 1000")
        .create()?;
    let home = format!("the home {}/large of 52224 MiB", namespace.name());
    pod.described(&[&home, "51200 MiB", "max_size_mib of [homes]"])?;
    Ok(())
}

#[test]
fn annotation_that_is_not_allowed_names_namespace_and_configuration() -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    let pod = namespace
        .pod("tunnels")
        .annotation("caisson.dev/devices", "tun")
        .sh("sleep 1000")
        .create()?;
    let refused = format!(
        "annotation caisson.dev/devices: tun is not allowed in the namespace {}",
        namespace.name()
    );
    let key = "\"caisson.dev/devices=tun\" in [policy.annotations]";
    pod.described(&[&refused, key])?;
    Ok(())
}

#[test]
fn skill_of_another_namespace_names_namespace_and_configuration() -> Result<()> {
    let cluster = TestCluster::shared();
    let (owner, other) = (cluster.namespace()?, cluster.namespace()?);
    let keep = format!("[policy.skills]\ninternal = [\"{}\"]", owner.name());
    let _kept = cluster.settings("internal", &keep)?;
    let tree = tempfile::tempdir()?;
    fs::write(tree.path().join("SKILL.md"), "# internal\n")?;
    let mut pack = cluster.caisson();
    pack.args(["skill", "pack", "--name", "internal", "--version", "1"]);
    command::run(pack.arg(tree.path()), None, LIMIT)?.ok()?;
    let pod = |namespace: &Namespace<'_>| {
        let pod = namespace.pod("reader").annotation(SKILLS, "internal@1");
        pod.sh("cat /opt/skills/internal/SKILL.md; sleep 1000")
            .create()
            .map(|pod| pod.name().to_owned())
    };
    let refused = pod(&other)?;
    let allowed = pod(&owner)?;
    let text = format!(
        "skill internal@1 is not allowed in the namespace {}",
        other.name()
    );
    let key = "\"internal\" in [policy.skills]";
    other.existing(&refused).described(&[&text, key])?;
    owner.existing(&allowed).wait("condition=Ready")?;
    // The text appears a moment after the start.
    command::poll("the skill's text", LIMIT, || {
        let text = owner.existing(&allowed).logs().ok()?;
        (text.trim() == "# internal").then_some(())
    })
}

#[test]
fn host_network_is_refused_with_a_reason() -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    let pod = namespace.pod("host").sh("sleep 1000");
    let pod = pod
        .spec(|spec| spec["hostNetwork"] = true.into())
        .create()?;
    pod.described(&["ask for no hostNetwork"])?;
    Ok(())
}

#[test]
fn limit_above_what_a_vm_can_have_is_named() -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    let resources = json!({ "requests": { "memory": "16Mi" }, "limits": { "memory": "9Ti" } });
    let pod = namespace.pod("large").sh("sleep 1000");
    let pod = pod.main(|main| main["resources"] = resources).create()?;
    pod.described(&[
        "did not start on a node with",
        "lower the containers' memory limits",
        "qemu",
    ])?;
    Ok(())
}

#[test]
fn request_above_what_the_node_has_is_not_scheduled() -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    let resources = json!({ "requests": { "memory": "9Ti" } });
    let pod = namespace.pod("hungry").sh("sleep 1000");
    let pod = pod.main(|main| main["resources"] = resources).create()?;
    pod.described(&["FailedScheduling", "Insufficient memory"])?;
    Ok(())
}
