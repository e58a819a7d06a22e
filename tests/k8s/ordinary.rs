//! Tests what ordinary workloads use of Kubernetes, beside runc.

use anyhow::{ensure, Result};
use caisson_tests::{
    command::{self, poll, Stdin},
    k8s::{self, Namespace, TestCluster, LIMIT},
    registry, Runtime,
};
use rstest::rstest;
use serde_json::{json, Value};

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn changed_config_map_and_secret_reach_a_running_pod(#[case] runtime: Runtime) -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    namespace.apply(&json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "settings" },
        "data": { "colour": "blue" },
    }))?;
    namespace.apply(&json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "keys" },
        "stringData": { "token": "old" },
    }))?;
    let pod = namespace.pod("reads").runtime(runtime).sh("sleep 100000");
    let pod = pod.spec(|spec| {
        spec["volumes"] = json!([
            { "name": "settings", "configMap": { "name": "settings" } },
            { "name": "keys", "secret": { "secretName": "keys" } },
        ]);
        spec["containers"][0]["volumeMounts"] = json!([
            { "name": "settings", "mountPath": "/settings" },
            { "name": "keys", "mountPath": "/keys" },
        ]);
    });
    let pod = pod.start()?;
    let look = "cat /settings/colour; echo; cat /keys/token";
    assert_eq!(pod.exec(look)?, "blue\nold");
    for (object, change) in [
        ("configmap/settings", r#"{"data": {"colour": "green"}}"#),
        ("secret/keys", r#"{"stringData": {"token": "new"}}"#),
    ] {
        namespace
            .kubectl(&["patch", object, "--patch", change])?
            .ok()?;
    }
    poll("the changes", LIMIT, || {
        (pod.exec(look).ok()? == "green\nnew").then_some(())
    })
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn host_alias_is_resolved(#[case] runtime: Runtime) -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    let pod = namespace.pod("asks").runtime(runtime).sh("sleep 1000");
    let pod = pod.spec(|spec| {
        spec["hostAliases"] = json!([{ "ip": "192.0.2.7", "hostnames": ["db.internal", "db"] }]);
    });
    let pod = pod.start()?;
    assert_eq!(
        pod.exec("grep -w db /etc/hosts")?,
        "192.0.2.7\tdb.internal\tdb"
    );
    Ok(())
}

/// As `kubectl drain` asks for each pod.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn eviction_below_a_disruption_budget_is_refused(#[case] runtime: Runtime) -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    let pod = namespace
        .pod("guarded")
        .runtime(runtime)
        .sh("sleep 100000")
        .start()?;
    let budget = |least: u32| {
        namespace.apply(&json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
            "metadata": { "name": "guarded" },
            "spec": { "minAvailable": least, "selector": { "matchLabels": { "app": "guarded" } } },
        }))?;
        poll("the budget", LIMIT, || {
            let path = "{.status.observedGeneration}{.status.disruptionsAllowed}";
            let expected = format!("{}{}", if least == 1 { 1 } else { 2 }, 1 - least);
            (namespace.get("pdb/guarded", path).ok()? == expected).then_some(())
        })
    };
    budget(1)?;
    let refused = evict(&namespace, "guarded")?;
    ensure!(
        refused.contains("violate the pod's disruption budget"),
        "{refused}"
    );
    budget(0)?;
    evict(&namespace, "guarded")?;
    pod.wait("delete")
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn pod_of_a_higher_priority_takes_the_place_of_another(#[case] runtime: Runtime) -> Result<()> {
    let cluster = TestCluster::shared();
    let namespace = cluster.namespace()?;
    let classes = [("low", 1), ("high", 1000)];
    for (name, value) in classes {
        namespace.apply(&json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": { "name": class(&namespace, name) }, "value": value,
        }))?;
    }
    // Two of them don't fit onto the node.
    let node: Value = serde_json::from_slice(
        &cluster
            .kubectl(&["get", "nodes", "-o", "json"])?
            .ok()?
            .stdout,
    )?;
    let allocatable = node["items"][0]["status"]["allocatable"]["ephemeral-storage"].clone();
    let bytes: u64 = allocatable.as_str().unwrap_or_default().parse()?;
    let pod = |name: &str| {
        let pod = namespace.pod(name).runtime(runtime).sh("sleep 100000");
        pod.spec(|spec| {
            spec["priorityClassName"] = class(&namespace, name).into();
            spec["containers"][0]["resources"] =
                json!({ "requests": { "ephemeral-storage": (bytes / 5 * 3).to_string() } });
        })
    };
    let low = pod("low").start()?;
    let high = pod("high").start();
    for (name, _) in classes {
        cluster
            .kubectl(&["delete", "priorityclass", &class(&namespace, name)])?
            .ok()?;
    }
    high?;
    low.wait("delete")
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn image_of_a_private_registry_is_pulled_with_the_secret_of_the_pod(
    #[case] runtime: Runtime,
) -> Result<()> {
    let cluster = TestCluster::shared();
    let namespace = cluster.namespace()?;
    let (registry, image) = private_image(cluster)?;
    let server = format!("--docker-server={}", registry.address());
    let (user, password) = registry::LOGIN;
    let user = format!("--docker-username={user}");
    let password = format!("--docker-password={password}");
    namespace
        .kubectl(&[
            "create",
            "secret",
            "docker-registry",
            "login",
            &server,
            &user,
            &password,
        ])?
        .ok()?;
    let pod = namespace
        .pod("pulls")
        .runtime(runtime)
        .sh("sleep 1000")
        .main(|main| main["image"] = image.into())
        .spec(|spec| spec["imagePullSecrets"] = json!([{ "name": "login" }]));
    assert_eq!(pod.start()?.exec("echo here")?, "here");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn image_of_a_private_registry_without_a_secret_is_refused_with_the_reason(
    #[case] runtime: Runtime,
) -> Result<()> {
    let cluster = TestCluster::shared();
    let namespace = cluster.namespace()?;
    let (_registry, image) = private_image(cluster)?;
    let pod = namespace
        .pod("pulls")
        .runtime(runtime)
        .sh("sleep 1000")
        .main(|main| main["image"] = image.as_str().into())
        .create()?;
    pod.described(&["Failed to pull image", &image, "no basic auth credentials"])?;
    Ok(())
}

/// Starts a private registry with an image. Returns the image's name there.
fn private_image(cluster: &TestCluster) -> Result<(k8s::Registry<'_>, String)> {
    let registry = k8s::Registry::start_private(cluster)?;
    registry.serve_itself()?;
    let image = format!("{}/team/tool:1", registry.address());
    registry.publish("busybox", &image)?;
    Ok((registry, image))
}

fn class(namespace: &Namespace<'_>, name: &str) -> String {
    format!("{}-{name}", namespace.name())
}

/// Asks for a pod's eviction. Returns what the API server says to a refusal.
fn evict(namespace: &Namespace<'_>, pod: &str) -> Result<String> {
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": { "name": pod, "namespace": namespace.name() },
    });
    let path = format!(
        "/api/v1/namespaces/{}/pods/{pod}/eviction",
        namespace.name()
    );
    let mut create = namespace.kubectl_command();
    create.args(["create", "--raw", &path, "--filename", "-"]);
    let stdin = Stdin::from(eviction.to_string().into_bytes());
    Ok(command::run(&mut create, Some(stdin), LIMIT)?.errors())
}
