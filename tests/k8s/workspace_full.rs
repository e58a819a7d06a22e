//! Tests deploy/examples/workspace-full: a warm workspace with a browser and a terminal becomes
//! somebody's, and is gone without a trace when it is given back.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use anyhow::{ensure, Context, Result};
use caisson_tests::{
    command,
    k8s::{kube_router, Namespace, Pod, LIMIT},
    proc, Runtime,
};
use serde_json::Value;

use crate::agent_sandbox::{cluster, pack_greeting, prepared, text_of, warm_pod, CLAIMED, POD};

/// What a claim gives dora.
const CLAIM: &str = r#"{
    "skills": "greeting@1.0", "home": "persistent/dora", "env": {"USER_NAME": "dora"},
    "secretFd": "dora"
}"#;

/// Returns a workspace that is dora's. The tests that look at it share it.
fn doras() -> Result<Pod<'static>> {
    static NAME: Mutex<Option<String>> = Mutex::new(None);
    let mut name = NAME.lock().unwrap_or_else(PoisonError::into_inner);
    let namespace = &prepared().workspaces;
    if name.is_none() {
        *name = Some(claim(namespace)?);
    }
    Ok(namespace.existing(name.as_deref().unwrap_or_default()))
}

#[test]
fn claimed_workspace_has_skill_home_variables_and_a_secret_by_descriptor() -> Result<()> {
    let pod = doras()?;
    let look = "/opt/skills/greeting/hello; grep -c ' /root virtiofs ' /proc/mounts; \
                echo $USER_NAME; cat <&$API_TOKEN";
    assert_eq!(pod.exec(look)?, "hello\n1\ndora\nan-example");
    Ok(())
}

#[test]
fn browser_answers_cdp_on_the_pods_address() -> Result<()> {
    let (workspace, gateway) = (doras()?, gateway("cdp")?);
    let address = workspace.ip()?;
    let version = gateway.exec(&format!("wget -q -O - http://{address}:9222/json/version"))?;
    let version: Value = serde_json::from_str(&version).context(version)?;
    let browser = version["Browser"].as_str().unwrap_or_default();
    ensure!(browser.starts_with("HeadlessChrome/"), "{version}");
    let pages = gateway.exec(&format!("wget -q -O - http://{address}:9222/json/list"))?;
    ensure!(pages.contains("about:blank"), "{pages}");
    Ok(())
}

#[test]
fn terminal_answers_on_the_pods_address() -> Result<()> {
    let (workspace, gateway) = (doras()?, gateway("terminal")?);
    let address = workspace.ip()?;
    let page = gateway.exec(&format!("wget -q -O - http://{address}:4200/"))?;
    ensure!(page.contains("Shell In A Box"), "{page}");
    Ok(())
}

#[test]
fn workspace_is_reached_by_its_gateway_alone() -> Result<()> {
    kube_router::start(cluster());
    let (workspace, gateway) = (doras()?, gateway("beside")?);
    let stranger = prepared().workspaces.pod("stranger");
    let stranger = stranger.runtime(Runtime::Runc).sh("sleep 1000").start()?;
    let terminal = format!("timeout 5 wget -q -O - http://{}:4200/", workspace.ip()?);
    command::poll("the NetworkPolicy to hold", LIMIT, || {
        (stranger.try_exec(&terminal).ok()?.code != 0).then_some(())
    })?;
    let page = gateway.exec(&terminal)?;
    ensure!(page.contains("Shell In A Box"), "{page}");
    Ok(())
}

#[test]
fn workspace_does_not_reach_what_its_egress_does_not_name() -> Result<()> {
    let workspace = doras()?;
    let path = "--output=jsonpath={.spec.clusterIP}";
    let get = ["get", "service", "kubernetes", "--namespace=default", path];
    let api = cluster().kubectl(&get)?.ok()?.line();
    // The same from a pod without the annotation.
    gateway("control")?.exec(&format!("echo | nc -w 5 {api} 443"))?;
    let connect = format!("curl --silent --max-time 5 --insecure https://{api}:443");
    let refused = workspace.try_exec(&connect)?;
    assert_eq!(refused.code, 28, "{}", refused.errors());
    let name = format!("{}/{}", prepared().workspaces.name(), workspace.name());
    let egress = command::run(cluster().caisson().args(["egress", &name]), None, LIMIT)?;
    let egress = egress.ok()?.text();
    ensure!(egress.contains("*.pythonhosted.org:443"), "{egress}");
    Ok(())
}

#[test]
fn workspace_that_is_given_back_leaves_nothing_but_the_home() -> Result<()> {
    let namespace = &prepared().workspaces;
    // The pool has started another one.
    let pod = warm_pod(namespace, Some(doras()?.name()))?;
    let id = pod.get("{.metadata.uid}")?;
    let claim = text_of("workspace-full", "claim")?;
    namespace.apply_text(&claim.replace("dora", "erik"))?;
    namespace.wait("sandboxclaim/erik", "condition=Ready")?;
    pod.claim(&CLAIM.replace("dora", "erik"))?;
    pod.wait(CLAIMED)?;
    pod.exec("echo kept > ~/note")?;
    let name = pod.name().to_owned();
    namespace
        .kubectl(&["delete", "sandboxclaim", "erik"])?
        .ok()?;
    pod.wait("delete")?;
    let listed = |what: &[&str]| {
        let output = command::run(cluster().caisson().args(what), None, LIMIT)?;
        anyhow::Ok(output.ok()?.text())
    };
    let pods = listed(&["list"])?;
    ensure!(!pods.contains(&name), "{pods}");
    let homes = listed(&["home", "list"])?;
    ensure!(homes.contains("erik"), "{homes}");
    let running = proc::all()
        .into_iter()
        .find(|process| process.command.contains(&id));
    ensure!(running.is_none(), "{running:?}");
    Ok(())
}

/// Has dora claim a warm workspace. Returns its pod's name. Prints how long it takes.
fn claim(namespace: &Namespace<'_>) -> Result<String> {
    pack_greeting(cluster())?;
    cluster().image_as("workspace", "localhost/workspace:1")?;
    namespace.apply_text(&text_of("workspace-full", "workspaces")?)?;
    let warm = warm_pod(namespace, None)?;
    let began = Instant::now();
    namespace.apply_text(&text_of("workspace-full", "claim")?)?;
    command::poll("the Sandbox to name its pod", LIMIT, || {
        (namespace.get("sandbox/dora", POD).ok()? == warm.name()).then_some(())
    })?;
    warm.claim(CLAIM)?;
    warm.wait(CLAIMED)?;
    let claimed = began.elapsed();
    warm.exec("true")?;
    println!(
        "a workspace is claimed after {claimed:?}, runs a program after {:?}",
        began.elapsed()
    );
    Ok(warm.name().to_owned())
}

/// Returns a pod that the NetworkPolicy lets reach workspaces.
fn gateway(name: &str) -> Result<Pod<'static>> {
    let pod = prepared().workspaces.pod(name).label("app", "gateway");
    pod.runtime(Runtime::Runc).sh("sleep 1000").start()
}
