//! Measures a pod that is warm from its claim to the first byte of its program, beside a pod that
//! is started for its user.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::Result;
use caisson_tests::{command, cri::CriNode, node, skill, Runtime};

use crate::{
    pod_starts::{first_byte, wait_for_byte},
    table::{heading, Series},
};

/// How long a claim may take.
const LIMIT: Duration = Duration::from_secs(60);
/// What a program does that waits for its claim, as docs/claims.md has it.
const WAITING: &str = "until [ -e /run/caisson/claim/ready ]; do sleep 0.1; done; \
                       . /run/caisson/claim/env; echo $WHO; exec sleep 1000";

/// Prints the times. All pods are started in turns.
pub fn measure(node: &CriNode, rounds: usize) -> Result<()> {
    let skill = packed(node)?;
    let home = ["--home=ephemeral", "--home-size=64Mi"];
    let with_skill = format!("--skill={skill}");
    let all = [home[0], home[1], &with_skill];
    let mut runc = Series::new("runc, a cold pod");
    let mut cold = Series::new("Caisson, a cold pod");
    let mut cold_with = Series::new("Caisson, a cold pod with a skill and a home");
    let mut claimed = Series::new("Caisson, a claim of a variable");
    let mut claimed_with = Series::new("Caisson, a claim with a skill and a home");
    let mut exec = Series::new("Caisson, such a claim and an exec");
    for _ in 0..rounds {
        runc.add(cold_pod(node, Runtime::Runc, &[])?);
        cold.add(cold_pod(node, Runtime::Caisson, &[])?);
        let annotations = [
            ("caisson.dev/skills", skill.as_str()),
            ("caisson.dev/home", "ephemeral"),
            ("caisson.dev/home-size", "64Mi"),
        ];
        cold_with.add(cold_pod(node, Runtime::Caisson, &annotations)?);
        claimed.add(warm_pod(node, &[])?);
        claimed_with.add(warm_pod(node, &all)?);
        exec.add(warm_pod_and_exec(node, &all)?);
    }
    heading("\nfrom the request to the first byte of a pod's program");
    for series in [&runc, &cold, &cold_with, &claimed, &claimed_with, &exec] {
        series.print();
    }
    Ok(())
}

fn cold_pod(node: &CriNode, runtime: Runtime, annotations: &[(&str, &str)]) -> Result<Duration> {
    let start = Instant::now();
    let pod = node.pod().runtime(runtime);
    let pod = annotations
        .iter()
        .fold(pod, |pod, (key, value)| pod.annotation(key, value));
    let pod = pod.start()?;
    let _container = first_byte(&pod, None)?;
    Ok(start.elapsed())
}

/// Returns the time from the claim to the first byte of a program that waits for it.
fn warm_pod(node: &CriNode, options: &[&str]) -> Result<Duration> {
    let pod = node.pod().start()?;
    let container = pod.container("busybox").sh(WAITING).start()?;
    // The program waits by now.
    container.sh("true")?;
    let start = Instant::now();
    claim(node, pod.id(), options)?;
    wait_for_byte(container.log_path())?;
    Ok(start.elapsed())
}

/// Returns the time from the claim to the end of an exec that begins after it.
fn warm_pod_and_exec(node: &CriNode, options: &[&str]) -> Result<Duration> {
    let pod = node.pod().start()?;
    let container = pod.container("busybox").args(["sleep", "1000"]).start()?;
    container.sh("true")?;
    let start = Instant::now();
    claim(node, pod.id(), options)?;
    container.sh("echo $WHO")?;
    Ok(start.elapsed())
}

fn claim(node: &CriNode, pod: &str, options: &[&str]) -> Result<()> {
    let mut claim = node::caisson(node)?;
    claim.args(["claim", pod, "--env=WHO=anna"]).args(options);
    command::run(&mut claim, None, LIMIT)?.ok().map(drop)
}

fn packed(node: &CriNode) -> Result<String> {
    let tree = skill::tree(node, "claimed")?;
    fs::write(tree.join("SKILL.md"), "# claimed\n")?;
    skill::pack(node, "claimed", &tree)
}
