//! Tests what a kubelet measures of a pod and acts on: metrics, resize in place, eviction.

use anyhow::{Context, Result};
use caisson_tests::{
    command,
    k8s::{Pod, TestCluster, LIMIT},
    Runtime,
};
use rstest::rstest;
use serde_json::{json, Value};

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn top_pod_shows_cpu_and_memory_of_the_container(#[case] runtime: Runtime) -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    let pod = namespace.pod("busy").runtime(runtime);
    let _pod = pod.sh("while :; do :; done").start()?;
    // A line is, for example, `busy   main   412m   3Mi`.
    let top = ["top", "pod", "busy", "--containers", "--no-headers"];
    let (cpu, memory) = command::poll("figures of the container", LIMIT, || {
        let top = namespace.kubectl(&top).ok()?.ok().ok()?.text();
        let columns: Vec<&str> = top.split_whitespace().collect();
        let [_, "main", cpu, memory] = columns[..] else {
            return None;
        };
        let cpu: u32 = cpu.strip_suffix('m')?.parse().ok()?;
        let memory: u32 = memory.strip_suffix("Mi")?.parse().ok()?;
        (cpu > 0).then_some((cpu, memory))
    })?;
    assert!((50..1500).contains(&cpu), "{cpu}m");
    assert!(memory < 64, "{memory}Mi");
    Ok(())
}

/// The summary, from which the metrics server gets its figures, has them for the pod too.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn kubelets_summary_has_cpu_and_memory_of_the_pod(#[case] runtime: Runtime) -> Result<()> {
    let cluster = TestCluster::shared();
    let namespace = cluster.namespace()?;
    let pod = namespace.pod("busy").runtime(runtime);
    let pod = pod.sh("while :; do :; done").start()?;
    let node = pod.get("{.spec.nodeName}")?;
    let path = format!("/api/v1/nodes/{node}/proxy/stats/summary");
    let measured = || {
        let summary = cluster.kubectl(&["get", "--raw", &path]).ok()?.ok().ok()?;
        let summary: Value = serde_json::from_slice(&summary.stdout).ok()?;
        let mut pods = summary["pods"].as_array()?.iter();
        let ours = pods.find(|found| {
            found["podRef"]["namespace"] == namespace.name() && found["podRef"]["name"] == "busy"
        })?;
        let main = &ours["containers"][0];
        let all = [
            &ours["cpu"]["usageNanoCores"],
            &ours["memory"]["workingSetBytes"],
            &main["cpu"]["usageNanoCores"],
            &main["memory"]["workingSetBytes"],
        ];
        all.iter()
            .all(|figure| figure.as_u64() > Some(0))
            .then_some(())
    };
    command::poll("figures of the pod and its container", LIMIT, measured)
}

/// Prometheus gets a container's series here: docs/install.md.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn kubelets_resource_metrics_have_the_containers_series(#[case] runtime: Runtime) -> Result<()> {
    let cluster = TestCluster::shared();
    let namespace = cluster.namespace()?;
    let pod = namespace.pod("busy").runtime(runtime);
    let pod = pod.sh("while :; do :; done").start()?;
    let node = pod.get("{.spec.nodeName}")?;
    let path = format!("/api/v1/nodes/{node}/proxy/metrics/resource");
    let of_container = format!("namespace=\"{}\",pod=\"busy\"", namespace.name());
    let measured = |name: &str| {
        let metrics = cluster.kubectl(&["get", "--raw", &path]).ok()?.ok().ok()?;
        let text = metrics.text();
        let is_ours = |line: &&str| {
            line.starts_with(&format!("{name}{{container=\"main\"")) && line.contains(&of_container)
        };
        // A line is `NAME{LABELS} VALUE TIMESTAMP`.
        let line = text.lines().find(is_ours)?;
        let value: f64 = line.split("} ").nth(1)?.split(' ').next()?.parse().ok()?;
        (value > 0.0).then_some(())
    };
    for name in [
        "container_cpu_usage_seconds_total",
        "container_memory_working_set_bytes",
        "container_start_time_seconds",
    ] {
        command::poll(name, LIMIT, || measured(name))?;
    }
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn memory_limit_is_raised_in_place(#[case] runtime: Runtime) -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    let limits =
        |memory: &str| json!({ "requests": { "memory": memory }, "limits": { "memory": memory } });
    let pod = namespace.pod("grows").runtime(runtime);
    let pod = pod
        .sh("sleep 1000")
        .main(|main| main["resources"] = limits("64Mi"));
    let pod = pod.start()?;
    let patch =
        json!({ "spec": { "containers": [{ "name": "main", "resources": limits("320Mi") }] } });
    let args = ["patch", "pod", "grows", "--subresource=resize", "--patch"];
    let patch = patch.to_string();
    namespace.kubectl(&[&args[..], &[&patch]].concat())?.ok()?;
    command::poll("the new limit", LIMIT, || {
        (limit(&pod).ok()? == 320 << 20).then_some(())
    })?;
    // tail holds all of it, which is more than the limit was before.
    let line = "dd if=/dev/zero bs=1M count=100 2>/dev/null | tail -c 104857600 | wc -c";
    assert_eq!(pod.exec(line)?, "104857600");
    assert_eq!(pod.get("{.status.containerStatuses[0].restartCount}")?, "0");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn pod_that_overfills_its_empty_dir_is_evicted(#[case] runtime: Runtime) -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    let pod = namespace.pod("fills").runtime(runtime);
    let pod = pod.sh("dd if=/dev/zero of=/data/fill bs=1M count=20; sleep 1000");
    let pod = pod.spec(|spec| {
        spec["volumes"] = json!([{ "name": "data", "emptyDir": { "sizeLimit": "2Mi" } }]);
        spec["containers"][0]["volumeMounts"] = json!([{ "name": "data", "mountPath": "/data" }]);
    });
    let pod = pod.create()?;
    pod.described(&["Evicted", "exceeds the limit \"2Mi\""])?;
    Ok(())
}

/// A drain requests evictions in this way.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn eviction_ends_the_pod_by_sigterm(#[case] runtime: Runtime) -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    let pod = namespace.pod("leaves").runtime(runtime);
    let pod = pod.sh("trap 'echo was told; exit' TERM; echo waits; while :; do sleep 0.1; done");
    let pod = pod
        .spec(|spec| spec["terminationGracePeriodSeconds"] = 60.into())
        .start()?;
    pod.wait_for_log("waits")?;
    let mut follow = pod.kubectl_command("logs", &["--follow"]);
    let follow = command::spawn(&mut follow, None)?;
    let eviction = json!({
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": { "name": pod.name(), "namespace": namespace.name() },
    });
    let path = format!(
        "/api/v1/namespaces/{}/pods/{}/eviction",
        namespace.name(),
        pod.name()
    );
    let mut create = namespace.kubectl_command();
    create.args(["create", "--raw", &path, "--filename", "-"]);
    let stdin = command::Stdin::from(eviction.to_string().into_bytes());
    command::run(&mut create, Some(stdin), LIMIT)?.ok()?;
    pod.wait("delete")?;
    let said = follow.finish(LIMIT)?.text();
    assert!(said.contains("was told"), "{said}");
    Ok(())
}

/// Returns the limit in bytes as the container sees it, with cgroup version 1 or 2.
fn limit(pod: &Pod<'_>) -> Result<u64> {
    let line = "cd /sys/fs/cgroup; cat memory.max 2>/dev/null || cat memory/memory.limit_in_bytes";
    pod.exec(line)?.parse().context("a number of bytes")
}
