//! Tests `caisson claim`, which gives a pod whose containers already run what it was started
//! without: skills, a home, variables and secrets. Only with Caisson.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{ensure, Context, Result};
use caisson_tests::{
    command,
    cri::{Container, CriNode, Pod},
    node::{caisson, LIMIT},
    proc, skill, Output, Runtime,
};

const FOLDER: &str = "/run/caisson/claim";
const SECRET: &str = "hunter2-of-the-claim";

#[test]
fn claim_gives_each_container_skill_home_variables_and_secret() -> Result<()> {
    let (pod, skill) = (pod()?, packed("given")?);
    let containers = [sleeping(&pod, "one")?, sleeping(&pod, "two")?];
    let secret = secret("each")?;
    let mut printed = claim(
        &pod,
        &[
            &format!("--skill={skill}"),
            "--home=ephemeral",
            "--env=WHO=anna smith",
            &format!("--secret=token={}", secret.display()),
        ],
    )?
    .ok()?
    .text();
    printed.truncate(printed.trim_end().len());
    let mut lines: Vec<_> = printed.lines().collect();
    lines.sort();
    assert_eq!(lines, ["one", "two"].map(|name| format!("{name} {FOLDER}")));
    for container in &containers {
        let look = format!(
            "cat /opt/skills/given/SKILL.md; grep -c ' /root virtiofs ' /proc/mounts; \
             . {FOLDER}/env; echo $WHO; cat {FOLDER}/secrets/token"
        );
        assert_eq!(
            container.sh(&look)?,
            format!("# given\n1\nanna smith\n{SECRET}")
        );
    }
    // Both have the same home.
    containers[0].sh("echo note > /root/note")?;
    assert_eq!(containers[1].sh("cat /root/note")?, "note");
    Ok(())
}

#[test]
fn program_that_waits_for_the_claim_finds_everything_when_it_is_ready() -> Result<()> {
    let (pod, skill) = (pod()?, packed("waited")?);
    let line = format!(
        "until [ -e {FOLDER}/ready ]; do sleep 0.05; done; . {FOLDER}/env; \
         echo $WHO $(cat {FOLDER}/secrets/token) $(ls -A /root; touch /root/x && echo home) \
         $(cat /opt/skills/waited/SKILL.md); exec sleep 1000"
    );
    let container = pod.container("busybox").sh(&line).start()?;
    let secret = secret("waited")?;
    claim(
        &pod,
        &[
            "--env=WHO=anna",
            &format!("--secret=token={}", secret.display()),
            "--home=ephemeral",
            &format!("--skill={skill}"),
        ],
    )?
    .ok()?;
    container.wait_for_output(&format!("anna {SECRET} home # waited"))
}

#[test]
fn files_of_a_claim_can_be_read_by_all_and_written_by_none() -> Result<()> {
    let pod = pod()?;
    let container = sleeping(&pod, "one")?;
    let secret = secret("modes")?;
    claim(&pod, &[&format!("--secret=token={}", secret.display())])?.ok()?;
    let modes = format!("cd {FOLDER} && stat -c '%a %u' . env ready secrets secrets/token");
    assert_eq!(container.sh(&modes)?, "755 0\n444 0\n444 0\n755 0\n444 0");
    let write = format!("touch {FOLDER}/x 2>&1 || true");
    let said = container.sh(&write)?;
    assert!(said.contains("Read-only file system"), "{said}");
    Ok(())
}

#[test]
fn exec_after_the_claim_has_its_variables() -> Result<()> {
    let pod = pod()?;
    let container = pod.container("busybox").env("TEAM", "none");
    let container = container.env("KEPT", "1").args(["sleep", "1000"]).start()?;
    let file = node_file("exec.env", "TEAM=blue\n# a comment\nWHO=anna smith\n")?;
    claim(
        &pod,
        &[&format!("--env-file={}", file.display()), "--env=MORE=it's"],
    )?
    .ok()?;
    assert_eq!(
        container.sh("echo $TEAM,$WHO,$MORE,$KEPT")?,
        "blue,anna smith,it's,1"
    );
    Ok(())
}

#[test]
fn secret_by_descriptor_is_open_in_an_exec_and_in_no_file() -> Result<()> {
    let pod = pod()?;
    let container = sleeping(&pod, "one")?;
    let secret = secret("descriptor")?;
    claim(&pod, &[&format!("--secret-fd=TOKEN={}", secret.display())])?.ok()?;
    for _ in 0..2 {
        assert_eq!(container.sh("cat <&$TOKEN")?, SECRET);
    }
    assert_eq!(
        container.sh(&format!("cat {FOLDER}/env; ls {FOLDER}"))?,
        "env\nready"
    );
    Ok(())
}

#[test]
fn container_that_starts_after_the_claim_has_the_same() -> Result<()> {
    let (pod, skill) = (pod()?, packed("later")?);
    let first = sleeping(&pod, "one")?;
    let secret = secret("later")?;
    claim(
        &pod,
        &[
            &format!("--skill={skill}"),
            "--home=ephemeral",
            "--env=WHO=anna",
            &format!("--secret=token={}", secret.display()),
            &format!("--secret-fd=TOKEN={}", secret.display()),
        ],
    )?
    .ok()?;
    first.sh("echo note > /root/note")?;
    let line = format!(
        "echo $WHO $(cat <&$TOKEN) $(cat {FOLDER}/secrets/token /root/note \
         /opt/skills/later/SKILL.md); exec sleep 1000"
    );
    let second = pod.container("busybox").named("two", 0).sh(&line).start()?;
    let expected = format!("anna {SECRET} {SECRET} note # later");
    // The secret's file has no end of line.
    let expected = expected.replace(&format!("{SECRET} note"), &format!("{SECRET}note"));
    second.wait_for_output(&expected)?;
    assert_eq!(
        second.sh("echo $WHO; cat <&$TOKEN")?,
        format!("anna\n{SECRET}")
    );
    Ok(())
}

#[test]
fn claim_of_a_pod_that_has_been_claimed_is_refused() -> Result<()> {
    let pod = pod()?;
    let container = sleeping(&pod, "one")?;
    claim(&pod, &["--env=WHO=anna"])?.ok()?;
    refused(&pod, &["--env=WHO=bert"], "claimed already")?;
    assert_eq!(container.sh("echo $WHO")?, "anna");
    Ok(())
}

#[test]
fn two_claims_at_once_have_one_winner() -> Result<()> {
    let pod = pod()?;
    let container = sleeping(&pod, "one")?;
    let names = ["anna", "bert"];
    let codes = thread::scope(|scope| {
        let claims = names.map(|name| {
            let pod = &pod;
            scope.spawn(move || claim(pod, &[&format!("--env=WHO={name}")]))
        });
        let claims = claims.map(|claim| claim.join().expect("no panic"));
        claims
            .into_iter()
            .map(|output| Ok(output?.code))
            .collect::<Result<Vec<_>>>()
    })?;
    let winner = codes.iter().position(|code| *code == 0).context("one")?;
    assert_eq!(
        codes.iter().filter(|code| **code == 0).count(),
        1,
        "{codes:?}"
    );
    assert_eq!(container.sh("echo $WHO")?, names[winner]);
    Ok(())
}

#[test]
fn claim_that_the_policy_refuses_names_namespace_and_configuration() -> Result<()> {
    let node = CriNode::start_with(|config| {
        config["policy"] = serde_json::json!({
            "annotations": { "caisson.dev/home": ["others"] }
        });
    })?;
    let pod = node.pod().start()?;
    let container = sleeping(&pod, "one")?;
    refused(
        &pod,
        &["--home=ephemeral"],
        "annotation caisson.dev/home: is not allowed in the namespace tests",
    )?;
    left_as_it_was(&container)
}

#[test]
fn claim_of_a_skill_that_is_missing_leaves_the_pod_as_it_was() -> Result<()> {
    let (pod, skill) = (pod()?, packed("before")?);
    let container = sleeping(&pod, "one")?;
    let nothing = format!("sha256:{}", "0".repeat(64));
    let skills = [format!("--skill={skill}"), format!("--skill={nothing}")];
    let home = "--home=persistent/claim-undone";
    refused(&pod, &[home, &skills[0], &skills[1]], &nothing)?;
    left_as_it_was(&container)?;
    // The pod can still be claimed, with the same home.
    claim(&pod, &[home, &skills[0]])?.ok()?;
    assert_eq!(container.sh("cat /opt/skills/before/SKILL.md")?, "# before");
    Ok(())
}

#[test]
fn claim_whose_files_cannot_be_shown_leaves_the_pod_as_it_was() -> Result<()> {
    let pod = pod()?;
    let container = sleeping(&pod, "one")?;
    let fixed = pod.container("busybox").named("two", 0).read_only_root();
    let _fixed = fixed.args(["sleep", "1000"]).start()?;
    refused(
        &pod,
        &["--home=persistent/claim-unshown", "--env=WHO=anna"],
        "make /run/caisson/claim: Read-only file system",
    )?;
    left_as_it_was(&container)?;
    assert_eq!(container.sh("echo $WHO")?, "");
    // Its home is free.
    let other = CriNode::shared().pod().runtime(Runtime::Caisson).start()?;
    let _container = sleeping(&other, "one")?;
    claim(&other, &["--home=persistent/claim-unshown"])?
        .ok()
        .map(drop)
}

#[test]
fn claim_of_a_home_in_use_names_the_pod_that_has_it() -> Result<()> {
    let (first, second) = (pod()?, pod()?);
    let _container = sleeping(&first, "one")?;
    let container = sleeping(&second, "one")?;
    let home = "--home=persistent/claim-taken";
    claim(&first, &[home])?.ok()?;
    let expected = format!(
        "home tests/claim-taken is in use by tests/{}",
        first.hostname()
    );
    refused(&second, &[home], &expected)?;
    left_as_it_was(&container)
}

#[test]
fn claim_of_a_home_in_a_pod_that_has_one_is_refused() -> Result<()> {
    let pod = CriNode::shared().pod().runtime(Runtime::Caisson);
    let pod = pod.annotation("caisson.dev/home", "ephemeral").start()?;
    let _container = sleeping(&pod, "one")?;
    refused(
        &pod,
        &["--home=persistent/claim-second"],
        "the pod has the home ephemeral, and can't have persistent/claim-second too",
    )
}

#[test]
fn claim_without_a_running_container_is_refused() -> Result<()> {
    refused(&pod()?, &["--env=WHO=anna"], "running container")
}

#[test]
fn pod_with_users_of_its_own_is_claimed_without_a_home() -> Result<()> {
    let pod = CriNode::shared().pod().own_users().start()?;
    let container = pod.container("busybox").user(1000, None);
    let container = container.args(["sleep", "1000"]).start()?;
    let secret = secret("users")?;
    refused(&pod, &["--home=ephemeral"], "leave hostUsers out")?;
    claim(&pod, &[&format!("--secret=token={}", secret.display())])?.ok()?;
    assert_eq!(
        container.sh(&format!("cat {FOLDER}/secrets/token"))?,
        SECRET
    );
    Ok(())
}

#[test]
fn record_of_a_claim_has_names_and_no_values() -> Result<()> {
    let pod = pod()?;
    let _container = sleeping(&pod, "one")?;
    let secret = secret("record")?;
    claim(
        &pod,
        &[
            "--env=WHO=value-of-the-variable",
            &format!("--secret=token={}", secret.display()),
        ],
    )?
    .ok()?;
    let record = CriNode::shared()
        .state_dir()
        .join(pod.id())
        .join("record.json");
    let text = fs::read_to_string(&record).with_context(|| format!("{}", record.display()))?;
    let record: serde_json::Value = serde_json::from_str(&text)?;
    assert_eq!(record["claim"]["variables"][0], "WHO");
    assert_eq!(record["claim"]["secrets"][0], "token");
    for value in [SECRET, "value-of-the-variable"] {
        assert!(!text.contains(value), "{text}");
    }
    Ok(())
}

#[test]
fn shim_killed_during_a_claim_frees_the_home_and_leaves_nothing() -> Result<()> {
    let node = CriNode::shared();
    let pod = pod()?;
    let killed = sleeping(&pod, "one")?;
    let home = "--home=persistent/claim-killed";
    let mut command = claim_command(&pod, &[home])?;
    let running = command::spawn(&mut command, None)?;
    let place = node.state_dir().join(pod.id()).join("home");
    command::poll("the home's mount point", LIMIT, || {
        place.exists().then_some(())
    })?;
    proc::kill(pod.shim()?, libc::SIGKILL);
    let output = running.finish(LIMIT)?;
    ensure!(output.code != 0, "the claim succeeded: {}", output.text());
    killed.wait()?;
    pod.stop()?;
    pod.remove()?;
    assert!(!place.exists());
    let next = CriNode::shared().pod().runtime(Runtime::Caisson).start()?;
    let container = sleeping(&next, "one")?;
    claim(&next, &[home])?.ok()?;
    container.sh("touch /root/x").map(drop)
}

/// Fails if a container has something of a claim.
fn left_as_it_was(container: &Container<'_>) -> Result<()> {
    let look = "ls /opt/skills /run/caisson/claim 2>/dev/null; grep -c ' /root ' /proc/mounts";
    let line = format!("{look}; ls /sys/block/vd*/serial 2>/dev/null | xargs cat | grep -c ^s-");
    let seen = container.sh(&format!("{{ {line}; }} || true"))?;
    ensure!(seen == "0\n0", "{seen}");
    Ok(())
}

fn pod() -> Result<Pod<'static>> {
    CriNode::shared().pod().runtime(Runtime::Caisson).start()
}

fn sleeping<'p, 'n>(pod: &'p Pod<'n>, name: &str) -> Result<Container<'p>>
where
    'n: 'p,
{
    let container = pod.container("busybox").named(name, 0);
    container.args(["sleep", "100000"]).start()
}

fn claim(pod: &Pod<'_>, args: &[&str]) -> Result<Output> {
    command::run(&mut claim_command(pod, args)?, None, LIMIT)
}

fn claim_command(pod: &Pod<'_>, args: &[&str]) -> Result<Command> {
    let mut command = caisson(pod.node())?;
    command.args(["claim", pod.id()]).args(args);
    Ok(command)
}

fn refused(pod: &Pod<'_>, args: &[&str], message: &str) -> Result<()> {
    let output = claim(pod, args)?;
    let errors = output.errors();
    ensure!(
        output.code != 0 && errors.contains(message),
        "{args:?}: {errors}"
    );
    Ok(())
}

/// Writes a secret without an end of line. Returns its file.
fn secret(name: &str) -> Result<PathBuf> {
    node_file(&format!("secret-{name}"), SECRET)
}

fn node_file(name: &str, text: &str) -> Result<PathBuf> {
    let path: &Path = CriNode::shared().dir();
    let path = path.join(name);
    fs::write(&path, text)?;
    Ok(path)
}

/// Packs a skill of this name. Returns its digest.
fn packed(name: &str) -> Result<String> {
    let node = CriNode::shared();
    let tree = skill::tree(node, name)?;
    fs::write(tree.join("SKILL.md"), format!("# {name}\n"))?;
    skill::pack(node, name, &tree)
}
