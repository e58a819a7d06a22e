//! Tests the files in `deploy/examples` as they are.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt};

use anyhow::{Context, Result};
use caisson_tests::{
    command,
    k8s::{Namespace, Pod, Registry, TestCluster, LIMIT},
    paths,
    s3::S3,
    Runtime,
};

#[test]
fn every_example_has_a_test() -> Result<()> {
    let files = fs::read_dir(paths::workspace().join("deploy/examples"))?;
    // Those in folders have tests of their own: tests/api/chart, agent_sandbox.rs.
    let names: BTreeSet<_> = files
        .flatten()
        .filter(|file| !file.path().is_dir())
        .map(|file| file.file_name().to_string_lossy().into_owned())
        .collect();
    let own = fs::read_to_string(paths::workspace().join("tests/k8s/examples.rs"))?;
    for name in names {
        let stem = name
            .strip_suffix(".yaml")
            .context("an example is a .yaml")?;
        assert!(
            own.contains(&format!("apply(&namespace, \"{stem}\")")),
            "{name}"
        );
    }
    Ok(())
}

#[test]
fn web_serves_and_is_updated_without_a_failed_request() -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    apply(&namespace, "web")?;
    namespace.rolled_out("deployment/web")?;
    assert_runs_in_vms(&namespace, "app=web", 2)?;
    let client = namespace.pod("client").runtime(Runtime::Runc).sh(
        "until timeout 5 wget -q -O /dev/null http://web/index.html; do sleep 0.2; done; \
         while :; do timeout 20 wget -q -O - http://web/index.html || echo failed; sleep 0.1; done",
    );
    let client = client.start()?;
    client.wait_for_log("Served from a VM")?;
    namespace
        .kubectl(&["rollout", "restart", "deployment/web"])?
        .ok()?;
    namespace.rolled_out("deployment/web")?;
    let log = client.logs()?;
    assert!(!log.contains("failed"), "{log}");
    assert!(log.lines().count() > 10, "{log}");
    Ok(())
}

#[test]
fn statefulset_finds_its_volume_again() -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    apply(&namespace, "statefulset")?;
    namespace.rolled_out("statefulset/journal")?;
    assert_runs_in_vms(&namespace, "app=journal", 2)?;
    namespace.existing("journal-1").delete()?;
    namespace.rolled_out("statefulset/journal")?;
    let journal = |name: &str| namespace.existing(name).exec("cat /data/journal");
    assert_eq!(
        journal("journal-1")?,
        "journal-1 started\njournal-1 started"
    );
    assert_eq!(journal("journal-0")?, "journal-0 started");
    // One pod reaches the other by name.
    let other = namespace
        .existing("journal-0")
        .exec("wget -q -O - http://journal-1.journal:8080/journal")?;
    assert_eq!(other.lines().next(), Some("journal-1 started"));
    Ok(())
}

#[test]
fn job_does_every_piece() -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    apply(&namespace, "job")?;
    namespace.wait("job/sums", "condition=Complete")?;
    let output = namespace
        .kubectl(&["logs", "--selector", "job-name=sums", "--tail=-1"])?
        .ok()?;
    let text = output.text();
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort();
    assert_eq!(lines, ["piece 0 0", "piece 1 500500", "piece 2 1001000"]);
    Ok(())
}

#[test]
fn cron_job_runs_at_the_full_minute() -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    apply(&namespace, "cronjob")?;
    let done = command::poll("a report", LIMIT, || {
        let output = namespace
            .kubectl(&["get", "pods", "--output", "name"])
            .ok()?;
        let pod = output
            .line()
            .lines()
            .next()?
            .strip_prefix("pod/")?
            .to_owned();
        let log = namespace.existing(&pod).logs().ok()?;
        log.starts_with("report by ").then_some(log)
    });
    let log = done.with_context(|| namespace.describe("cronjob/report"))?;
    assert_ne!(log.trim(), format!("report by {}", host_kernel()?));
    Ok(())
}

#[test]
fn workspace_has_its_skill_and_finds_its_home_again() -> Result<()> {
    let cluster = TestCluster::shared();
    let namespace = cluster.namespace()?;
    let tree = tempfile::tempdir()?;
    let program = tree.path().join("hello");
    fs::write(&program, "#!/bin/sh\necho hello from $(hostname)\n")?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let mut pack = cluster.caisson();
    pack.args(["skill", "pack", "--name", "greeting", "--version", "1.0"])
        .arg(tree.path());
    command::run(&mut pack, None, LIMIT)?.ok()?;
    apply(&namespace, "workspace")?;
    namespace.rolled_out("deployment/workspace")?;
    assert_runs_in_vms(&namespace, "app=workspace", 1)?;
    let first = only_pod(&namespace, "app=workspace")?;
    let greeting = format!("hello from {}", first.name());
    wait_for_visits(&first, 1)?;
    assert_eq!(first.exec("cat ~/visits")?, greeting);
    let (name, write) = (
        first.name().to_owned(),
        first.try_exec("echo x > /opt/skills/greeting/hello")?,
    );
    assert!(
        write.errors().contains("Read-only file system"),
        "{}",
        write.errors()
    );
    namespace
        .kubectl(&["rollout", "restart", "deployment/workspace"])?
        .ok()?;
    namespace.rolled_out("deployment/workspace")?;
    let second = only_pod(&namespace, "app=workspace")?;
    assert_ne!(second.name(), name);
    wait_for_visits(&second, 2)?;
    assert_eq!(
        second.exec("cat ~/visits")?,
        format!("{greeting}\nhello from {}", second.name())
    );
    Ok(())
}

#[test]
fn workspace_finds_what_it_wrote_into_the_object_store() -> Result<()> {
    let cluster = TestCluster::shared();
    let namespace = cluster.namespace()?;
    let allow = format!(
        "[policy.annotations]\n\"caisson.dev/devices=fuse\" = [\"{}\"]",
        namespace.name()
    );
    let _allowed = cluster.settings("workspace-s3", &allow)?;
    cluster.image_as("rclone", "docker.io/rclone/rclone:1.60")?;
    let log = tempfile::tempdir()?;
    let s3 = S3::start_at(
        &cluster.machine_address()?,
        log.path(),
        &[("alice", "alice/")],
    )?;
    let [id, key] = s3.keys("alice")?;
    let place = format!("{}/alice", S3::BUCKET);
    let store =
        |name: &str, value: &str| format!("--from-literal=RCLONE_CONFIG_STORE_{name}={value}");
    let literals = [
        store("TYPE", "s3"),
        store("PROVIDER", "Other"),
        store("ENDPOINT", &format!("http://{}", s3.address())),
        store("ACCESS_KEY_ID", id),
        store("SECRET_ACCESS_KEY", key),
        format!("--from-literal=PLACE={place}"),
    ];
    let mut secret = vec!["create", "secret", "generic", "workspace-s3"];
    secret.extend(literals.iter().map(String::as_str));
    namespace.kubectl(&secret)?.ok()?;
    apply(&namespace, "workspace-s3")?;
    namespace.rolled_out("deployment/workspace-s3")?;
    only_pod(&namespace, "app=workspace-s3")?.exec("echo kept > /data/note")?;
    namespace
        .kubectl(&["rollout", "restart", "deployment/workspace-s3"])?
        .ok()?;
    namespace.rolled_out("deployment/workspace-s3")?;
    let second = only_pod(&namespace, "app=workspace-s3")?;
    assert_eq!(second.exec("cat /data/note")?, "kept");
    Ok(())
}

#[test]
fn podman_pulls_an_image_and_runs_it() -> Result<()> {
    let cluster = TestCluster::shared();
    let namespace = cluster.namespace()?;
    cluster.image_as("podman", "quay.io/podman/stable:v4")?;
    let registry = Registry::start(cluster)?;
    registry.publish("busybox", "docker.io/library/busybox:1.37")?;
    let mirror = format!(
        "[[registry]]\nlocation = \"docker.io\"\n[[registry.mirror]]\nlocation = \"{}\"\ninsecure = true\n",
        registry.address()
    );
    let mirror = format!("--from-literal=mirror.conf={mirror}");
    let config = ["create", "configmap", "podman-registries", &mirror];
    namespace.kubectl(&config)?.ok()?;
    apply(&namespace, "podman")?;
    let done = namespace.wait("job/podman", "condition=Complete");
    let logs = namespace.kubectl(&["logs", "job/podman"])?.text();
    done.with_context(|| logs.clone())?;
    let kernel = logs.split("a container in a container, on ").nth(1);
    let kernel = kernel.with_context(|| logs.clone())?.trim();
    assert_ne!(kernel, host_kernel()?);
    Ok(())
}

#[test]
fn server_sent_events_pass_a_gateway_one_after_another() -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    let client = live(&namespace)?;
    let events = run_client(&client, "node", "events.js", &["http://gateway/events"])?;
    assert_eq!(events, "data: 1\ndata: 2\ndata: 3\none after another");
    Ok(())
}

#[test]
fn web_socket_passes_a_gateway() -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    let client = live(&namespace)?;
    let answer = run_client(
        &client,
        "node",
        "socket.js",
        &["ws://gateway/socket", "hello"],
    )?;
    assert_eq!(answer, "echo: hello");
    Ok(())
}

#[test]
fn autoscaler_grows_a_deployment_at_work_and_shrinks_it_afterwards() -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    apply(&namespace, "autoscaled")?;
    let scaled_to = |replicas: &str| {
        let mut last = String::new();
        let reached = command::poll("the autoscaler", 2 * LIMIT, || {
            let get = || namespace.get("deployment/autoscaled", "{.spec.replicas}");
            last = get().unwrap_or_default();
            (last == replicas).then_some(())
        });
        reached.with_context(|| format!("{last}: {}", namespace.describe("hpa/autoscaled")))
    };
    scaled_to("2")?;
    assert_runs_in_vms(&namespace, "app=autoscaled", 2)?;
    let calm = [
        "patch",
        "configmap",
        "work",
        "--patch",
        r#"{"data": {"todo": "no"}}"#,
    ];
    namespace.kubectl(&calm)?.ok()?;
    scaled_to("1")
}

#[test]
fn automation_service_finds_its_runs_again() -> Result<()> {
    let cluster = TestCluster::shared();
    let namespace = cluster.namespace()?;
    cluster.image_as("node", "docker.io/library/node:18")?;
    apply(&namespace, "automation")?;
    namespace.rolled_out("deployment/automation")?;
    let client = namespace
        .pod("client")
        .runtime(Runtime::Runc)
        .sh("sleep 1000");
    let client = client.start()?;
    client.exec("wget -q -O - --post-data=hello http://automation/webhook/1")?;
    namespace
        .kubectl(&["rollout", "restart", "deployment/automation"])?
        .ok()?;
    namespace.rolled_out("deployment/automation")?;
    let runs = client.exec("wget -q -O - http://automation/runs")?;
    // As `printf hello | openssl dgst -sha256 -hmac an-example` has it.
    let expected = r#"{"body":"hello","signature":"4e8dd4f19971929a9abb7479e510c747"#;
    assert!(runs.starts_with(expected), "{runs}");
    assert_eq!(runs.lines().count(), 1, "{runs}");
    Ok(())
}

#[test]
fn hub_starts_a_users_server_whose_kernel_computes() -> Result<()> {
    let cluster = TestCluster::shared();
    let namespace = cluster.namespace()?;
    cluster.image_as("jupyterhub", "localhost/jupyterhub:3")?;
    apply(&namespace, "jupyterhub")?;
    namespace.rolled_out("deployment/jupyterhub")?;
    let client = namespace
        .pod("client")
        .runtime(Runtime::Runc)
        .sh("sleep 1000");
    let client = client.main(|main| main["image"] = "localhost/jupyterhub:3".into());
    let code = "import platform; print(6 * 7, platform.release())";
    let client = client.start()?;
    let printed = run_client(
        &client,
        "python3",
        "hub.py",
        &["jupyterhub", "an-example", code],
    )?;
    let (answer, kernel) = printed.split_once(' ').with_context(|| printed.clone())?;
    assert_eq!(answer, "42");
    assert_ne!(kernel, host_kernel()?);
    Ok(())
}

/// Applies the example and waits for its Deployments. Returns a pod for clients.
fn live<'n>(namespace: &'n Namespace<'n>) -> Result<Pod<'n>> {
    let cluster = namespace.cluster();
    cluster.image_as("node", "docker.io/library/node:18")?;
    cluster.image_as("nginx", "docker.io/library/nginx:1.22")?;
    apply(namespace, "live")?;
    namespace.rolled_out("deployment/live")?;
    namespace.rolled_out("deployment/gateway")?;
    let client = namespace
        .pod("client")
        .runtime(Runtime::Runc)
        .sh("sleep 1000");
    let client = client.main(|main| main["image"] = "docker.io/library/node:18".into());
    client.start()
}

/// Runs a program of tests/k8s/clients in a pod. Returns what it prints.
fn run_client(pod: &Pod<'_>, with: &str, name: &str, args: &[&str]) -> Result<String> {
    let program = fs::read(paths::workspace().join("tests/k8s/clients").join(name))?;
    let mut exec = pod.kubectl_command("exec", &["--stdin"]);
    exec.args(["--", with, "-"]).args(args);
    let stdin = command::Stdin::from(program);
    let output = command::run(&mut exec, Some(stdin), LIMIT)?;
    Ok(output.ok().with_context(|| name.to_owned())?.line())
}

fn apply(namespace: &Namespace<'_>, example: &str) -> Result<()> {
    namespace
        .cluster()
        .image_as("busybox", "docker.io/library/busybox:1.37")?;
    namespace.cluster().image("busybox")?;
    let path = paths::workspace().join(format!("deploy/examples/{example}.yaml"));
    namespace.apply_text(&fs::read_to_string(path)?)
}

fn assert_runs_in_vms(namespace: &Namespace<'_>, label: &str, count: usize) -> Result<()> {
    let pods = namespace.pods(label)?;
    assert_eq!(pods.len(), count, "{pods:?}");
    for pod in pods {
        assert_ne!(namespace.existing(&pod).exec("uname -r")?, host_kernel()?);
    }
    Ok(())
}

fn only_pod<'n>(namespace: &'n Namespace<'n>, label: &str) -> Result<Pod<'n>> {
    let pods = namespace.pods(label)?;
    assert_eq!(pods.len(), 1, "{pods:?}");
    Ok(namespace.existing(&pods[0]))
}

fn wait_for_visits(pod: &Pod<'_>, count: usize) -> Result<()> {
    command::poll("the visit", LIMIT, || {
        let visits = pod.exec("cat ~/visits").ok()?;
        (visits.lines().count() == count).then_some(())
    })
}

fn host_kernel() -> Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/osrelease")?
        .trim()
        .to_owned())
}
