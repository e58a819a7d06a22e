//! Tests `caisson skill attach` and `detach`, which add skills to pods whose containers are already
//! running, and remove them again. Only with Caisson.

use std::fs;

use anyhow::{ensure, Result};
use caisson_tests::{
    command,
    cri::{Container, CriNode, Pod},
    node::{caisson, LIMIT},
    skill, Output, Runtime,
};

#[test]
fn skill_is_attached_to_every_container_of_the_pod_and_detached() -> Result<()> {
    let (pod, skill) = (pod()?, packed("everywhere")?);
    let (one, two) = (sleeping(&pod, "one")?, sleeping(&pod, "two")?);
    let disks = "grep -l '^s-' /sys/block/vd*/serial 2>/dev/null | wc -l";
    // The name is in kubectl's form.
    let name = format!("tests/{}", one.sh("hostname")?);
    let mut lines: Vec<_> = run(&["attach", &name, &skill])?
        .ok()?
        .text()
        .lines()
        .map(str::to_owned)
        .collect();
    lines.sort();
    assert_eq!(
        lines,
        ["one /opt/skills/everywhere", "two /opt/skills/everywhere"]
    );
    for container in [&one, &two] {
        let look =
            "cd /opt/skills/everywhere && cat SKILL.md; touch x 2>/dev/null || echo no write";
        assert_eq!(container.sh(look)?, "# everywhere\nno write");
    }
    assert_eq!(one.sh(disks)?, "1");
    let refused = run(&["remove", &skill])?;
    assert!(
        refused.errors().contains("in use by a running pod"),
        "{}",
        refused.errors()
    );

    run(&["detach", &name, &skill])?.ok()?;
    for container in [&one, &two] {
        assert_eq!(container.sh("ls /opt/skills")?, "");
    }
    assert_eq!(one.sh(disks)?, "0");
    run(&["remove", &skill])?.ok().map(drop)
}

#[test]
fn skill_is_attached_to_the_container_that_is_named() -> Result<()> {
    let (pod, skill) = (pod()?, packed("named")?);
    let (one, two) = (sleeping(&pod, "one")?, sleeping(&pod, "two")?);
    let attach = [
        "attach",
        pod.id(),
        &skill,
        "--container",
        "two",
        "--name",
        "other",
    ];
    assert_eq!(run(&attach)?.ok()?.line(), "two /opt/skills/other");
    // A second call changes nothing.
    run(&attach)?.ok()?;
    assert_eq!(
        two.sh("cat /opt/skills/other/SKILL.md; grep -c /opt/skills /proc/mounts")?,
        "# named\n1"
    );
    assert_eq!(one.sh("test -e /opt/skills || echo nothing")?, "nothing");
    run(&["detach", pod.id(), &skill])?.ok().map(drop)
}

#[test]
fn skill_that_is_in_use_stays_until_it_is_not() -> Result<()> {
    let (pod, skill) = (pod()?, packed("busy")?);
    let container = sleeping(&pod, "one")?;
    run(&["attach", pod.id(), &skill])?.ok()?;
    container.sh("cd /opt/skills/busy && { sleep 1000 >/dev/null 2>&1 & echo $! > /tmp/pid; }")?;
    let refused = run(&["detach", pod.id(), &skill])?;
    assert!(
        refused.code != 0 && refused.errors().contains("busy"),
        "{}",
        refused.errors()
    );
    assert_eq!(container.sh("cat /opt/skills/busy/SKILL.md")?, "# busy");
    container.sh("kill $(cat /tmp/pid)")?;
    command::poll("the detach", LIMIT, || {
        (run(&["detach", pod.id(), &skill]).ok()?.code == 0).then_some(())
    })?;
    assert_eq!(container.sh("ls /opt/skills")?, "");
    Ok(())
}

#[test]
fn skill_is_attached_to_a_pod_with_users_of_its_own() -> Result<()> {
    let (pod, skill) = (
        CriNode::shared().pod().own_users().start()?,
        packed("users")?,
    );
    let container = sleeping(&pod, "one")?;
    run(&["attach", pod.id(), &skill])?.ok()?;
    assert_eq!(
        container.sh("cat /opt/skills/users/SKILL.md; stat -c %u /opt/skills")?,
        "# users\n0"
    );
    run(&["detach", pod.id(), &skill])?.ok()?;
    assert_eq!(container.sh("ls /opt/skills")?, "");
    Ok(())
}

#[test]
fn skill_that_cannot_be_mounted_leaves_nothing() -> Result<()> {
    let (pod, skill) = (pod()?, packed("nowhere")?);
    let writable = sleeping(&pod, "one")?;
    let container = pod.container("busybox").named("two", 0).read_only_root();
    let _container = container.args(["sleep", "100000"]).start()?;
    let refused = run(&["attach", pod.id(), &skill])?;
    let errors = refused.errors();
    assert!(
        errors.contains("make /opt/skills/nowhere: Read-only file system"),
        "{errors}"
    );
    assert_eq!(writable.sh("ls /opt/skills 2>/dev/null || true")?, "");
    run(&["remove", &skill])?.ok().map(drop)
}

#[test]
fn skill_of_the_annotation_stays_when_the_same_is_detached() -> Result<()> {
    let skill = packed("both")?;
    let pod = CriNode::shared().pod().runtime(Runtime::Caisson);
    let pod = pod.annotation("caisson.dev/skills", &skill).start()?;
    let container = sleeping(&pod, "one")?;
    run(&["attach", pod.id(), &skill, "--name", "again"])?.ok()?;
    assert_eq!(
        container.sh("cat /opt/skills/*/SKILL.md")?,
        "# both\n# both"
    );
    run(&["detach", pod.id(), &skill])?.ok()?;
    assert_eq!(container.sh("cat /opt/skills/*/SKILL.md")?, "# both");
    Ok(())
}

#[test]
fn what_cannot_be_attached_is_said() -> Result<()> {
    let (pod, skill) = (pod()?, packed("refused")?);
    let nothing = format!("sha256:{}", "0".repeat(64));
    let says = |args: &[&str], message: &str| -> Result<()> {
        let output = run(args)?;
        let errors = output.errors();
        ensure!(
            output.code != 0 && errors.contains(message),
            "{args:?}: {errors}"
        );
        Ok(())
    };
    says(
        &["attach", "tests/nosuch", &skill],
        "no pod \"tests/nosuch\" runs here",
    )?;
    says(
        &["attach", pod.id(), &skill],
        "running container \"of the pod\": not found",
    )?;
    let container = sleeping(&pod, "one")?;
    says(
        &["attach", pod.id(), &skill, "--container", "two"],
        "running container \"two\": not found",
    )?;
    says(&["attach", pod.id(), &nothing], &nothing)?;
    says(
        &["attach", pod.id(), &skill, "--name", "../x"],
        "is no plain name",
    )?;
    says(
        &["detach", pod.id(), &skill],
        "skill that was attached late",
    )?;
    assert_eq!(
        container.sh("test -e /opt/skills || echo nothing")?,
        "nothing"
    );
    run(&["attach", pod.id(), &skill])?.ok()?;
    says(
        &["detach", pod.id(), &skill, "--container", "two"],
        "container with the skill \"two\"",
    )?;
    Ok(())
}

fn pod() -> Result<Pod<'static>> {
    CriNode::shared().pod().runtime(Runtime::Caisson).start()
}

fn sleeping<'p>(pod: &'p Pod<'static>, name: &str) -> Result<Container<'p>> {
    let container = pod.container("busybox").named(name, 0);
    container.args(["sleep", "100000"]).start()
}

/// Runs `caisson skill` with these arguments on the tests' node.
fn run(args: &[&str]) -> Result<Output> {
    let mut command = caisson(CriNode::shared())?;
    command::run(command.arg("skill").args(args), None, LIMIT)
}

/// Packs a skill of this name. Returns its digest.
fn packed(name: &str) -> Result<String> {
    let node = CriNode::shared();
    let tree = skill::tree(node, name)?;
    fs::write(tree.join("SKILL.md"), format!("# {name}\n"))?;
    skill::pack(node, name, &tree)
}
