//! Tests deploy/examples/agent-sandbox with the controller of agent-sandbox.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt, sync::OnceLock};

use anyhow::{ensure, Context, Result};
use caisson_local::caisson;
use caisson_tests::{
    command::{self, poll},
    k8s::{agent_sandbox, Namespace, Pod, TestCluster, LIMIT},
    paths,
};
use serde_json::json;

/// The Sandbox' annotation that names the pod that a claim took.
pub const POD: &str = r"{.metadata.annotations.agents\.x-k8s\.io/pod-name}";
pub const CLAIMED: &str = "condition=caisson.dev/Claimed";

#[test]
fn every_example_is_tested() -> Result<()> {
    let folder = paths::workspace().join("deploy/examples/agent-sandbox");
    let own = fs::read_to_string(paths::workspace().join("tests/k8s/agent_sandbox.rs"))?;
    let mut names = BTreeSet::new();
    for file in fs::read_dir(folder)? {
        names.insert(file?.file_name().to_string_lossy().into_owned());
    }
    for name in names {
        let stem = name.strip_suffix(".yaml").context("a .yaml")?;
        ensure!(
            own.contains(&format!("apply(&namespace, \"{stem}\")")),
            "{name}"
        );
    }
    Ok(())
}

#[test]
fn paused_sandbox_finds_its_skill_and_its_home_again() -> Result<()> {
    let cluster = cluster();
    let namespace = cluster.namespace()?;
    pack_greeting(cluster)?;
    apply(&namespace, "sandbox")?;
    let pod = ready(&namespace, "alice")?;
    assert_ne!(pod.exec("uname -r")?, host_kernel()?);
    assert_eq!(
        pod.exec("/opt/skills/greeting/hello > ~/note; cat ~/note")?,
        "hello"
    );
    pause(&namespace, "alice")?;
    resume(&namespace, "alice")?;
    assert_eq!(
        pod.exec("cat ~/note; /opt/skills/greeting/hello")?,
        "hello\nhello"
    );
    Ok(())
}

#[test]
fn paused_sandbox_finds_its_volume_again() -> Result<()> {
    let cluster = cluster();
    let namespace = cluster.namespace()?;
    apply(&namespace, "sandbox-volume")?;
    let pod = ready(&namespace, "bob")?;
    assert_ne!(pod.exec("uname -r; echo kept > ~/note")?, host_kernel()?);
    pause(&namespace, "bob")?;
    resume(&namespace, "bob")?;
    assert_eq!(pod.exec("cat ~/note")?, "kept");
    Ok(())
}

#[test]
fn claim_takes_a_warm_pod_that_becomes_its_users() -> Result<()> {
    let cluster = cluster();
    let namespace = cluster.namespace()?;
    apply(&namespace, "warm-pool")?;
    let warm = warm_pod(&namespace, None)?;
    let boot_id = warm.exec("cat /proc/sys/kernel/random/boot_id")?;
    apply(&namespace, "claim")?;
    namespace.wait("sandboxclaim/carol", "condition=Ready")?;
    assert_eq!(namespace.get("sandbox/carol", POD)?, warm.name());
    let claim = r#"{"home": "persistent/carol", "env": {"USER_NAME": "carol"}}"#;
    warm.claim(claim)?;
    warm.wait(CLAIMED)?;
    warm.wait_for_log("ready for carol")?;
    assert_eq!(warm.exec("grep -c ' /root virtiofs ' /proc/mounts")?, "1");
    assert_eq!(warm.exec("cat /proc/sys/kernel/random/boot_id")?, boot_id);
    Ok(())
}

#[test]
fn pool_starts_another_pod_for_the_one_that_was_claimed() -> Result<()> {
    let cluster = cluster();
    let namespace = cluster.namespace()?;
    apply(&namespace, "warm-pool")?;
    let first = warm_pod(&namespace, None)?.name().to_owned();
    apply(&namespace, "claim")?;
    namespace.wait("sandboxclaim/carol", "condition=Ready")?;
    let second = warm_pod(&namespace, Some(&first))?;
    assert_ne!(second.name(), first);
    Ok(())
}

#[test]
fn claim_without_a_warm_pod_gets_a_pod_of_its_own() -> Result<()> {
    let cluster = cluster();
    let namespace = cluster.namespace()?;
    apply(&namespace, "warm-pool")?;
    let empty = [
        "patch",
        "sandboxwarmpool",
        "agents",
        "--type=merge",
        "--patch",
    ];
    let none = r#"{"spec": {"replicas": 0}}"#;
    namespace.kubectl(&[&empty[..], &[none]].concat())?.ok()?;
    poll("no warm pod", LIMIT, || {
        pods(&namespace).ok()?.is_empty().then_some(())
    })?;
    apply(&namespace, "claim")?;
    namespace.wait("sandboxclaim/carol", "condition=Ready")?;
    let pod = namespace.existing("carol");
    assert_ne!(pod.exec("uname -r")?, host_kernel()?);
    Ok(())
}

#[test]
fn nothing_of_a_claimed_pod_stays_when_its_claim_is_deleted() -> Result<()> {
    let cluster = cluster();
    let namespace = cluster.namespace()?;
    apply(&namespace, "warm-pool")?;
    let pod = warm_pod(&namespace, None)?;
    apply(&namespace, "claim")?;
    namespace.wait("sandboxclaim/carol", "condition=Ready")?;
    pod.claim(r#"{"env": {"USER_NAME": "carol"}}"#)?;
    pod.wait(CLAIMED)?;
    namespace
        .kubectl(&["delete", "sandboxclaim", "carol"])?
        .ok()?;
    pod.wait("delete")?;
    let mut list = cluster.caisson();
    let left = command::run(list.arg("list"), None, LIMIT)?.ok()?.text();
    ensure!(!left.contains(pod.name()), "{left}");
    Ok(())
}

/// What all tests use.
pub struct Prepared {
    pub cluster: &'static TestCluster,
    /// The namespace whose Secrets claims can name.
    pub workspaces: Namespace<'static>,
}

/// Returns the cluster, with agent-sandbox and claims.
pub fn prepared() -> &'static Prepared {
    static PREPARED: OnceLock<Prepared> = OnceLock::new();
    PREPARED.get_or_init(|| {
        let cluster = TestCluster::shared();
        let prepare = || {
            agent_sandbox::install(cluster)?;
            let workspaces = cluster.namespace()?;
            let claims = json!({ "enabled": true, "secretNamespaces": [workspaces.name()] });
            caisson::upgrade_json(cluster.cluster(), &[("claims", &claims.to_string())])?;
            cluster.cluster().kubectl(&caisson::ROLLOUT)?;
            anyhow::Ok(workspaces)
        };
        match prepare() {
            Ok(workspaces) => Prepared {
                cluster,
                workspaces,
            },
            Err(error) => panic!("no agent-sandbox: {error:#}"),
        }
    })
}

pub fn cluster() -> &'static TestCluster {
    prepared().cluster
}

fn apply(namespace: &Namespace<'_>, example: &str) -> Result<()> {
    let cluster = namespace.cluster();
    cluster.image_as("busybox", "docker.io/library/busybox:1.37")?;
    namespace.apply_text(&text_of("agent-sandbox", example)?)
}

/// Returns an example of a folder below deploy/examples.
pub fn text_of(folder: &str, example: &str) -> Result<String> {
    let path = format!("deploy/examples/{folder}/{example}.yaml");
    Ok(fs::read_to_string(paths::workspace().join(path))?)
}

/// Waits until a Sandbox is ready. Returns its pod.
fn ready<'n>(namespace: &'n Namespace<'n>, sandbox: &str) -> Result<Pod<'n>> {
    namespace.wait(&format!("sandbox/{sandbox}"), "condition=Ready")?;
    Ok(namespace.existing(sandbox))
}

fn pause(namespace: &Namespace<'_>, sandbox: &str) -> Result<()> {
    scale(namespace, sandbox, 0)?;
    namespace.existing(sandbox).wait("delete")
}

fn resume(namespace: &Namespace<'_>, sandbox: &str) -> Result<()> {
    scale(namespace, sandbox, 1)?;
    poll("the pod", LIMIT, || {
        namespace
            .existing(sandbox)
            .get("{.metadata.uid}")
            .ok()
            .map(drop)
    })?;
    namespace.existing(sandbox).wait("condition=Ready")
}

fn scale(namespace: &Namespace<'_>, sandbox: &str, replicas: u32) -> Result<()> {
    let spec = format!(r#"{{"spec": {{"replicas": {replicas}}}}}"#);
    let args = [
        "patch",
        "sandbox",
        sandbox,
        "--type=merge",
        "--patch",
        &spec,
    ];
    namespace.kubectl(&args)?.ok().map(drop)
}

/// Waits for a warm pod that is ready and has another name. Returns it.
pub fn warm_pod<'n>(namespace: &'n Namespace<'n>, other_than: Option<&str>) -> Result<Pod<'n>> {
    let name = poll("a warm pod", LIMIT, || {
        let pods = pods(namespace).ok()?;
        pods.into_iter()
            .find(|name| Some(name.as_str()) != other_than)
    })?;
    let pod = namespace.existing(&name);
    pod.wait("condition=Ready")?;
    Ok(pod)
}

/// The names of the warm pods.
fn pods(namespace: &Namespace<'_>) -> Result<Vec<String>> {
    namespace.pods("agents.x-k8s.io/pool")
}

pub fn pack_greeting(cluster: &TestCluster) -> Result<()> {
    let tree = tempfile::tempdir()?;
    let program = tree.path().join("hello");
    fs::write(&program, "#!/bin/sh\necho hello\n")?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let mut pack = cluster.caisson();
    pack.args(["skill", "pack", "--name", "greeting", "--version", "1.0"]);
    command::run(pack.arg(tree.path()), None, LIMIT)?
        .ok()
        .map(drop)
}

fn host_kernel() -> Result<String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(kernel.trim().to_owned())
}
