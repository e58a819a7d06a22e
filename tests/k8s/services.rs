//! Tests Services with kube-proxy and names with CoreDNS.

use std::collections::BTreeMap;

use anyhow::Result;
use caisson_tests::{
    command,
    k8s::{Namespace, Pod, TestCluster, LIMIT},
    Runtime,
};
use rstest::rstest;
use serde_json::json;

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn service_spreads_over_its_two_pods(#[case] runtime: Runtime) -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    let _pods = two_servers(&namespace, runtime)?;
    namespace.service("web", "web")?;
    let client = namespace
        .pod("client")
        .runtime(runtime)
        .sh("sleep 1000")
        .start()?;
    wait_for_service(&client)?;
    let answers = client.exec(
        "for i in $(seq 16); do timeout 5 wget -q -O - http://web/name || echo failed; done",
    )?;
    let mut counts = BTreeMap::new();
    for answer in answers.lines() {
        *counts.entry(answer).or_insert(0) += 1;
    }
    assert_eq!(
        counts.keys().copied().collect::<Vec<_>>(),
        ["web-0", "web-1"],
        "{counts:?}"
    );
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn pod_reaches_itself_by_its_service(#[case] runtime: Runtime) -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    let server = server(&namespace, "self", runtime)?;
    namespace.service("web", "web")?;
    wait_for_service(&server)?;
    assert_eq!(
        server.exec("timeout 5 wget -q -O - http://web/name")?,
        "self"
    );
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn names_of_services_and_pods_are_resolved(#[case] runtime: Runtime) -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    let pods = two_servers(&namespace, runtime)?;
    namespace.service("web", "web")?;
    namespace.apply(&json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "each" },
        "spec": { "clusterIP": "None", "selector": { "app": "web" }, "ports": [{ "port": 8080 }] },
    }))?;
    let client = namespace
        .pod("client")
        .runtime(runtime)
        .sh("sleep 1000")
        .start()?;
    let service = namespace.get("service/web", "{.spec.clusterIP}")?;
    let full = format!("web.{}.svc.cluster.local", namespace.name());
    for name in ["web", &full] {
        // The answer to a query made before the Service existed is cached for 5 s.
        command::poll(name, LIMIT, || {
            resolve(&client, name)
                .ok()
                .filter(|found| *found == [service.clone()])
        })?;
    }
    let mut addresses = [pods[0].ip()?, pods[1].ip()?];
    addresses.sort();
    command::poll("the headless Service", LIMIT, || {
        resolve(&client, "each")
            .ok()
            .filter(|found| *found == addresses)
    })?;
    assert_eq!(
        resolve(&client, "kubernetes.default.svc.cluster.local")?,
        ["10.96.0.1"]
    );
    assert!(resolve(&client, "no-such-service")?.is_empty());
    Ok(())
}

/// Resolves a name. Returns the addresses, sorted.
fn resolve(pod: &Pod<'_>, name: &str) -> Result<Vec<String>> {
    // nslookup fails if one of the names from the search list does not exist.
    let said = pod.try_exec(&format!("nslookup {name}"))?.text();
    let (_, answer) = said.split_once("Name:").unwrap_or_default();
    let mut found: Vec<_> = answer
        .lines()
        .filter_map(|line| Some(line.strip_prefix("Address:")?.trim().to_owned()))
        .collect();
    found.sort();
    found.dedup();
    Ok(found)
}

/// Starts `web-0` and `web-1`, which each serve their name.
fn two_servers<'n>(namespace: &'n Namespace<'n>, runtime: Runtime) -> Result<[Pod<'n>; 2]> {
    Ok([
        server(namespace, "web-0", runtime)?,
        server(namespace, "web-1", runtime)?,
    ])
}

fn server<'n>(namespace: &'n Namespace<'n>, name: &str, runtime: Runtime) -> Result<Pod<'n>> {
    let line = "mkdir /www; hostname > /www/name; exec httpd -f -h /www -p 8080";
    let pod = namespace
        .pod(name)
        .label("app", "web")
        .runtime(runtime)
        .sh(line);
    pod.main(|main| {
        main["readinessProbe"] =
            json!({ "httpGet": { "path": "/name", "port": 8080 }, "periodSeconds": 1 })
    })
    .start()
}

/// Waits until DNS and kube-proxy know a new Service, which takes a moment.
fn wait_for_service(pod: &Pod<'_>) -> Result<()> {
    command::poll("the Service", LIMIT, || {
        let output = pod
            .try_exec("timeout 5 wget -q -O - http://web/name")
            .ok()?;
        (output.code == 0).then_some(())
    })
}
