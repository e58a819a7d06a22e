//! Tests pods that are claimed by their annotation `caisson.dev/claim`, which the node agent
//! watches.

use anyhow::Result;
use caisson_local::caisson;
use caisson_tests::k8s::{Namespace, TestCluster};
use serde_json::json;

use crate::cluster;

const CONDITION: &str = "condition=caisson.dev/Claimed";

#[test]
fn annotated_pod_gets_its_claim_and_a_condition_and_an_event() -> Result<()> {
    let (_turn, cluster) = cluster()?;
    let namespace = watched(cluster)?;
    let keys = ["secret", "generic", "keys", "--from-literal=TOKEN=hunter2"];
    namespace
        .kubectl(&[&["create"], &keys[..]].concat())?
        .ok()?;
    let pod = namespace.pod("warm").sh("sleep 1000").start()?;
    let claim = json!({
        "home": "ephemeral", "env": { "WHO": "anna" }, "secret": "keys", "secretFd": "keys",
    });
    pod.claim(&claim.to_string())?;
    pod.wait(CONDITION)?;
    let look = "echo $WHO; cat /run/caisson/claim/secrets/TOKEN; echo; cat <&$TOKEN; echo; \
                grep -c ' /root virtiofs ' /proc/mounts";
    assert_eq!(pod.exec(look)?, "anna\nhunter2\nhunter2\n1");
    pod.described(&["Claimed", "claimed, in main"]).map(drop)
}

#[test]
fn claim_that_fails_says_why_and_is_made_again_when_it_has_changed() -> Result<()> {
    let (_turn, cluster) = cluster()?;
    let namespace = watched(cluster)?;
    let pod = namespace.pod("warm").sh("sleep 1000").start()?;
    pod.claim(r#"{"skills": "nosuch@1"}"#)?;
    pod.wait(&format!("{CONDITION}=False"))?;
    pod.described(&["ClaimFailed", "nosuch@1"])?;
    pod.claim(r#"{"env": {"WHO": "anna"}}"#)?;
    pod.wait(CONDITION)?;
    assert_eq!(pod.exec("echo $WHO")?, "anna");
    Ok(())
}

#[test]
fn claim_of_a_secret_that_the_agent_may_not_read_names_the_charts_value() -> Result<()> {
    let (_turn, cluster) = cluster()?;
    watch(cluster, &[])?;
    let namespace = cluster.namespace()?;
    let pod = namespace.pod("warm").sh("sleep 1000").start()?;
    pod.claim(r#"{"secret": "keys"}"#)?;
    pod.wait(&format!("{CONDITION}=False"))?;
    pod.described(&["claims.secretNamespaces"]).map(drop)
}

/// Returns a namespace whose Secrets the agent may read.
fn watched(cluster: &'static TestCluster) -> Result<Namespace<'static>> {
    let namespace = cluster.namespace()?;
    watch(cluster, &[namespace.name()])?;
    Ok(namespace)
}

fn watch(cluster: &TestCluster, namespaces: &[&str]) -> Result<()> {
    let claims = json!({ "enabled": true, "secretNamespaces": namespaces }).to_string();
    caisson::upgrade_json(cluster.cluster(), &[("claims", &claims)])?;
    cluster.cluster().kubectl(&caisson::ROLLOUT).map(drop)
}
