//! Tests what `caisson metrics` says of a node at work. What only a cluster has is tested there
//! (`k8s_chart`).

use anyhow::Result;
use caisson_tests::{
    command,
    metrics::{check, value},
    node::{caisson, LIMIT},
    proc, Node,
};

fn metrics(node: &Node) -> Result<String> {
    let output = command::run(caisson(node)?.arg("metrics"), None, LIMIT)?;
    Ok(output.ok()?.text())
}

/// Waits until a series has at least a value: shims count beside their work.
fn wait_for(node: &Node, series: &str, least: f64) -> Result<()> {
    command::poll(&format!("{series} of {least}"), LIMIT, || {
        let found = value(&metrics(node).ok()?, series).ok()?;
        (found >= least).then_some(())
    })
}

#[test]
fn metrics_of_a_container_that_runs_pass_promtool_and_count_it() -> Result<()> {
    let node = Node::start()?;
    let empty = metrics(&node)?;
    check(&empty)?;
    let running = r#"caisson_pods{state="running"}"#;
    assert_eq!(value(&empty, running)?, 0.0);
    let _container = node.container("busybox").args(["sleep", "1000"]).start()?;
    wait_for(
        &node,
        r#"caisson_start_stage_duration_seconds_count{stage="vmm"}"#,
        1.0,
    )?;
    let text = metrics(&node)?;
    check(&text)?;
    for (series, least) in [
        (running, 1.0),
        (r#"caisson_containers{state="running"}"#, 1.0),
        (r#"caisson_vms{state="running"}"#, 1.0),
        (r#"caisson_memory_bytes{component="guest"}"#, 1e6),
        (r#"caisson_memory_bytes{component="vmm"}"#, 1e6),
        (r#"caisson_memory_bytes{component="daemons"}"#, 1e5),
        (r#"caisson_memory_bytes{component="shim"}"#, 1e6),
    ] {
        let found = value(&text, series)?;
        assert!(found >= least, "{series} {found}");
    }
    let started = text.lines().any(|line| {
        line.starts_with("caisson_pod_start_duration_seconds_count") && line.ends_with(" 1")
    });
    assert!(started, "{text}");
    Ok(())
}

#[test]
fn counters_stay_when_the_container_is_gone() -> Result<()> {
    let node = Node::start()?;
    let container = node.container("busybox").args(["true"]).start()?;
    container.wait_within(LIMIT)?;
    container.delete()?;
    let series = r#"caisson_start_stage_duration_seconds_count{stage="created"}"#;
    assert_eq!(value(&metrics(&node)?, series)?, 1.0);
    Ok(())
}

#[test]
fn start_that_is_refused_is_counted_by_its_reason() -> Result<()> {
    let node = Node::start()?;
    let container = node.container("busybox").args(["true"]);
    let container = container.annotation("caisson.dev/skills", "no-such@1");
    assert_ne!(container.run()?.code, 0);
    wait_for(
        &node,
        r#"caisson_start_failures_total{task="pod",reason="skill"}"#,
        1.0,
    )?;
    wait_for(
        &node,
        r#"caisson_skill_requests_total{result="failed"}"#,
        1.0,
    )
}

#[test]
fn vm_whose_process_was_killed_is_counted_as_a_failure() -> Result<()> {
    let node = Node::start()?;
    let container = node.container("busybox").args(["sleep", "1000"]).start()?;
    proc::kill(container.vmm()?, libc::SIGKILL);
    container.wait_within(LIMIT)?;
    wait_for(
        &node,
        r#"caisson_vm_failures_total{reason="process_died"}"#,
        1.0,
    )?;
    container.delete()
}
