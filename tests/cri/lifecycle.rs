//! Tests pods and their containers from start to end: several in one sandbox, one after another,
//! restarts, signals, exit codes.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use caisson_tests::{
    command,
    cri::{
        api::{ContainerState, NamespaceMode},
        CriNode, Pod,
    },
    Runtime,
};
use rstest::rstest;
use tonic::{Code, Status};

/// Ignores SIGTERM and prints a line each time it comes.
const IGNORE_TERM: &str = "trap 'echo TERM' TERM; echo ready; while :; do sleep 0.1; done";

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn containers_of_a_pod_reach_each_other_by_loopback(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let server = pod
        .container("busybox")
        .args(["probe", "echo", "127.0.0.1:7001"])
        .start()?;
    server.wait_for_output("listening")?;
    let client = pod.container("busybox");
    let output = client
        .args(["probe", "ask", "127.0.0.1:7001", "hello"])
        .run()?
        .ok()?;
    assert_eq!(output.line(), "hello");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn containers_of_a_pod_share_ipc(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let first = sleeping(pod)?;
    let second = sleeping(pod)?;
    first.sh("echo from the first > /dev/shm/ipc-test")?;
    assert_eq!(second.sh("cat /dev/shm/ipc-test")?, "from the first");
    assert_eq!(
        first.sh("readlink /proc/self/ns/ipc")?,
        second.sh("readlink /proc/self/ns/ipc")?
    );
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn containers_of_a_pod_have_roots_of_their_own(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let first = sleeping(pod)?;
    let second = sleeping(pod)?;
    first.sh("echo mine > /tmp/mine")?;
    assert_eq!(second.exec(["test", "-e", "/tmp/mine"])?.code, 1);
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn init_container_leaves_its_work_to_the_next(#[case] runtime: Runtime) -> Result<()> {
    let pod = CriNode::shared().pod().runtime(runtime).start()?;
    let volume = pod.folder("work")?;
    for (step, line) in [
        ("first", "echo one > /work/log"),
        ("second", "echo two >> /work/log"),
    ] {
        let init = pod.container("busybox").named(step, 0);
        init.mount(&volume, "/work").sh(line).run()?.ok()?;
    }
    let app = pod.container("busybox").mount(&volume, "/work");
    let output = app.args(["cat", "/work/log"]).run()?.ok()?;
    assert_eq!(output.text(), "one\ntwo\n");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn container_restarts_in_a_sandbox_that_was_empty(#[case] runtime: Runtime) -> Result<()> {
    let pod = CriNode::shared().pod().runtime(runtime).start()?;
    let boot = |attempt| {
        let container = pod.container("busybox").named("app", attempt);
        let output = container
            .args(["cat", "/proc/sys/kernel/random/boot_id"])
            .run()?;
        anyhow::Ok(output.ok()?.line())
    };
    let first = boot(0)?;
    assert!(pod.is_ready()?);
    assert_eq!(boot(1)?, first);
    assert!(pod.is_ready()?);
    Ok(())
}

#[rstest]
#[case::runc_0(Runtime::Runc, 0, "Completed")]
#[case::runc_3(Runtime::Runc, 3, "Error")]
#[case::caisson_0(Runtime::Caisson, 0, "Completed")]
#[case::caisson_3(Runtime::Caisson, 3, "Error")]
fn exit_code_has_its_reason(
    #[case] runtime: Runtime,
    #[case] code: i32,
    #[case] reason: &str,
) -> Result<()> {
    let container = pod(runtime)?.container("busybox");
    // containerd records the start when it is told of it. By then a shorter container may have
    // ended.
    let line = format!("sleep 0.5; exit {code}");
    let container = container.sh(&line).start()?;
    let status = container.wait()?;
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (code, reason),
        "{status:?}"
    );
    assert!(status.created_at <= status.started_at && status.started_at <= status.finished_at);
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn command_not_found_is_named_in_the_status(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?.container("busybox");
    let container = container.args(["no-such-command"]).create()?;
    let error = container.start().err().context("it starts")?;
    assert!(
        format!("{error:#}").contains("no-such-command"),
        "{error:#}"
    );
    let status = container.status()?;
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (128, "StartError")
    );
    assert!(status.message.contains("no-such-command"), "{status:?}");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn exec_reaches_the_container_that_it_names(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let containers: Vec<_> = (0..3)
        .map(|n| {
            let container = pod.container("busybox").env("NUMBER", &n.to_string());
            container.args(["sleep", "1000"]).start()
        })
        .collect::<Result<_>>()?;
    for (n, container) in containers.iter().enumerate() {
        let output =
            container.exec(["sh", "-c", "echo out $NUMBER; echo err >&2; exit $NUMBER"])?;
        let got = (output.code, output.text(), output.errors());
        assert_eq!(got, (n as i32, format!("out {n}\n"), "err\n".into()));
    }
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn stop_sends_one_sigterm_and_then_sigkill(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?.container("busybox").sh(IGNORE_TERM).start()?;
    container.wait_for_output("ready")?;
    let before = Instant::now();
    container.stop(Duration::from_secs(2))?;
    assert!(before.elapsed() >= Duration::from_secs(2));
    let status = container.status()?;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
    assert_eq!(container.stdout()?, "ready\nTERM\n");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn container_that_heeds_sigterm_ends_by_itself(#[case] runtime: Runtime) -> Result<()> {
    let line = "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.1; done";
    let container = pod(runtime)?.container("busybox").sh(line).start()?;
    container.wait_for_output("ready")?;
    container.stop(Duration::from_secs(60))?;
    assert_eq!(container.status()?.exit_code, 7);
    assert_eq!(container.stdout()?, "ready\nbye\n");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn container_has_a_pid_namespace_of_its_own(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let first = sleeping(pod)?;
    let second = pod.container("busybox").args(["sleep", "2345"]).start()?;
    assert_eq!(first.sh("tr '\\0' ' ' < /proc/1/cmdline")?, "sleep 1000");
    assert!(!first.sh("ps")?.contains("2345"));
    assert!(second.sh("ps")?.contains("2345"));
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn shared_pid_namespace_shows_the_other_container(#[case] runtime: Runtime) -> Result<()> {
    let pod = CriNode::shared()
        .pod()
        .runtime(runtime)
        .share_processes()
        .start()?;
    let first = pod.container("busybox").args(["sleep", "2345"]).start()?;
    let second = sleeping(&pod)?;
    assert_ne!(second.sh("tr '\\0' ' ' < /proc/1/cmdline")?, "sleep 1000");
    second.sh("kill $(ps | awk '/[s]leep 2345/ { print $1 }')")?;
    assert_eq!(first.wait()?.exit_code, 143);
    Ok(())
}

/// `kubectl debug --target` asks for such a container.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn ephemeral_container_is_among_the_processes_of_its_target(
    #[case] runtime: Runtime,
) -> Result<()> {
    let pod = pod(runtime)?;
    let target = pod.container("busybox").args(["sleep", "2345"]).start()?;
    let _other = sleeping(pod)?;
    let debug = pod.container("busybox").args(["sleep", "3456"]);
    let debug = debug.security(|security| {
        let namespaces = security.namespace_options.get_or_insert_default();
        namespaces.pid = NamespaceMode::Target.into();
        namespaces.target_id = target.id().to_owned();
    });
    let debug = debug.start()?;
    let sleeping = "ps -o args | grep '^sleep'";
    command::poll(
        "both to run their programs",
        Duration::from_secs(20),
        || {
            let seen = debug.sh(sleeping).ok();
            seen.filter(|seen| seen == "sleep 2345\nsleep 3456")
        },
    )?;
    debug.stop(Duration::ZERO)?;
    assert_eq!(target.sh(sleeping)?, "sleep 2345");
    Ok(())
}

/// If the pid namespace is the pod's, the kernel does not end the children together with the init.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn stop_ends_every_process_of_a_container(#[case] runtime: Runtime) -> Result<()> {
    let pod = CriNode::shared()
        .pod()
        .runtime(runtime)
        .share_processes()
        .start()?;
    let watcher = sleeping(&pod)?;
    let line = "setsid sleep 3456 & echo ready; exec sleep 1000";
    let container = pod.container("busybox").sh(line).start()?;
    container.wait_for_output("ready")?;
    let has_child = || Some(watcher.sh("ps").ok()?.contains("sleep 3456"));
    // The shell does not wait until its child has executed the program.
    command::poll("the child", Duration::from_secs(60), || {
        has_child().filter(|has| *has)
    })?;
    container.stop(Duration::ZERO)?;
    command::poll("the child's end", Duration::from_secs(10), || {
        has_child().filter(|has| !has)
    })?;
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn stopped_pod_is_not_ready_and_its_containers_have_ended(#[case] runtime: Runtime) -> Result<()> {
    let pod = CriNode::shared().pod().runtime(runtime).start()?;
    let container = sleeping(&pod)?;
    assert!(pod.is_ready()?);
    pod.stop()?;
    assert!(!pod.is_ready()?);
    let status = container.status()?;
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert_eq!(status.exit_code, 137);
    pod.stop()?;
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn removed_pod_is_not_known_and_can_be_removed_again(#[case] runtime: Runtime) -> Result<()> {
    let pod = CriNode::shared().pod().runtime(runtime).start()?;
    let _container = sleeping(&pod)?;
    pod.stop()?;
    pod.remove()?;
    let error = pod.status().err().context("it is known")?;
    let status = error.downcast_ref::<Status>().context("no status")?;
    assert_eq!(status.code(), Code::NotFound);
    pod.remove()
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn jobs_in_parallel_each_end_with_their_own_code(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    thread::scope(|scope| {
        let jobs: Vec<_> = (0..8)
            .map(|n| {
                let job = pod.container("busybox").sh(&format!("echo {n}; exit {n}"));
                scope.spawn(move || job.run())
            })
            .collect();
        for (n, job) in jobs.into_iter().enumerate() {
            let output = job.join().map_err(|_| anyhow::anyhow!("job {n}"))??;
            assert_eq!((output.code, output.line()), (n as i32, n.to_string()));
        }
        Ok(())
    })
}

fn pod(runtime: Runtime) -> Result<&'static Pod<'static>> {
    CriNode::shared().shared_pod(runtime)
}

fn sleeping<'p>(pod: &'p Pod<'_>) -> Result<caisson_tests::cri::Container<'p>> {
    pod.container("busybox").args(["sleep", "1000"]).start()
}

/// SIGTERM goes only to the init. A child that SIGTERM would end keeps running.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn sigterm_is_sent_to_the_init_only(#[case] runtime: Runtime) -> Result<()> {
    let line = "trap 'echo TERM' TERM; echo ready; sleep 1000";
    let container = pod(runtime)?.container("busybox").sh(line).start()?;
    container.wait_for_output("ready")?;
    container.stop(Duration::from_secs(2))?;
    assert_eq!(container.status()?.exit_code, 137);
    Ok(())
}
