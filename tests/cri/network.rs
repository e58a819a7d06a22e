//! Tests the pod's network: addresses, pods that reach each other over the CNI bridge,
//! port-forward.

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use caisson_tests::{
    command,
    cri::{Container, CriNode, Pod},
    paths, Runtime,
};
use rstest::rstest;

const LIMIT: Duration = Duration::from_secs(30);
const PORT: u16 = 8080;

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn interface_has_the_addresses_that_cri_says(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let container = pod.container("busybox");
    let shown = container
        .args(["ip", "addr", "show", "eth0"])
        .run()?
        .ok()?
        .text();
    let addresses = pod.addresses()?;
    assert!(addresses.iter().any(IpAddr::is_ipv4) && addresses.iter().any(IpAddr::is_ipv6));
    for address in addresses {
        assert!(
            shown.contains(&format!("{address}/")),
            "{address} in {shown}"
        );
    }
    assert!(shown.contains("mtu 1500"), "{shown}");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn routes_are_those_of_the_network(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?.container("busybox").args(["sleep", "1000"]);
    let container = container.start()?;
    for (family, host) in [("-4", "10.213."), ("-6", "fd00:ca15:")] {
        let routes = container.sh(&format!("ip {family} route show default"))?;
        assert!(
            routes.starts_with(&format!("default via {host}")),
            "{routes}"
        );
        assert!(routes.contains("dev eth0"), "{routes}");
    }
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn pod_is_reached_from_the_node(#[case] runtime: Runtime) -> Result<()> {
    let pod = CriNode::shared().pod().runtime(runtime).start()?;
    let _server = server(&pod, PORT)?;
    for address in pod.addresses()? {
        let address = SocketAddr::new(address, PORT);
        TcpStream::connect_timeout(&address, LIMIT).with_context(|| address.to_string())?;
    }
    Ok(())
}

#[rstest]
#[case::from_runc_to_runc(Runtime::Runc, Runtime::Runc)]
#[case::from_caisson_to_caisson(Runtime::Caisson, Runtime::Caisson)]
#[case::from_runc_to_caisson(Runtime::Runc, Runtime::Caisson)]
#[case::from_caisson_to_runc(Runtime::Caisson, Runtime::Runc)]
fn pods_reach_each_other(#[case] from: Runtime, #[case] to: Runtime) -> Result<()> {
    let node = CriNode::shared();
    let far = node.pod().runtime(to).start()?;
    let _server = server(&far, PORT)?;
    for address in far.addresses()? {
        let address = SocketAddr::new(address, PORT).to_string();
        let client = pod(from)?.container("busybox");
        let output = client.args(["probe", "ask", &address, "hello"]).run()?;
        assert_eq!(output.ok()?.line(), "hello", "{address}");
    }
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn servers_of_two_pods_may_have_the_same_port(#[case] runtime: Runtime) -> Result<()> {
    let node = CriNode::shared();
    let pods = [
        node.pod().runtime(runtime).start()?,
        node.pod().runtime(Runtime::Runc).start()?,
    ];
    let _servers = [server(&pods[0], PORT)?, server(&pods[1], PORT)?];
    assert_ne!(pods[0].ipv4()?, pods[1].ipv4()?);
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn network_stays_when_a_container_restarts(#[case] runtime: Runtime) -> Result<()> {
    let pod = CriNode::shared().pod().runtime(runtime).start()?;
    let shown = || {
        let container = pod.container("busybox");
        anyhow::Ok(
            container
                .args(["ip", "-o", "addr", "show", "eth0"])
                .run()?
                .ok()?
                .text(),
        )
    };
    let first = shown()?;
    assert!(first.contains(&pod.ipv4()?.to_string()), "{first}");
    assert_eq!(shown()?, first);
    Ok(())
}

#[test]
fn host_network_is_refused_with_a_reason() -> Result<()> {
    let error = CriNode::shared().pod().host_network().start().err();
    let error = format!("{:#}", error.context("it starts")?);
    assert!(error.contains("network"), "{error}");
    Ok(())
}

#[rstest]
#[case::runc_loopback(Runtime::Runc, "127.0.0.1:9001")]
#[case::runc_any(Runtime::Runc, "0.0.0.0:9003")]
#[case::caisson_loopback(Runtime::Caisson, "127.0.0.1:9001")]
#[case::caisson_any(Runtime::Caisson, "0.0.0.0:9003")]
fn port_forward_reaches_a_server(#[case] runtime: Runtime, #[case] address: &str) -> Result<()> {
    let pod = pod(runtime)?;
    let container = pod.container("busybox").args(["probe", "echo", address]);
    let container = container.start()?;
    container.wait_for_output("listening")?;
    let port = address.parse::<SocketAddr>()?.port();
    let mut forward = pod.forward(port)?;
    forward.write("through the node\n")?;
    forward.wait_for("through the node\n")?;
    Ok(())
}

/// Connects as containerd's port-forward does. It reaches IPv6's loopback if the node's own
/// /etc/hosts has a localhost there.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn loopback_of_the_network_namespace_is_the_pods(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    for address in ["127.0.0.1:9006", "[::1]:9007"] {
        let container = pod.container("busybox").args(["probe", "echo", address]);
        let container = container.start()?;
        container.wait_for_output("listening")?;
        let mut ask = Command::new("nsenter");
        ask.arg(format!("--net={}", pod.network_namespace()?.display()))
            .arg(paths::probe()?)
            .args(["ask", address, "hello"]);
        assert_eq!(command::run(&mut ask, None, LIMIT)?.ok()?.line(), "hello");
    }
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn port_forward_to_a_closed_port_is_refused(#[case] runtime: Runtime) -> Result<()> {
    let error = pod(runtime)?.forward(9100)?.read_to_end(LIMIT).err();
    let error = format!("{:#}", error.context("it is open")?);
    assert!(error.contains("connection refused"), "{error}");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn fifty_port_forwards_are_open_at_once(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let container = pod
        .container("busybox")
        .args(["probe", "echo", "127.0.0.1:9004"]);
    let container = container.start()?;
    container.wait_for_output("listening")?;
    let mut forwards = (0..50)
        .map(|_| pod.forward(9004))
        .collect::<Result<Vec<_>>>()?;
    for (n, forward) in forwards.iter_mut().enumerate() {
        forward.write(format!("number {n}\n"))?;
    }
    for (n, forward) in forwards.iter_mut().enumerate() {
        forward.wait_for(&format!("number {n}\n"))?;
    }
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn port_forward_carries_a_megabyte_both_ways(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let container = pod
        .container("busybox")
        .args(["probe", "echo", "127.0.0.1:9005"]);
    let container = container.start()?;
    container.wait_for_output("listening")?;
    let mut forward = pod.forward(9005)?;
    for n in 0..16 {
        let block = format!("{n:04}").repeat(16 * 1024);
        forward.write(&block)?;
        forward.wait_for(&block)?;
    }
    Ok(())
}

/// Starts a server that listens on every address of its pod.
fn server<'p>(pod: &'p Pod<'_>, port: u16) -> Result<Container<'p>> {
    let container = pod.container("busybox");
    let container = container
        .args(["probe", "echo", &format!("[::]:{port}")])
        .start()?;
    container.wait_for_output("listening")?;
    Ok(container)
}

fn pod(runtime: Runtime) -> Result<&'static Pod<'static>> {
    CriNode::shared().shared_pod(runtime)
}
