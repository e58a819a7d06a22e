//! Tests a kubelet's probes of a container and its start and stop handlers: by exec, and by HTTP
//! and TCP from the node to the pod's address.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result};
use caisson_tests::{
    command,
    cri::{Container, CriNode, Pod},
    Runtime,
};
use rstest::rstest;

const LIMIT: Duration = Duration::from_secs(30);

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn http_probe_sees_whether_the_container_is_healthy(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let container = web_server(pod, 8101)?;
    for address in pod.addresses()? {
        container.sh("rm -f /srv/healthz")?;
        assert_eq!(http_status(address, 8101, "/healthz")?, 404);
        container.sh("echo ok > /srv/healthz")?;
        assert_eq!(http_status(address, 8101, "/healthz")?, 200);
    }
    Ok(())
}

/// A liveness probe comes every few seconds as long as the pod lives.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn http_probes_one_after_another_are_all_answered(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let _container = web_server(pod, 8102)?;
    let address = pod.ipv4()?;
    for number in 0..50 {
        let status = http_status(address, 8102, "/");
        assert_eq!(status.with_context(|| format!("probe {number}"))?, 404);
    }
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn tcp_probe_sees_whether_the_port_is_open(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let container = web_server(pod, 8103)?;
    for address in pod.addresses()? {
        let address = SocketAddr::new(address, 8103);
        TcpStream::connect_timeout(&address, LIMIT).with_context(|| address.to_string())?;
    }
    container.stop(Duration::ZERO)?;
    for address in pod.addresses()? {
        let error = TcpStream::connect_timeout(&SocketAddr::new(address, 8103), LIMIT).err();
        let kind = error.context("it is open")?.kind();
        assert_eq!(kind, std::io::ErrorKind::ConnectionRefused);
    }
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn exec_probe_sees_whether_the_container_is_healthy(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?.container("busybox");
    let container = container.args(["sleep", "1000"]).start()?;
    let probe = || container.exec_within(["cat", "/tmp/healthy"], Duration::from_secs(10));
    let before = probe()?;
    assert_eq!(before.code, 1);
    assert!(before.errors().contains("No such file"), "{before:?}");
    container.sh("echo well > /tmp/healthy")?;
    let after = probe()?;
    assert_eq!((after.code, after.line()), (0, "well".into()));
    Ok(())
}

/// The preStop handler runs while the container does, before the container is told to end.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn handlers_of_start_and_stop_run_in_the_container(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?.container("busybox");
    let line = "trap 'cat /tmp/handlers; exit 0' TERM; echo ready; while :; do sleep 0.1; done";
    let container = container.sh(line).start()?;
    container.sh("echo postStart >> /tmp/handlers")?;
    container.wait_for_output("ready")?;
    container.sh("echo preStop >> /tmp/handlers")?;
    container.stop(LIMIT)?;
    assert_eq!(container.status()?.exit_code, 0);
    assert_eq!(container.stdout()?, "ready\npostStart\npreStop\n");
    Ok(())
}

/// Returns the status of the answer to a GET from the node.
fn http_status(address: IpAddr, port: u16, path: &str) -> Result<u16> {
    let address = SocketAddr::new(address, port);
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: kube-probe/1.33\r\nConnection: close\r\n\r\n"
    );
    // At once, as the kubelet does: the server may answer the first line and close.
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).context("no status")?;
    status.parse().with_context(|| answer.clone())
}

/// Starts a web server on all addresses of its pod.
fn web_server<'p>(pod: &'p Pod<'_>, port: u16) -> Result<Container<'p>> {
    let line = format!("mkdir /srv; exec httpd -f -p {port} -h /srv");
    let container = pod.container("busybox").sh(&line).start()?;
    let line = format!("netstat -ltn | grep -q ':{port} '");
    command::poll("the web server", LIMIT, || container.sh(&line).ok())?;
    Ok(container)
}

fn pod(runtime: Runtime) -> Result<&'static Pod<'static>> {
    CriNode::shared().shared_pod(runtime)
}
