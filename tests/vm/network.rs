//! What is in a pod's network namespace is in the guest: as CNI made it, by the same names, reachable both ways.

use anyhow::Result;
use caisson_tests::{
    bridge::{Bridge, Namespace, GATEWAY, GATEWAY6},
    ContainerBuilder, Node, Runtime,
};
use rstest::rstest;

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn gateway_is_reached_from_the_container(#[case] runtime: Runtime) -> Result<()> {
    let node = Node::shared();
    let bridge = Bridge::new(node)?;
    let pod = bridge.pod(node, 2)?;
    let pings = format!("ping -c 2 -w 10 {GATEWAY} && ping -c 2 -w 10 {GATEWAY6}");
    let ping = container(node, runtime, &pod).sh(&pings).run()?;
    assert_eq!(ping.code, 0, "{}", ping.text());
    Ok(())
}

/// A container in a pod's namespace.
fn container<'n>(node: &'n Node, runtime: Runtime, pod: &Namespace) -> ContainerBuilder<'n> {
    let container = node.container("busybox").runtime(runtime);
    container.flag("--with-ns", pod.flag())
}
