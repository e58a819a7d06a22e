//! Tests containers within a container: Debian's podman in a privileged pod, with its own network
//! behind the pod's.
//!
//! podman's storage is on an emptyDir, where podman makes overlays itself. The guest's kernel loads
//! the modules that this and the network need (overlay, bridge, veth, nf_tables and xtables) on
//! demand.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use anyhow::Result;
use caisson_tests::{
    command,
    cri::{Container, CriNode, Pod},
    fixture,
    node::LIMIT,
    Runtime,
};
use rstest::rstest;

/// The port of the pod that podman forwards to the inner container's port 80.
const PUBLISHED: u16 = 8080;

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn inner_container_is_reached_by_the_outer(#[case] runtime: Runtime) -> Result<()> {
    let outer = outer(runtime)?;
    let address = podman(outer, "inspect -f '{{.NetworkSettings.IPAddress}}' inner")?;
    assert!(address.starts_with("10.88."), "{address}");
    let line = format!("busybox wget -qO- http://{address}/name");
    assert_eq!(outer.sh(&line)?, "inner");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn published_port_of_the_inner_container_is_reached_from_another_pod(
    #[case] runtime: Runtime,
) -> Result<()> {
    let outer = outer(runtime)?;
    let url = format!("http://{}:{PUBLISHED}/name", outer.pod().ipv4()?);
    let client = client(runtime)?.container("busybox");
    let output = client.args(["wget", "-qO-", &url]).run()?.ok()?;
    assert_eq!(output.line(), "inner");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn inner_container_reaches_another_pod(#[case] runtime: Runtime) -> Result<()> {
    let outer = outer(runtime)?;
    let other = client(runtime)?;
    let server = other.container("busybox");
    let server = server
        .sh("mkdir /srv; echo other > /srv/name; echo ready; httpd -f -p 8000 -h /srv")
        .start()?;
    server.wait_for_output("ready")?;
    let url = format!("http://{}:8000/name", other.ipv4()?);
    assert_eq!(
        podman(outer, &format!("exec inner wget -qO- {url}"))?,
        "other"
    );
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn inner_container_has_its_image_as_an_overlay(#[case] runtime: Runtime) -> Result<()> {
    let outer = outer(runtime)?;
    let root = podman(outer, "exec inner grep ' / ' /proc/mounts")?;
    assert!(root.starts_with("overlay / overlay"), "{root}");
    Ok(())
}

/// iptables' older kind speaks to the kernel by socket options, for which the kernel loads no
/// module by itself.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn rule_of_iptables_older_kind_is_set(#[case] runtime: Runtime) -> Result<()> {
    let node = CriNode::shared();
    node.image("podman")?;
    let pod = node.pod().runtime(runtime).start()?;
    let container = pod.container("podman").capabilities(&["NET_ADMIN"], &[]);
    let line = "iptables-legacy -t nat -A OUTPUT -p tcp --dport 81 -j REDIRECT --to-ports 80 && iptables-legacy -t nat -S OUTPUT";
    let rules = container.sh(line).run()?.ok()?.text();
    assert!(rules.contains("--dport 81 -j REDIRECT"), "{rules}");
    Ok(())
}

/// Returns a container in which podman runs one called `inner` with a web server. There is one for
/// each runtime, since it takes a minute to start.
fn outer(runtime: Runtime) -> Result<&'static Container<'static>> {
    static OUTER: Mutex<Option<HashMap<Runtime, &'static Container<'static>>>> = Mutex::new(None);
    let mut known = OUTER.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_default();
    if let Some(container) = known.get(&runtime) {
        return Ok(container);
    }
    let pod = CriNode::shared().pod().runtime(runtime).privileged();
    let pod: &'static Pod = Box::leak(Box::new(pod.start()?));
    let images = pod.folder("images")?;
    fixture::archive("busybox", &images)?;
    let container = pod
        .container("podman")
        .privileged()
        .mount(&images, "/images")
        .mount(&pod.folder("storage")?, "/var/lib/containers")
        .args(["sleep", "100000"])
        .start()?;
    podman(&container, "load -q -i /images/busybox.tar")?;
    podman(
        &container,
        &format!(
            "run -d --name inner -p {PUBLISHED}:80 localhost/busybox:test \
             sh -c 'mkdir /srv; echo inner > /srv/name; exec httpd -f -p 80 -h /srv'"
        ),
    )?;
    command::poll("the inner server", LIMIT, || {
        let line = format!("busybox wget -qO- http://127.0.0.1:{PUBLISHED}/name");
        container.sh(&line).ok()
    })?;
    let container: &'static Container = Box::leak(Box::new(container));
    known.insert(runtime, container);
    Ok(container)
}

fn podman(outer: &Container, words: &str) -> Result<String> {
    let output = outer.exec(["sh", "-c", &format!("podman {words}")])?;
    Ok(output.ok()?.line())
}

fn client(runtime: Runtime) -> Result<&'static Pod<'static>> {
    CriNode::shared().shared_pod(runtime)
}
