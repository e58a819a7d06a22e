//! Tests pods whose agent lies (`guest/src/hostile/`), each beside a neighbour. Each test checks
//! the same: every request is answered within 10 s, with a reason if it fails; the pod can be
//! removed and leaves nothing; its shim stays within 32 MiB more than a healthy one; the
//! neighbour's exec takes at most 1.5 times what it takes alone; no log gets a control character.

mod attack;

use std::{thread, time::Duration};

use anyhow::{ensure, Context, Result};
use attack::{attack, neighbour, node, SOON};
use caisson_tests::{
    command,
    cri::{api::ContainerState, Container, Pod, NAMESPACE},
    events::Events,
    proc,
};
use rstest::rstest;

/// The time within which an agent that answers nothing is found dead: three pings, 5 s apart, that
/// have 8 s each.
const HEARTBEAT: Duration = Duration::from_secs(50);
/// The maximum number of events of one pod that containerd may get in 5 s.
const EVENTS: usize = 50;
/// The maximum number of bytes written into the log for one pod in 5 s.
const LOG: usize = 4 << 20;

#[rstest]
#[case::create("huge-createcontainer")]
#[case::exec("huge-exec")]
fn answer_that_claims_four_gigabytes_harms_its_pod_alone(#[case] lie: &str) -> Result<()> {
    lies(lie)
}

#[rstest]
#[case::too_long("long-exec")]
#[case::too_short("short-startcontainer")]
#[case::no_protobuf("garbage-createcontainer")]
#[case::of_another_request("swap-exec")]
fn answer_of_a_wrong_form_harms_its_pod_alone(#[case] lie: &str) -> Result<()> {
    lies(lie)
}

#[test]
fn answers_that_nobody_asked_for_harm_nobody() -> Result<()> {
    lies("unasked")
}

#[rstest]
#[case::configure("never-configure")]
#[case::create("never-createcontainer")]
#[case::start("never-startcontainer")]
#[case::exec("never-exec")]
#[case::stats("never-stats")]
#[case::shutdown("never-shutdown")]
fn answer_that_never_comes_fails_with_a_reason(#[case] lie: &str) -> Result<()> {
    lies(lie)
}

#[test]
fn answer_that_comes_late_harms_its_pod_alone() -> Result<()> {
    attack("hostile-late-exec", |_, _, _| {
        // Waits until the late answer has come.
        thread::sleep(Duration::from_secs(15));
        Ok(())
    })
}

#[test]
fn connection_that_closes_fails_its_pod_with_a_reason() -> Result<()> {
    attack("hostile-hangup-exec", |_, pod, container| {
        ended(pod, container)
    })
}

#[rstest]
#[case::names("text-configure")]
#[case::create("text-createcontainer")]
#[case::exec("text-exec")]
fn text_with_control_characters_reaches_no_log_and_no_answer(#[case] lie: &str) -> Result<()> {
    lies(lie)
}

#[test]
fn events_without_end_are_few_for_containerd_and_never_of_other_pods() -> Result<()> {
    attack("hostile-events", |_, _, container| {
        let events = Events::subscribe_in(node(), NAMESPACE)?;
        thread::sleep(Duration::from_secs(5));
        let count = events.of(container.id()).len();
        let others = events.of(neighbour().container().id());
        let others = others.iter().filter(|event| event.topic == "/tasks/oom");
        println!("  {count} events in 5 s");
        ensure!(others.count() == 0, "events of the neighbour");
        ensure!(count <= EVENTS, "{count} events in 5 s");
        let status = neighbour().container().status()?;
        ensure!(status.state() == ContainerState::ContainerRunning);
        Ok(())
    })
}

#[test]
fn ends_that_are_made_up_are_of_the_own_pod_alone() -> Result<()> {
    attack("hostile-exits", |_, _, container| {
        let status = container.wait_within(SOON)?;
        ensure!((0..=255).contains(&status.exit_code), "{status:?}");
        let status = neighbour().container().status()?;
        ensure!(status.state() == ContainerState::ContainerRunning);
        Ok(())
    })
}

#[test]
fn statistics_as_large_as_a_frame_harm_nobody() -> Result<()> {
    attack("hostile-stats", |life, pod, container| {
        for _ in 0..5 {
            life.step("ContainerStats again", || container.stats());
        }
        life.step("PodSandboxStats", || pod.stats());
        Ok(())
    })
}

/// The guest acknowledges the kill, but the process never ends.
#[test]
fn kill_that_is_only_acknowledged_ends_with_the_vm() -> Result<()> {
    attack("hostile-kill", |life, _, container| {
        life.step("StopContainer first", || container.stop(Duration::ZERO))
            .context("StopContainer failed")?;
        let status = container.status()?;
        ensure!(status.exit_code == 137, "{status:?}");
        Ok(())
    })
}

#[test]
fn guest_that_falls_silent_ends_with_a_reason() -> Result<()> {
    attack("hostile-silent", |_, pod, container| ended(pod, container))
}

/// The VM behaves like one whose kernel hangs: it exists but sends nothing.
#[test]
fn vm_that_stands_still_ends_with_a_reason() -> Result<()> {
    attack("honest", |life, pod, container| {
        proc::kill(pod.vmm()?, libc::SIGSTOP);
        life.step("ExecSync of a dead guest", || {
            container.exec_within(["true"], Duration::from_secs(3))
        });
        ended(pod, container)
    })
}

#[test]
fn vm_that_stands_still_can_be_removed_at_once() -> Result<()> {
    attack("honest", |_, pod, _| {
        proc::kill(pod.vmm()?, libc::SIGSTOP);
        Ok(())
    })
}

#[test]
fn ten_thousand_connections_of_a_guest_harm_nobody() -> Result<()> {
    attack("hostile-reconnect", |_, _, container| {
        command::poll("the last connection", Duration::from_secs(120), || {
            let log = node().log();
            log.contains("connected to the host 10000 times")
                .then_some(())
        })?;
        container.sh("true").map(drop)
    })
}

#[test]
fn console_flooded_with_control_characters_is_bounded_in_the_log() -> Result<()> {
    attack("hostile-console", |_, _, _| {
        let before = node().log().len();
        thread::sleep(Duration::from_secs(5));
        let written = node().log().len() - before;
        println!("  {written} bytes of log in 5 s");
        ensure!(written < LOG, "{written} bytes of log in 5 s");
        Ok(())
    })
}

/// The guest sends frames of the largest size without waiting until they were taken.
#[test]
fn stream_without_end_that_nobody_reads_harms_nobody() -> Result<()> {
    attack("hostile-streams", |_, _, container| {
        let session = container.exec_streams(["true"], false)?;
        thread::sleep(Duration::from_secs(5));
        drop(session);
        Ok(())
    })
}

#[rstest]
#[case::frame_of_four_gigabytes("frames")]
#[case::taken_that_was_not_sent("taken")]
fn stream_of_a_wrong_form_is_cut(#[case] lie: &str) -> Result<()> {
    attack(&format!("hostile-{lie}"), |life, _, container| {
        life.step("Exec with streams", || {
            let mut session = container.exec_streams(["cat"], false)?;
            session.write(vec![b'x'; 1 << 20])?;
            session.finish(Duration::from_secs(3))
        });
        Ok(())
    })
}

/// Tests each lie in the answer to each kind of request: `make hostile`.
#[rstest]
#[ignore = "takes minutes: make hostile"]
fn lie_in_any_answer_harms_its_pod_alone(
    #[values(
        "huge", "long", "short", "garbage", "swap", "unasked", "never", "late", "hangup", "text"
    )]
    lie: &str,
    #[values(
        "configure",
        "attach",
        "createcontainer",
        "startcontainer",
        "exec",
        "wait",
        "kill",
        "stats",
        "ping",
        "nextevent",
        "deletecontainer",
        "shutdown"
    )]
    method: &str,
) -> Result<()> {
    lies(&format!("{lie}-{method}"))
}

fn lies(lie: &str) -> Result<()> {
    attack(&format!("hostile-{lie}"), |_, _, _| Ok(()))
}

/// Waits until CRI shows the end of pod and container, with a reason. The pod lives until the
/// heartbeat has found its agent dead: a guest that only stands still for some seconds is not
/// killed.
fn ended(pod: &Pod<'_>, container: &Container<'_>) -> Result<()> {
    let mut last = None;
    command::poll("pod and container to have ended", HEARTBEAT, || {
        let status = container.status().ok()?;
        let exited = status.state() == ContainerState::ContainerExited && !status.reason.is_empty();
        last = Some(status);
        (exited && !pod.is_ready().ok()?).then_some(())
    })
    .with_context(|| format!("{last:?}"))
}
