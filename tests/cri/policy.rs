//! Tests `[policy]` of the node's configuration for pods, whose namespace is the Kubernetes
//! namespace. Only with Caisson.

use std::{fs, sync::OnceLock};

use anyhow::{Context, Result};
use caisson_tests::{
    command,
    cri::{CriNode, Pod},
    node::{caisson, LIMIT},
    skill, Node,
};
use serde_json::json;

const SKILLS: &str = "caisson.dev/skills";
const DEVICES: &str = "caisson.dev/devices";
const SCRATCH: &str = "caisson.dev/scratch";

#[test]
fn device_is_refused_in_a_namespace_and_given_in_another() -> Result<()> {
    let pod = |namespace| node().pod().namespace(namespace).annotation(DEVICES, "tun");
    let error = refused(pod("team-b").start())?;
    for text in [
        "annotation caisson.dev/devices: tun is not allowed in the namespace team-b",
        "\"caisson.dev/devices=tun\" in [policy.annotations]",
    ] {
        assert!(error.contains(text), "{error}");
    }
    let pod = pod("team-a").start()?;
    let container = pod.container("busybox");
    let container = container.sh("test -c /dev/net/tun && echo there");
    assert_eq!(container.run()?.ok()?.line(), "there");
    Ok(())
}

#[test]
fn skill_of_another_namespace_is_refused_and_the_pod_goes_on() -> Result<()> {
    let digest = packed("internal")?;
    let pod = node().pod().namespace("team-b").start()?;
    let reads = |pod: &Pod<'_>, wanted: &str| {
        let container = pod.container("busybox").annotation(SKILLS, wanted);
        let container = container.sh("cat /opt/skills/internal/SKILL.md");
        Ok::<_, anyhow::Error>(container.run()?.ok()?.line())
    };
    for wanted in ["internal@1", &digest] {
        let error = refused(reads(&pod, wanted))?;
        let text = format!("skill {wanted} is not allowed in the namespace team-b; \"internal\" in [policy.skills]");
        assert!(error.contains(&text), "{error}");
    }
    let after = pod.container("busybox").args(["echo", "goes on"]);
    assert_eq!(after.run()?.ok()?.line(), "goes on");
    let pod = node().pod().namespace("team-a").start()?;
    assert_eq!(reads(&pod, &digest)?, "# internal");
    Ok(())
}

#[test]
fn skill_that_was_fetched_stays_with_the_namespaces_of_its_source() -> Result<()> {
    packed("shelved")?;
    skill(&["push", "shelved@1", "shelf"])?;
    skill(&["remove", "shelved@1"])?;
    let reads = |namespace| {
        let pod = node().pod().namespace(namespace).start()?;
        let container = pod.container("busybox").annotation(SKILLS, "shelved@1");
        let container = container.sh("cat /opt/skills/shelved/SKILL.md");
        Ok::<_, anyhow::Error>(container.run()?.ok()?.line())
    };
    let error = refused(reads("team-b"))?;
    let text = "to fetch it from shelf is not allowed in the namespace team-b";
    assert!(error.contains(text), "{error}");
    assert_eq!(reads("team-a")?, "# shelved");
    // The skill is in the store now.
    let error = refused(reads("team-b"))?;
    for text in [
        "skill shelved@1 came from the source shelf, which is not allowed in the namespace team-b",
        "\"shelf\" in [policy.sources]",
    ] {
        assert!(error.contains(text), "{error}");
    }
    // What the operator fetches is available to all.
    skill(&["fetch", "shelved@1"])?;
    assert_eq!(reads("team-b")?, "# shelved");
    Ok(())
}

#[test]
fn disks_are_refused_in_a_namespace_and_given_in_another() -> Result<()> {
    let pod = |namespace| {
        node()
            .pod()
            .namespace(namespace)
            .annotation(SCRATCH, "disk")
    };
    let error = refused(pod("team-b").start())?;
    for text in [
        "annotation caisson.dev/scratch: is not allowed in the namespace team-b",
        "\"caisson.dev/scratch\" in [policy.annotations]",
    ] {
        assert!(error.contains(text), "{error}");
    }
    let pod = pod("team-a").start()?;
    let root = pod.container("busybox").sh("grep ' / ' /proc/mounts");
    let root = root.run()?.ok()?.line();
    assert!(root.contains("upperdir=/run/caisson/disks/"), "{root}");
    Ok(())
}

#[test]
fn operator_attaches_a_skill_whatever_the_policy_says() -> Result<()> {
    let digest = packed("attached")?;
    let pod = node().pod().namespace("team-b").start()?;
    let container = pod.container("busybox").args(["sleep", "1000"]).start()?;
    skill(&["attach", pod.id(), &digest])?;
    let line = "cat /opt/skills/attached/SKILL.md";
    assert_eq!(container.sh(line)?, "# attached");
    Ok(())
}

/// Returns the one node. Everything that is restricted is allowed for `team-a`.
fn node() -> &'static CriNode {
    static NODE: OnceLock<CriNode> = OnceLock::new();
    let mut first = false;
    let node = NODE.get_or_init(|| {
        first = true;
        let policy = json!({
            "annotations": {
                "caisson.dev/devices=tun": ["team-a"],
                "caisson.dev/scratch": ["team-a"],
            },
            "skills": { "internal": ["team-a"], "attached": [] },
            "sources": { "shelf": ["team-a"] },
        });
        CriNode::start_with(|config| config["policy"] = policy)
            .unwrap_or_else(|error| panic!("no test node: {error:#}"))
    });
    if first {
        Node::end_at_exit(node);
    }
    node
}

fn refused<T>(result: Result<T>) -> Result<String> {
    let error = result.err().context("it was not refused")?;
    // The CRI client prints a message in Rust's `Debug` format.
    Ok(format!("{error:#}").replace("\\\"", "\""))
}

fn skill(args: &[&str]) -> Result<String> {
    let mut command = caisson(node())?;
    command.arg("skill").args(args);
    Ok(command::run(&mut command, None, LIMIT)?.ok()?.line())
}

/// Packs a skill that contains its name. Returns the digest.
fn packed(name: &str) -> Result<String> {
    let tree = skill::tree(node(), name)?;
    fs::write(tree.join("SKILL.md"), format!("# {name}"))?;
    skill::pack_with(node(), name, &tree, &["--version", "1"])
}
