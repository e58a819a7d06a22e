//! Tests that NetworkPolicies hold for pods in VMs as for others. kube-router enforces them.

use anyhow::Result;
use caisson_tests::{
    command::poll,
    k8s::{kube_router, Namespace, Pod, TestCluster, LIMIT},
    Runtime,
};
use rstest::rstest;
use serde_json::json;

const SERVER: &str = "mkdir /www; echo hello > /www/index.html; exec httpd -f -p 8080 -h /www";

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn pod_is_reached_by_those_alone_that_its_policy_names(#[case] runtime: Runtime) -> Result<()> {
    let namespace = namespace()?;
    let server = namespace
        .pod("server")
        .runtime(runtime)
        .sh(SERVER)
        .start()?;
    let friend = namespace
        .pod("friend")
        .runtime(runtime)
        .sh("sleep 1000")
        .start()?;
    let other = namespace
        .pod("other")
        .runtime(runtime)
        .sh("sleep 1000")
        .start()?;
    reaches(&other, &server)?;
    policy(
        &namespace,
        "server",
        &json!({
            "policyTypes": ["Ingress"],
            "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "friend" } } }] }],
        }),
    )?;
    is_cut_off(&other, &server)?;
    reaches(&friend, &server)?;
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn pod_reaches_those_alone_that_its_policy_names(#[case] runtime: Runtime) -> Result<()> {
    let namespace = namespace()?;
    let friend = namespace
        .pod("friend")
        .runtime(Runtime::Runc)
        .sh(SERVER)
        .start()?;
    let other = namespace
        .pod("other")
        .runtime(Runtime::Runc)
        .sh(SERVER)
        .start()?;
    let client = namespace
        .pod("client")
        .runtime(runtime)
        .sh("sleep 1000")
        .start()?;
    reaches(&client, &other)?;
    policy(
        &namespace,
        "client",
        &json!({
            "policyTypes": ["Egress"],
            "egress": [{ "to": [{ "podSelector": { "matchLabels": { "app": "friend" } } }] }],
        }),
    )?;
    is_cut_off(&client, &other)?;
    reaches(&client, &friend)?;
    Ok(())
}

#[test]
fn policy_and_egress_list_each_refuse_what_the_other_allows() -> Result<()> {
    let namespace = namespace()?;
    let server = |name: &str| {
        namespace
            .pod(name)
            .runtime(Runtime::Runc)
            .sh(SERVER)
            .start()
    };
    let (both, by_the_list, by_the_policy) = (
        server("both")?,
        server("by-the-list")?,
        server("by-the-policy")?,
    );
    let list = format!("allow: {}:8080, {}:8080", both.ip()?, by_the_list.ip()?);
    let client = namespace
        .pod("client")
        .annotation("caisson.dev/egress", &list)
        .sh("sleep 1000")
        .start()?;
    reaches(&client, &by_the_list)?;
    policy(
        &namespace,
        "client",
        &json!({
            "policyTypes": ["Egress"],
            "egress": [{ "to": [{ "podSelector": { "matchExpressions": [
                { "key": "app", "operator": "In", "values": ["both", "by-the-policy"] },
            ] } }] }],
        }),
    )?;
    is_cut_off(&client, &by_the_list)?;
    is_cut_off(&client, &by_the_policy)?;
    reaches(&client, &both)?;
    Ok(())
}

fn namespace() -> Result<Namespace<'static>> {
    let cluster = TestCluster::shared();
    kube_router::start(cluster);
    cluster.namespace()
}

/// Applies a NetworkPolicy for the pods whose label `app` has this value.
fn policy(namespace: &Namespace<'_>, app: &str, spec: &serde_json::Value) -> Result<()> {
    let mut spec = spec.clone();
    spec["podSelector"] = json!({ "matchLabels": { "app": app } });
    namespace.apply(&json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": app }, "spec": spec,
    }))
}

/// Waits until `client` gets an answer of `server`: kube-router follows a change in a moment.
fn reaches(client: &Pod<'_>, server: &Pod<'_>) -> Result<()> {
    let what = format!("{} to reach {}", client.name(), server.name());
    poll(&what, LIMIT, || {
        (get(client, server).ok()? == "hello").then_some(())
    })
}

/// Waits until `client` gets none.
fn is_cut_off(client: &Pod<'_>, server: &Pod<'_>) -> Result<()> {
    let what = format!("{} to be cut off from {}", client.name(), server.name());
    poll(&what, LIMIT, || {
        get(client, server).ok()?.is_empty().then_some(())
    })
}

/// Returns what `client` gets of `server`, or the empty text where it gets no answer.
fn get(client: &Pod<'_>, server: &Pod<'_>) -> Result<String> {
    let address = server.ip()?;
    client.exec(&format!(
        "timeout 5 wget -q -O - http://{address}:8080/ || true"
    ))
}
