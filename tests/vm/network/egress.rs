//! Tests the egress of a container that has a VM to itself. `cri/egress.rs` has the rest.

use anyhow::Result;
use caisson_node::traffic::egress::{Filter, Resolver};
use caisson_tests::{
    bridge::{Bridge, GATEWAY, GATEWAY6},
    command, metrics,
    node::{caisson, LIMIT},
    Node, Runtime,
};
use rstest::rstest;

use super::container;

/// runc shows that the bridge answers: it knows no such annotation.
#[rstest]
#[case::runc(Runtime::Runc, "deny", true)]
#[case::caisson_denied(Runtime::Caisson, "deny", false)]
#[case::caisson_allowed(Runtime::Caisson, "allow: 10.9.0.0/24, fd09::/64", true)]
fn container_reaches_what_its_egress_has(
    #[case] runtime: Runtime,
    #[case] egress: &str,
    #[case] reached: bool,
) -> Result<()> {
    let node = Node::shared();
    let bridge = Bridge::new(node)?;
    let pod = bridge.pod(node, 2)?;
    let annotation = format!("caisson.dev/egress={egress}");
    let container = container(node, runtime, &pod)
        .flag("--annotation", &annotation)
        .args(["sleep", "1000"])
        .start()?;
    for address in [GATEWAY, GATEWAY6] {
        let ping = container.exec(["ping", "-c", "2", "-w", "4", address])?;
        assert_eq!(ping.code == 0, reached, "{address}");
    }
    Ok(())
}

#[test]
fn packets_that_were_denied_are_in_the_nodes_metrics() -> Result<()> {
    let node = Node::shared();
    let bridge = Bridge::new(node)?;
    let pod = bridge.pod(node, 2)?;
    let container = container(node, Runtime::Caisson, &pod)
        .flag("--annotation", "caisson.dev/egress=deny")
        .args(["sleep", "1000"])
        .start()?;
    let ping = container.exec(["ping", "-c", "2", "-w", "4", GATEWAY])?;
    assert_ne!(ping.code, 0);
    let series = format!(
        "caisson_pod_egress_denied_packets_total{{namespace=\"\",pod=\"{}\"}}",
        container.id()
    );
    command::poll("the packets to be counted", LIMIT, || {
        let output = command::run(caisson(node).ok()?.arg("metrics"), None, LIMIT).ok()?;
        (metrics::value(&output.text(), &series).ok()? >= 1.0).then_some(())
    })
}

#[test]
fn kernel_takes_the_filter_with_and_without_its_parts() -> Result<()> {
    let filter = Filter::new(&"allow: 10.0.0.0/8:443, 2001:db8::/32, a.org".parse()?, &[])?;
    let resolver = Resolver {
        interface: 1,
        mac: [2, 0, 0, 0, 0, 1],
    };
    for resolver in [None, Some(resolver)] {
        for own_addresses in [false, true] {
            filter.outward(own_addresses, resolver)?;
        }
    }
    filter.inward()?;
    Ok(())
}
