//! Tests `[policy]` of the node's configuration for containers of `ctr`, whose namespace is
//! containerd's.

use std::fs;

use anyhow::Result;
use caisson_tests::{skill, Leftovers, Node, Output};
use serde_json::json;

const SKILLS: &str = "caisson.dev/skills";
const DEVICES: &str = "caisson.dev/devices";

#[test]
fn device_is_refused_by_key_namespace_and_what_would_allow_it() -> Result<()> {
    let node = Node::shared();
    let container = node.container("busybox").annotation(DEVICES, "fuse,tun");
    let id = container.id().to_owned();
    let refused = format!(
        "annotation caisson.dev/devices: tun is not allowed in the namespace {}; \
         \"caisson.dev/devices=tun\" in [policy.annotations]",
        node.tag()
    );
    assert_refused(&container.args(["true"]).run()?, &refused);
    let left = Leftovers::of(node, &id);
    assert!(left.is_empty(), "{left}");
    Ok(())
}

#[test]
fn annotation_for_one_container_is_refused_as_that_for_all() -> Result<()> {
    let node = Node::start_with(|config| {
        config["policy"]["annotations"]["caisson.dev/secret-fd"] = json!(["others"]);
    })?;
    let key = "caisson.dev/secret-fd.web";
    let container = node.container("busybox").annotation(key, "db/user=USER");
    let refused = format!(
        "annotation {key}: is not allowed in the namespace {}; \"caisson.dev/secret-fd\"",
        node.tag()
    );
    assert_refused(&container.args(["true"]).run()?, &refused);
    Ok(())
}

#[test]
fn skill_of_another_namespace_is_refused_by_name_and_by_digest() -> Result<()> {
    let node = Node::start_with(|config| {
        config["policy"]["skills"] = json!({ "internal-*": ["others"] });
    })?;
    let digest = packed(&node, "internal-docs")?;
    let refused = format!(
        "is not allowed in the namespace {}; \"internal-*\" in [policy.skills]",
        node.tag()
    );
    for wanted in ["internal-docs@1", &digest] {
        let container = node.container("busybox").annotation(SKILLS, wanted);
        let output = container.args(["true"]).run()?;
        assert_refused(&output, &format!("skill {wanted} {refused}"));
    }
    packed(&node, "public-docs")?;
    let container = node.container("busybox");
    let container = container.annotation(SKILLS, "public-docs@1");
    let output = container.args(["cat", "/opt/skills/public-docs/SKILL.md"]);
    assert_eq!(output.run()?.ok()?.line(), "# public-docs");
    Ok(())
}

#[test]
fn source_is_not_asked_for_a_namespace_that_is_not_named() -> Result<()> {
    let node = Node::start_with(|config| {
        config["policy"]["sources"] = json!({});
    })?;
    let container = node.container("busybox").annotation(SKILLS, "docx@1");
    let refused = format!(
        "skill docx@1: is not in the node's store, and to fetch it from shelf is not allowed in the namespace {}; \
         \"shelf\" in [policy.sources]",
        node.tag()
    );
    assert_refused(&container.args(["true"]).run()?, &refused);
    Ok(())
}

fn assert_refused(output: &Output, text: &str) {
    assert_ne!(output.code, 0);
    assert!(output.errors().contains(text), "{}", output.errors());
}

/// Packs a skill that contains its name. Returns the digest.
fn packed(node: &Node, name: &str) -> Result<String> {
    let tree = skill::tree(node, name)?;
    fs::write(tree.join("SKILL.md"), format!("# {name}"))?;
    skill::pack_with(node, name, &tree, &["--version", "1"])
}
