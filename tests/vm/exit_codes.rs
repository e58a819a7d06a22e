//! Tests that exit codes and signals are the process's own, and that a failed start gives the same
//! error as with runc.

use anyhow::Result;
use caisson_tests::{node::LIMIT, Node, Runtime};
use rstest::rstest;

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn init_exit_code_is_that_of_ctr(
    #[case] runtime: Runtime,
    #[values(0, 1, 42)] code: i32,
) -> Result<()> {
    let container = Node::shared().container("busybox").runtime(runtime);
    let output = container.sh(&format!("exit {code}")).run()?;
    assert_eq!((output.code, output.errors().as_str()), (code, ""));
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn init_after_sigkill_gives_137(#[case] runtime: Runtime) -> Result<()> {
    let container = Node::shared()
        .container("busybox")
        .runtime(runtime)
        .args(["sleep", "1000"])
        .start()?;
    container.kill("SIGKILL")?;
    assert_eq!(container.wait()?, 137);
    container.delete()
}

/// The init of a pid namespace gets SIGTERM only if it has a handler, so the exit code of the
/// signal itself is tested with an exec.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn exec_after_a_signal_gives_128_and_its_number(#[case] runtime: Runtime) -> Result<()> {
    let init = "trap 'exit 7' TERM; while :; do sleep 0.1; done";
    let container = Node::shared()
        .container("busybox")
        .runtime(runtime)
        .sh(init)
        .start()?;
    for (signal, code) in [(15, 143), (9, 137), (1, 129)] {
        let process = container.process(["sleep", "1000"]);
        let id = process.id().to_owned();
        let running = process.spawn()?;
        container.wait_for_exec(&id)?;
        container.kill_exec(&id, signal)?;
        let output = running.finish(LIMIT)?;
        assert_eq!(output.code, code, "signal {signal}: {}", output.errors());
    }
    container.kill("SIGTERM")?;
    assert_eq!(container.wait()?, 7, "the init's own handler decides");
    container.delete()
}

/// A real-time signal has a number and no name.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn exec_after_any_real_time_signal_gives_128_and_its_number(
    #[case] runtime: Runtime,
    #[values(34, 49, 64)] signal: i32,
) -> Result<()> {
    let container = Node::shared()
        .container("busybox")
        .runtime(runtime)
        .args(["sleep", "1000"])
        .start()?;
    let output = container.exec(["sh", "-c", &format!("kill -{signal} $$")])?;
    assert_eq!(output.code, 128 + signal, "{}", output.errors());
    container.kill("SIGKILL")?;
    container.wait()?;
    container.delete()
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn sigrtmin_and_3_reaches_an_init_that_takes_it(#[case] runtime: Runtime) -> Result<()> {
    let line = "trap 'exit 7' 37; touch /ready; while true; do sleep 0.1; done";
    let container = Node::shared().container("busybox").runtime(runtime);
    let container = container.args(["sh", "-c", line]).start()?;
    container.sh("until test -e /ready; do sleep 0.05; done")?;
    container.kill("SIGRTMIN+3")?;
    assert_eq!(container.wait()?, 7);
    container.delete()
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn init_with_default_sigterm_in_the_shell_gives_143(#[case] runtime: Runtime) -> Result<()> {
    let line = "sh -c 'kill -TERM $$'; exit $?";
    let output = Node::shared()
        .container("busybox")
        .runtime(runtime)
        .sh(line)
        .run()?;
    assert_eq!(output.code, 143, "{}", output.errors());
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn command_not_found_is_named_and_the_task_is_gone(#[case] runtime: Runtime) -> Result<()> {
    let node = Node::shared();
    let container = node
        .container("busybox")
        .runtime(runtime)
        .args(["no-such-command"]);
    let id = container.id().to_owned();
    let output = container.run()?;
    assert_ne!(output.code, 0);
    let error = output.errors();
    assert!(
        error.contains("\"no-such-command\": executable file not found in $PATH"),
        "{error}"
    );
    let tasks = node.ctr(["tasks", "list"])?.ok()?.text();
    assert!(!tasks.contains(&id), "{tasks}");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn command_that_may_not_be_executed_is_named(#[case] runtime: Runtime) -> Result<()> {
    let output = Node::shared()
        .container("busybox")
        .runtime(runtime)
        .args(["/etc/passwd"])
        .run()?;
    assert_ne!(output.code, 0);
    let error = output.errors();
    assert!(
        error.contains("\"/etc/passwd\": permission denied"),
        "{error}"
    );
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn exec_of_command_not_found_leaves_the_container_usable(#[case] runtime: Runtime) -> Result<()> {
    let container = Node::shared()
        .container("busybox")
        .runtime(runtime)
        .args(["sleep", "1000"])
        .start()?;
    let output = container.exec(["no-such-command"])?;
    assert_ne!(output.code, 0);
    let error = output.errors();
    assert!(
        error.contains("\"no-such-command\": executable file not found in $PATH"),
        "{error}"
    );
    assert_eq!(container.sh("echo usable")?, "usable");
    Ok(())
}
