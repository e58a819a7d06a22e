//! Tests pause, resume, update, pids and metrics of a running task.

use std::{thread, time::Duration};

use anyhow::Result;
use caisson_tests::{Container, Node, Runtime};
use containerd_client::types::v1::Status;
use rstest::rstest;
use serde_json::json;

const MIB: u64 = 1024 * 1024;

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn paused_task_stands_still_until_it_is_resumed(#[case] runtime: Runtime) -> Result<()> {
    let node = Node::shared();
    let container = node.container("busybox").runtime(runtime);
    let log = node.dir().join(format!("logs/{}.log", container.id()));
    let uri = format!("file://{}", log.display());
    let container = container
        .log_uri(&uri)
        .sh("while :; do echo tick; sleep 0.1; done")
        .start()?;
    let ticks = || std::fs::metadata(&log).map(|log| log.len()).unwrap_or(0);
    thread::sleep(Duration::from_secs(1));

    container.pause()?;
    assert_eq!(container.state()?.status(), Status::Paused);
    // Output that was under way when the processes stopped may still arrive.
    thread::sleep(Duration::from_millis(500));
    let before = ticks();
    assert!(before > 0, "it ran before");
    thread::sleep(Duration::from_secs(1));
    assert_eq!(ticks(), before, "paused processes wrote");

    container.resume()?;
    assert_eq!(container.state()?.status(), Status::Running);
    thread::sleep(Duration::from_secs(1));
    assert!(ticks() > before, "resumed processes did not write");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn updated_cpu_quota_slows_the_task(#[case] runtime: Runtime) -> Result<()> {
    let container = Node::shared()
        .container("busybox")
        .runtime(runtime)
        .cpus(1)
        .sh("while :; do :; done")
        .start()?;
    let free = cpu_share(&container)?;
    container.update(&json!({ "cpu": { "quota": 20_000, "period": 100_000 } }))?;
    let limited = cpu_share(&container)?;
    // The usage of a task without a quota depends on what else the machine does.
    assert!(limited < 0.3, "used {limited} of a cpu with a quota of 0.2");
    assert!(
        limited < 0.8 * free,
        "{limited} of a cpu with a quota, {free} without"
    );
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn updated_memory_limit_is_in_force(#[case] runtime: Runtime) -> Result<()> {
    let container = Node::shared()
        .container("busybox")
        .runtime(runtime)
        .memory_mib(64)
        .args(["sleep", "1000"])
        .start()?;
    assert_eq!(container.metrics()?.memory_limit, 64 * MIB);
    assert_eq!(
        container.exec(["probe", "allocate", "100"])?.code,
        137,
        "100 MiB in 64"
    );

    container.update(&json!({ "memory": { "limit": 192 * MIB } }))?;
    assert_eq!(container.metrics()?.memory_limit, 192 * MIB);
    let output = container.exec(["probe", "allocate", "100"])?.ok()?;
    assert_eq!(output.line(), "allocated 25600 pages");

    container.update(&json!({ "memory": { "limit": 48 * MIB } }))?;
    assert_eq!(
        container.exec(["probe", "allocate", "100"])?.code,
        137,
        "100 MiB in 48"
    );
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn pids_are_those_of_the_task(#[case] runtime: Runtime) -> Result<()> {
    let line = "sleep 1000 & sleep 1000 & wait";
    let container = Node::shared()
        .container("busybox")
        .runtime(runtime)
        .sh(line)
        .start()?;
    caisson_tests::command::poll("three processes", Duration::from_secs(10), || {
        (container.pids().ok()?.len() == 3).then_some(())
    })?;
    let pids = container.pids()?;
    assert!(
        pids.contains(&container.state()?.pid),
        "{pids:?} lacks the init"
    );
    let shown = container
        .node()
        .ctr(["tasks", "ps", container.id()])?
        .ok()?
        .text();
    assert_eq!(shown.lines().count(), 1 + 3, "{shown}");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn metrics_follow_what_the_task_uses(#[case] runtime: Runtime) -> Result<()> {
    let line = "sleep 1000 & while :; do :; done";
    let container = Node::shared()
        .container("busybox")
        .runtime(runtime)
        .memory_mib(128)
        .sh(line)
        .start()?;
    let first = container.metrics()?;
    thread::sleep(Duration::from_secs(1));
    let second = container.metrics()?;
    assert_eq!((second.pids, second.memory_limit), (2, 128 * MIB));
    assert!(second.memory > 0 && second.memory < 128 * MIB, "{second:?}");
    assert!(
        second.cpu_nanos > first.cpu_nanos + 300_000_000,
        "{first:?} {second:?}"
    );
    Ok(())
}

/// `ctr` decodes metrics into containerd's Go types and fails on any other type.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn metrics_are_of_the_types_that_ctr_knows(#[case] runtime: Runtime) -> Result<()> {
    let container = Node::shared()
        .container("busybox")
        .runtime(runtime)
        .args(["sleep", "1000"])
        .start()?;
    let shown = container
        .node()
        .ctr(["tasks", "metrics", container.id()])?
        .ok()?
        .text();
    assert!(shown.contains("memory.usage"), "{shown}");
    Ok(())
}

/// Measures the share of one CPU that a task uses during the next two seconds.
fn cpu_share(container: &Container) -> Result<f64> {
    let start = std::time::Instant::now();
    let before = container.metrics()?.cpu_nanos;
    thread::sleep(Duration::from_secs(2));
    let used = container.metrics()?.cpu_nanos - before;
    Ok(used as f64 / start.elapsed().as_nanos() as f64)
}
