//! Tests that connections to the loopback of a pod's namespace, as containerd's port-forward makes
//! them, reach the servers in the guest.

use std::time::{Duration, Instant};

use anyhow::Result;
use caisson_tests::{
    bridge::{Bridge, Namespace},
    command,
    node::LIMIT,
    Container, Node, Runtime,
};
use rstest::rstest;

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn server_on_a_loopback_address_is_reached_by_that_alone(#[case] runtime: Runtime) -> Result<()> {
    let (_bridge, pod, container) = pod(runtime)?;
    serve(&container, "127.0.0.1:8004", "four")?;
    serve(&container, "[::1]:8006", "six")?;
    assert_eq!(get(&pod, "127.0.0.1:8004")?, "four");
    assert_eq!(get(&pod, "[::1]:8006")?, "six");
    for other in ["[::1]:8004", "127.0.0.1:8006"] {
        let error = get(&pod, other).unwrap_err().to_string();
        assert!(error.contains("refused"), "{other}: {error}");
    }
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn server_on_every_address_is_reached(#[case] runtime: Runtime) -> Result<()> {
    let (_bridge, pod, container) = pod(runtime)?;
    serve(&container, "8080", "all")?;
    for address in ["127.0.0.1", "127.0.0.9", "[::1]", "10.9.0.2", "[fd09::2]"] {
        assert_eq!(get(&pod, &format!("{address}:8080"))?, "all", "{address}");
    }
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn port_is_refused_before_a_server_listens_and_after_it_has_ended(
    #[case] runtime: Runtime,
) -> Result<()> {
    let (_bridge, pod, container) = pod(runtime)?;
    for round in 0..3 {
        for address in ["127.0.0.1:8080", "[::1]:8080"] {
            let start = Instant::now();
            let error = get(&pod, address).unwrap_err().to_string();
            assert!(error.contains("refused"), "{round}: {error}");
            // The first answer has to be the refusal, without a retry.
            assert!(
                start.elapsed() < Duration::from_millis(900),
                "{:?}",
                start.elapsed()
            );
        }
        serve(&container, "8080", "now")?;
        assert_eq!(get(&pod, "127.0.0.1:8080")?, "now");
        container
            .sh("killall httpd; while nc 127.0.0.1 8080 </dev/null; do sleep 0.1; done; true")?;
    }
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn fifty_connections_at_once_each_get_their_answer(#[case] runtime: Runtime) -> Result<()> {
    let (_bridge, pod, container) = pod(runtime)?;
    serve(&container, "8080", "page")?;
    container.sh("for i in $(seq 50); do dd if=/dev/urandom of=/www/8080/$i bs=64k count=4; done 2>/dev/null")?;
    let sums = container.sh("cd /www/8080; for i in $(seq 50); do md5sum < $i; done")?;
    let dir = container
        .node()
        .dir()
        .join(format!("got-{}", container.id()));
    let got = pod.sh(&format!(
        "mkdir {0} && cd {0} && for i in $(seq 50); do wget -q -O $i http://127.0.0.1:8080/$i & done; wait; \
         for i in $(seq 50); do md5sum < $i; done",
        dir.display()
    ))?;
    assert_eq!(got.ok()?.line(), sums);
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn direction_that_ended_leaves_the_other_open(#[case] runtime: Runtime) -> Result<()> {
    let (_bridge, pod, container) = pod(runtime)?;
    // The server answers only when it has seen the end of the request.
    let _server = container
        .process(["nc", "-ll", "-p", "8080", "-e", "sh", "-c", "md5sum"])
        .spawn()?;
    let asked = "dd if=/dev/zero bs=1M count=8 2>/dev/null";
    let sum = pod.sh(&format!("{asked} | md5sum"))?.ok()?.line();
    let answer = command::poll("an answer", LIMIT, || {
        let answer = pod.sh(&format!("{asked} | nc 127.0.0.1 8080")).ok()?;
        (answer.code == 0).then(|| answer.line())
    })?;
    assert_eq!(answer, sum);
    Ok(())
}

/// Creates a pod's namespace at a bridge, and a container in it that only waits.
fn pod(runtime: Runtime) -> Result<(Bridge, Namespace, Container<'static>)> {
    let node = Node::shared();
    let bridge = Bridge::new(node)?;
    let pod = bridge.pod(node, 2)?;
    let container = node.container("busybox").runtime(runtime);
    let container = container
        .flag("--with-ns", pod.flag())
        .args(["sleep", "1000"])
        .start()?;
    Ok((bridge, pod, container))
}

/// Starts a server whose page `page` is `text`.
fn serve(container: &Container<'_>, at: &str, text: &str) -> Result<()> {
    let port = at.rsplit(':').next().unwrap_or(at);
    container.sh(&format!(
        "mkdir -p /www/{port} && echo {text} > /www/{port}/page && httpd -p {at} -h /www/{port}"
    ))?;
    Ok(())
}

/// Fetches the page from within the namespace.
fn get(pod: &Namespace, at: &str) -> Result<String> {
    let page = pod.sh(&format!("wget -q -O - http://{at}/page"))?;
    anyhow::ensure!(page.code == 0, "{at}: {}", page.errors());
    Ok(page.line())
}
