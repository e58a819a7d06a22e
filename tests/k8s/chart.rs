//! Tests the chart on a real cluster: `make test-k8s`. The tests change the one node, so they take
//! turns.

mod admission;
mod capacity;
mod claims;
mod metrics;
mod node_restriction;
mod oneshot;
mod pod_events;
mod presets;

use std::{
    fs,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{ensure, Context, Result};
use caisson_local::caisson;
use caisson_tests::{
    command::poll,
    fixture,
    k8s::{set_class, Pod, TestCluster},
    Runtime,
};
use serde_json::{json, Value};

/// Allows for a self-test and a restart of containerd on a busy machine.
const LIMIT: Duration = Duration::from_secs(240);
const READY: &str = "caisson.dev/ready";

static TURN: Mutex<()> = Mutex::new(());

/// Returns the cluster with the chart installed as `make cluster` does it. No other test uses it
/// meanwhile.
fn cluster() -> Result<(MutexGuard<'static, ()>, &'static TestCluster)> {
    let (turn, shared) = turn();
    caisson::install(shared.cluster())?;
    Ok((turn, shared))
}

/// Returns the cluster as the last test left it. No other test uses it meanwhile.
fn turn() -> (MutexGuard<'static, ()>, &'static TestCluster) {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    (turn, TestCluster::shared())
}

#[test]
fn node_that_is_set_up_has_labels_condition_and_event() -> Result<()> {
    let (_turn, cluster) = cluster()?;
    let node = node(cluster)?;
    let labels = &node["metadata"]["labels"];
    assert_eq!(labels[READY], "true");
    assert_eq!(labels["caisson.dev/version"], env!("CARGO_PKG_VERSION"));
    let accelerator = labels["caisson.dev/accelerator"].as_str();
    assert!(
        matches!(accelerator, Some("kvm" | "tcg")),
        "{accelerator:?}"
    );
    assert_eq!(condition(&node)["status"], "True");
    let described = cluster.kubectl(&["describe", "nodes"])?.ok()?.text();
    assert!(described.contains("CaissonInstalled"), "{described}");
    Ok(())
}

#[test]
fn helm_test_finds_a_kernel_of_the_pods_own() -> Result<()> {
    let (_turn, cluster) = cluster()?;
    let said = caisson::test(cluster.cluster())?;
    assert!(said.contains("the pod has a kernel of its own"), "{said}");
    Ok(())
}

#[test]
fn node_that_cannot_be_set_up_says_why_and_gets_no_pods() -> Result<()> {
    let (_turn, cluster) = cluster()?;
    let broken = "[vm]\nnosuch = 1";
    caisson::upgrade(cluster.cluster(), &[("config", broken)])?;
    let failed = poll("the node to say why", LIMIT, || {
        let node = node(cluster).ok()?;
        (condition(&node)["reason"] == "InstallFailed").then_some(node)
    })?;
    let message = condition(&failed)["message"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(message.contains("nosuch"), "{message}");
    // The labels are removed right after the condition has appeared.
    poll("the label to go", LIMIT, || {
        let node = node(cluster).ok()?;
        node["metadata"]["labels"][READY].is_null().then_some(())
    })?;
    let described = cluster.kubectl(&["describe", "nodes"])?.ok()?.text();
    assert!(described.contains("CaissonInstallFailed"), "{described}");

    let namespace = cluster.namespace()?;
    let pod = namespace
        .pod("waits")
        .runtime(Runtime::Caisson)
        .sh("sleep 1000");
    pod.create()?
        .described(&["FailedScheduling", "affinity/selector"])?;
    Ok(())
}

#[test]
fn node_that_has_lost_its_qemu_is_named_by_describe_pod() -> Result<()> {
    let (_turn, cluster) = cluster()?;
    let layout = cluster.cluster().layout();
    let lost = layout.path("caisson/config.d/90-lost.toml");
    fs::write(&lost, "[hypervisor]\nqemu = \"/no/such/qemu\"")?;
    let namespace = cluster.namespace()?;
    let pod = namespace.pod("left").runtime(Runtime::Caisson);
    let described = pod.sh("sleep 1000").create()?;
    let described = described.described(&["FailedCreatePodSandBox", "/no/such/qemu"]);
    fs::remove_file(&lost)?;
    described?;
    // The kubelet tries again.
    namespace.existing("left").wait("condition=Ready")
}

#[test]
fn drained_node_has_no_pods_until_it_is_uncordoned() -> Result<()> {
    let (_turn, cluster) = cluster()?;
    let namespace = cluster.namespace()?;
    namespace.cluster().image("busybox")?;
    let mut spec = json!({
        "terminationGracePeriodSeconds": 1,
        "containers": [{
            "name": "main",
            "image": fixture::full_name("busybox"),
            "command": ["sleep", "100000"],
        }],
    });
    set_class(&mut spec, Runtime::Caisson);
    namespace.apply(&json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": "stays" },
        "spec": {
            "replicas": 2,
            "selector": { "matchLabels": { "app": "stays" } },
            "template": { "metadata": { "labels": { "app": "stays" } }, "spec": spec },
        },
    }))?;
    namespace.rolled_out("deployment/stays")?;
    let before = namespace.pods("app=stays")?;
    let name = node(cluster)?["metadata"]["name"].clone();
    let name = name.as_str().context("a node without a name")?;
    let drain = [
        "drain",
        name,
        "--ignore-daemonsets",
        "--pod-selector=app=stays",
    ];
    let drained = cluster.kubectl(&drain)?.ok();
    let waiting = namespace.get("deployment/stays", "{.status.readyReplicas}");
    cluster.kubectl(&["uncordon", name])?.ok()?;
    drained?;
    assert_eq!(waiting?, "");
    namespace.rolled_out("deployment/stays")?;
    let after = namespace.pods("app=stays")?;
    assert!(after.len() == 2 && after.iter().all(|pod| !before.contains(pod)));
    Ok(())
}

#[test]
fn pods_go_on_while_the_chart_is_upgraded() -> Result<()> {
    let (_turn, cluster) = cluster()?;
    let namespace = cluster.namespace()?;
    let start = |n| {
        let pod = namespace.pod(&format!("pod-{n}")).runtime(Runtime::Caisson);
        pod.sh("sleep 100000").start()
    };
    let pods: Vec<Pod<'_>> = (0..5).map(start).collect::<Result<_>>()?;
    let boot = |pod: &Pod<'_>| pod.exec("cat /proc/sys/kernel/random/boot_id");
    let before: Vec<_> = pods.iter().map(boot).collect::<Result<_>>()?;
    caisson::upgrade(cluster.cluster(), &[("config", "[log]\nlevel = \"debug\"")])?;
    let rollout = ["rollout", "status", "daemonset/caisson", "--timeout=5m"];
    let namespaced = [&rollout[..], &["--namespace", "caisson-system"]].concat();
    cluster.kubectl(&namespaced)?.ok()?;
    let settings = cluster
        .cluster()
        .layout()
        .path("caisson/config.d/50-node.toml");
    assert!(fs::read_to_string(settings)?.contains("debug"));
    let after: Vec<_> = pods.iter().map(boot).collect::<Result<_>>()?;
    assert_eq!(before, after);
    Ok(())
}

#[test]
fn removal_waits_for_pods_and_gives_the_node_back() -> Result<()> {
    let (_turn, cluster) = cluster()?;
    let namespace = cluster.namespace()?;
    let pod = namespace.pod("last").runtime(Runtime::Caisson);
    let pod = pod.sh("sleep 100000").start()?;
    let layout = cluster.cluster().layout().clone();
    std::thread::scope(|scope| -> Result<()> {
        let removal = scope.spawn(|| caisson::uninstall(cluster.cluster()));
        let reason = || {
            let node = node(cluster).ok()?;
            let condition = condition(&node);
            (condition["reason"] == "UninstallFailed").then(|| condition["message"].clone())
        };
        let waits = poll("the node to say what it waits for", LIMIT, reason);
        // The removal has to end whatever the result is here.
        let ran = pod.exec("echo runs");
        pod.delete()?;
        let removed = removal.join().map_err(|_| anyhow::anyhow!("panic"))?;
        let waits = waits?;
        ensure!(
            waits.as_str().unwrap_or_default().contains("last"),
            "{waits}"
        );
        assert_eq!(ran?, "runs");
        removed
    })?;

    let node = node(cluster)?;
    assert!(condition(&node).is_null());
    let labels = node["metadata"]["labels"]
        .as_object()
        .context("no labels")?;
    assert!(
        !labels.keys().any(|label| label.starts_with("caisson.dev/")),
        "{labels:?}"
    );
    assert!(!layout.path("opt").exists());
    assert!(!layout.path("caisson/config.d").exists());
    let left = fs::read_to_string(layout.containerd_config())?;
    caisson_local::containerd::write(&layout)?;
    assert_eq!(left, fs::read_to_string(layout.containerd_config())?);
    Ok(())
}

#[test]
fn uninstalled_chart_leaves_no_object() -> Result<()> {
    // The kinds that the chart has, and those that controllers make of them. The pod of `helm test`
    // stays for its log until the next one.
    const KINDS: &str =
        "clusterroles,clusterrolebindings,configmaps,controllerrevisions,daemonsets,\
        jobs,mutatingadmissionpolicies,mutatingadmissionpolicybindings,pods,roles,rolebindings,\
        runtimeclasses,secrets,serviceaccounts,validatingadmissionpolicies,\
        validatingadmissionpolicybindings";
    const SELECTOR: &str =
        "app.kubernetes.io/instance=caisson,app.kubernetes.io/component notin (test)";
    let (_turn, cluster) = cluster()?;
    let values = [
        ("admission.enabled", "true"),
        ("capacity.enabled", "true"),
        ("presets", r#"{ "strict": { "isolation": "strict" } }"#),
    ];
    caisson::upgrade_json(cluster.cluster(), &values)?;
    let objects = || -> Result<String> {
        let get = ["get", KINDS, "--all-namespaces", "--output=name"];
        let output = cluster.kubectl(&[&get[..], &["--selector", SELECTOR]].concat())?;
        Ok(output.ok()?.text())
    };
    let there = objects()?;
    for object in ["caisson-pods", "sandbox-strict", "daemonset.apps/caisson"] {
        ensure!(there.contains(object), "no {object} in {there}");
    }
    caisson::uninstall(cluster.cluster())?;
    let mut left = String::new();
    let gone = poll("the objects to go", LIMIT, || {
        left = objects().ok()?;
        left.trim().is_empty().then_some(())
    });
    gone.with_context(|| left.clone())?;
    let releases = ["get", "secrets", "--all-namespaces", "--output=name"];
    let releases = [&releases[..], &["--selector", "owner=helm,name=caisson"]].concat();
    assert_eq!(cluster.kubectl(&releases)?.ok()?.text().trim(), "");
    Ok(())
}

/// Returns the one node.
fn node(cluster: &TestCluster) -> Result<Value> {
    let nodes = cluster.kubectl(&["get", "nodes", "--output=json"])?.ok()?;
    let nodes: Value = serde_json::from_slice(&nodes.stdout)?;
    Ok(nodes["items"][0].clone())
}

/// Returns Caisson's condition of the node, or null.
fn condition(node: &Value) -> Value {
    let all = node["status"]["conditions"].as_array();
    let ours = all
        .into_iter()
        .flatten()
        .find(|found| found["type"] == "CaissonReady");
    ours.cloned().unwrap_or_default()
}
