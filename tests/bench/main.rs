//! `make bench` measures start times, memory and sizes, compared with runc (and gVisor if its
//! binary exists) on the same containerd. It measures single containers with `ctr`, pods over CRI,
//! and work with small files. With the argument `cluster` (`make bench-k8s`), it measures pods on a
//! Kubernetes.
//!
//! Runtimes that are compared are measured in turns in one run, since machines differ, and one
//! machine differs from hour to hour. The exit code is 1 if a limit is exceeded.
//! `CAISSON_BENCH_ROUNDS` sets the number of rounds (10 by default), and `CAISSON_BENCH_BEFORE`
//! names the `target/dist` of another build, whose starts are measured in the same turns. The
//! argument `containers`, `pods`, `ways`, `work`, `cluster`, `memory`, `files` or `claims` (parts
//! of `pods`), `bursts` (a part of `ways`) or `crowd` (not run otherwise, since it takes ten
//! minutes) selects one part.

mod bare;
mod before;
mod bursts;
mod claims;
mod cluster_starts;
mod cold;
mod crowd;
mod plot;
mod pod_memory;
mod pod_network;
mod pod_starts;
mod pod_unemulated;
mod sizes;
mod skill_reads;
mod small_files;
mod stages;
mod table;
mod way;
mod ways;
mod work;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{ensure, Result};
use caisson_tests::{
    cri::CriNode,
    gvisor,
    node::{exit_on_signals, Node},
    Runtime,
};
use table::Series;
use way::Way;

/// The cold start may take at most this many times as long as a bare QEMU boot.
const COLD_LIMIT: f64 = 1.5;
/// How often pods are started at once.
const BURSTS: usize = 3;
/// The limit of the shim's resident memory in bytes.
const SHIM_LIMIT: u64 = 8 << 20;
/// A pod's second container may take at most this many times as long as with runc.
const SECOND_LIMIT: f64 = 2.0;

fn main() -> ExitCode {
    match bench() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench() -> Result<bool> {
    exit_on_signals()?;
    // As a node has it that nobody has changed: each line costs time in the guest and on the host.
    std::env::set_var("CAISSON_TEST_LOG", "info");
    let rounds: usize =
        std::env::var("CAISSON_BENCH_ROUNDS").map_or(Ok(10), |text| text.parse())?;
    let part = std::env::args().nth(1);
    let asked = |name: &str| part.as_deref().is_none_or(|part| part == name);
    match part.as_deref() {
        Some("cluster") => return cluster_starts::measure(rounds.div_ceil(3)).map(|()| true),
        Some("memory") => return memory().map(|()| true),
        Some("bursts") => return bursts::measure(Way::all()?, BURSTS).map(|_| true),
        Some("files") => return files(rounds).map(|()| true),
        Some("claims") => return claims(rounds).map(|()| true),
        Some("crowd") => return crowd::measure().map(|()| true),
        _ => {}
    }
    ensure!(
        asked("containers") || asked("pods") || asked("ways") || asked("work"),
        "bench [containers|pods|ways|bursts|crowd|work|memory|files|claims|cluster]"
    );
    let containers_are_kept = !asked("containers") || containers(rounds)?;
    let pods_are_kept = !asked("pods") || pods(rounds)?;
    if asked("ways") {
        ways::measure(rounds)?;
    }
    if asked("work") {
        work()?;
    }
    Ok(containers_are_kept && pods_are_kept)
}

/// Measures containers with `ctr`.
fn containers(rounds: usize) -> Result<bool> {
    let node = Node::keep(Node::start()?);
    node.image("busybox")?;
    println!(
        "containerd {}, {rounds} rounds in turns\n",
        node.containerd_version()?
    );
    let before = before::node()?;
    let runs_are_kept = runs(node, before.as_ref(), rounds)?;
    let cold_is_kept = cold_starts(node, before.as_ref(), rounds)?;
    let shim_is_kept = sizes::memory(node, before.as_ref(), SHIM_LIMIT)?;
    drop(before);
    skill_reads::measure(node, rounds.div_ceil(2))?;
    sizes::binaries()?;
    node.remove();
    Ok(runs_are_kept && cold_is_kept && shim_is_kept)
}

/// Measures what a kubelet sees, on a separate node.
fn pods(rounds: usize) -> Result<bool> {
    let node: &'static CriNode = Box::leak(Box::new(CriNode::start()?));
    Node::end_at_exit(node);
    node.image("busybox")?;
    println!(
        "\ncontainerd {}, {rounds} rounds in turns",
        node.containerd_version()?
    );
    let before = before::cri_node()?;
    let starts_are_kept = pod_starts::measure(node, before.as_ref(), rounds, SECOND_LIMIT)?;
    drop(before);
    pod_network::measure(node, rounds)?;
    node.remove();
    memory()?;
    files(rounds)?;
    claims(rounds.div_ceil(2))?;
    Ok(starts_are_kept)
}

/// Measures the memory of pods, on a separate node.
fn memory() -> Result<()> {
    let node: &'static CriNode = Box::leak(Box::new(CriNode::start()?));
    Node::end_at_exit(node);
    node.image("busybox")?;
    pod_memory::measure(node)?;
    node.remove();
    Ok(())
}

/// Measures work with small files, on a separate node.
fn files(rounds: usize) -> Result<()> {
    let node: &'static CriNode = Box::leak(Box::new(CriNode::start()?));
    Node::end_at_exit(node);
    node.image("busybox")?;
    small_files::measure(node, rounds)?;
    node.remove();
    Ok(())
}

/// Measures claims of warm pods, on a separate node.
fn claims(rounds: usize) -> Result<()> {
    let node: &'static CriNode = Box::leak(Box::new(CriNode::start()?));
    Node::end_at_exit(node);
    node.image("busybox")?;
    claims::measure(node, rounds)?;
    node.remove();
    Ok(())
}

/// Measures what agents and CI jobs do all day, on a separate node. One round, since it takes
/// minutes under emulation.
fn work() -> Result<()> {
    let node: &'static CriNode = Box::leak(Box::new(CriNode::start()?));
    Node::end_at_exit(node);
    work::measure(node, 1)?;
    node.remove();
    Ok(())
}

/// Measures `ctr run --rm … true` with each runtime. Returns whether it takes no longer than with
/// the build before.
fn runs(node: &Node, before: Option<&Node>, rounds: usize) -> Result<bool> {
    let mut runc = Series::new("runc");
    let mut runsc = Series::new("gVisor (runsc, systrap)");
    let mut old = Series::new("Caisson, the build before");
    let mut caisson = Series::new("Caisson");
    for _ in 0..rounds {
        runc.add(timed(|| run_true(node, Runtime::Runc))?);
        if gvisor::is_there() {
            runsc.add(timed(|| run_true(node, Runtime::Gvisor))?);
        }
        if let Some(node) = before {
            old.add(timed(|| run_true(node, Runtime::Caisson))?);
        }
        caisson.add(timed(|| run_true(node, Runtime::Caisson))?);
    }
    table::heading("ctr run --rm … true");
    runc.print();
    if gvisor::is_there() {
        runsc.print();
    } else {
        println!("  gVisor is not there: cargo xtask test-tools --gvisor");
    }
    caisson.print();
    Ok(caisson.print_beside(&old))
}

fn cold_starts(node: &Node, before: Option<&Node>, rounds: usize) -> Result<bool> {
    let boot = bare::Boot::like_ours(node)?;
    let mut bare = Series::new("bare QEMU, exec to the first line of init");
    let mut old = Series::new("the same with the build before");
    let mut cold = Series::new("Caisson, shim to the first byte of the container");
    for _ in 0..rounds {
        bare.add(boot.time()?);
        if let Some(node) = before {
            old.add(cold::time(node)?);
        }
        cold.add(cold::time(node)?);
    }
    table::heading("cold start, the same machine and kernel");
    bare.print();
    cold.print();
    let ratio = cold.ratio_to(&bare);
    let kept = ratio <= COLD_LIMIT;
    println!(
        "  ratio of the medians {ratio:.2}, at most {COLD_LIMIT}: {}",
        table::verdict(kept)
    );
    Ok(cold.print_beside(&old) && kept)
}

fn run_true(node: &Node, runtime: Runtime) -> Result<()> {
    let container = node.container("busybox").runtime(runtime).args(["true"]);
    let output = container.run()?;
    // gVisor's shim asks for the status of a sandbox that may have ended already.
    if runtime == Runtime::Gvisor && output.code == 128 {
        return Ok(());
    }
    output.ok().map(drop)
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}
