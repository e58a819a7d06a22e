//! Tests what is specific to a pod whose sandbox is made by the shim's sandbox service
//! (`sandboxer = "shim"`), on containerd 2.x.
//!
//! The other suites cover the rest with `CAISSON_TEST_SANDBOXER=shim`.

use std::time::Duration;

use anyhow::{Context, Result};
use caisson_tests::{
    command,
    cri::{CriNode, Pod, HANDLER, HANDLER_OF_SHIM, NAMESPACE},
    Leftovers,
};
use containerd_shim_protos::{
    cgroups_v2::metrics::Metrics,
    protobuf::Message,
    sandbox_api::{PingRequest, SandboxMetricsRequest, SandboxStatusRequest},
    sandbox_async::SandboxClient,
    shim_async::Client,
    ttrpc::context,
};
use rstest::rstest;

const SOON: Duration = Duration::from_secs(10);

#[rstest]
#[case::containerds(HANDLER, true)]
#[case::shims(HANDLER_OF_SHIM, false)]
fn sandbox_is_a_container_only_where_containerd_makes_it(
    #[case] handler: &'static str,
    #[case] is_container: bool,
) -> Result<()> {
    let node = CriNode::shared();
    let pod = node.pod().handler(handler).start()?;
    let container = pod.container("busybox").args(["sleep", "1000"]).start()?;
    let mut ctr = node.ctr_in(NAMESPACE);
    let listed = command::run(ctr.args(["container", "list", "--quiet"]), None, SOON)?;
    let listed = listed.ok()?.text();
    let is_listed = |id: &str| listed.lines().any(|line| line == id);
    assert!(is_listed(container.id()), "{listed}");
    assert_eq!(is_listed(pod.id()), is_container, "{listed}");
    Ok(())
}

#[test]
fn pod_that_cannot_be_is_refused_with_a_reason_and_leaves_nothing() -> Result<()> {
    // The pods of the other tests are on another node.
    let node = CriNode::start()?;
    let before = Leftovers::count(&node);
    let pod = node.pod().handler(HANDLER_OF_SHIM);
    let pod = pod.namespaces(|asked| asked.pid = 2);
    let error = format!("{:#}", pod.start().err().context("it starts")?);
    assert!(error.contains("hostPID"), "{error}");
    Leftovers::none_since(&node, &before)
}

#[test]
fn ping_is_answered_until_the_pod_is_stopped() -> Result<()> {
    let pod = pod()?;
    let ping = || {
        call(&pod, |client, id| async move {
            let request = PingRequest {
                sandbox_id: id,
                ..Default::default()
            };
            let limit = context::with_duration(SOON);
            client.ping_sandbox(limit, &request).await
        })
    };
    ping()?;
    pod.stop()?;
    let error = format!("{:#}", ping().err().context("it is answered")?);
    assert!(error.contains("stopped"), "{error}");
    Ok(())
}

#[test]
fn status_is_ready_until_the_pod_is_stopped() -> Result<()> {
    let pod = pod()?;
    let status = || {
        call(&pod, |client, id| async move {
            let request = SandboxStatusRequest {
                sandbox_id: id,
                ..Default::default()
            };
            let limit = context::with_duration(SOON);
            client.sandbox_status(limit, &request).await
        })
    };
    let running = status()?;
    assert_eq!(running.state, "SANDBOX_READY");
    assert_eq!(running.pid, pod.vmm()?);
    assert!(!running.exited_at.is_some());
    pod.stop()?;
    let stopped = status()?;
    assert_eq!(stopped.state, "SANDBOX_NOTREADY");
    assert!(stopped.exited_at.seconds >= running.created_at.seconds);
    Ok(())
}

#[test]
fn metrics_of_the_sandbox_are_those_of_all_its_containers() -> Result<()> {
    let pod = pod()?;
    let memory = || -> Result<u64> {
        let answer = call(&pod, |client, id| async move {
            let request = SandboxMetricsRequest {
                sandbox_id: id,
                ..Default::default()
            };
            let limit = context::with_duration(SOON);
            client.sandbox_metrics(limit, &request).await
        })?;
        let metrics = Metrics::parse_from_bytes(&answer.metrics.data.value)?;
        Ok(metrics.memory.usage)
    };
    assert_eq!(memory()?, 0);
    let hold = "head -c 8m /dev/zero > /dev/shm/$0; sleep 1000";
    let holds = |name: &str| {
        let container = pod.container("busybox").args(["sh", "-c", hold, name]);
        let container = container.start()?;
        command::poll("8 MiB to be held", SOON, || {
            let size = format!("stat -c %s /dev/shm/{name}");
            (container.sh(&size).ok()? == "8388608").then_some(())
        })?;
        anyhow::Ok(container)
    };
    let _first = holds("first")?;
    assert!(memory()? >= 8 << 20);
    let _second = holds("second")?;
    assert!(memory()? >= 16 << 20);
    Ok(())
}

fn pod() -> Result<Pod<'static>> {
    CriNode::shared().pod().handler(HANDLER_OF_SHIM).start()
}

/// Calls the sandbox service of a pod's shim, as containerd does, by the address in the sandbox's
/// bundle.
fn call<T, F>(pod: &Pod<'_>, work: impl FnOnce(SandboxClient, String) -> F) -> Result<T>
where
    F: std::future::Future<Output = containerd_shim_protos::ttrpc::Result<T>>,
{
    let bundles = "run/io.containerd.sandbox.controller.v1.shim";
    let bundle = pod
        .node()
        .dir()
        .join(bundles)
        .join(NAMESPACE)
        .join(pod.id());
    let address = std::fs::read_to_string(bundle.join("address"))?;
    pod.node().runtime().block_on(async {
        let client = SandboxClient::new(Client::connect(&address).await?);
        Ok(work(client, pod.id().to_owned()).await?)
    })
}
