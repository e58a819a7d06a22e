//! Measures pods over CRI, started as a kubelet does: the sandbox, a first and a second container,
//! the end.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{ensure, Result};
use caisson_tests::{
    cri::{api::LinuxContainerResources, Container, ContainerBuilder, CriNode, Pod, PodBuilder},
    Runtime,
};

use crate::{
    pod_unemulated,
    table::{heading, verdict, Series},
};

const RUNTIMES: [(Runtime, &str); 2] = [(Runtime::Runc, "runc"), (Runtime::Caisson, "Caisson")];
/// The memory limit of the pods that have one.
pub const LIMIT_MIB: i64 = 256;

/// The times of pods in one runtime.
struct Times {
    sandbox: Series,
    first: Series,
    second: Series,
    end: Series,
}

/// Prints the times of pods without a limit and of pods with one. Returns whether the second
/// container of a pod without a limit starts within `limit` times runc's time.
pub fn measure(node: &CriNode, rounds: usize, limit: f64) -> Result<bool> {
    let free = rounds_of(node, rounds, None)?;
    heading("\npods by CRI");
    print(&free);
    let [runc, caisson] = &free;
    let ratio = caisson.second.median().as_secs_f64() / runc.second.median().as_secs_f64();
    let kept = ratio <= limit;
    println!(
        "  second container, ratio of the medians {ratio:.2}, at most {limit}: {}",
        verdict(kept)
    );
    pod_unemulated::measure(rounds)?.print();
    heading(&format!("\nthe same pods with a limit of {LIMIT_MIB} MiB"));
    print(&rounds_of(node, rounds.div_ceil(2), Some(LIMIT_MIB))?);
    Ok(kept)
}

fn rounds_of(node: &CriNode, rounds: usize, memory_mib: Option<i64>) -> Result<[Times; 2]> {
    let mut all = RUNTIMES.map(|(_, name)| Times::of(name));
    for _ in 0..rounds {
        for ((runtime, _), times) in RUNTIMES.iter().zip(&mut all) {
            times.add(node.pod().runtime(*runtime), memory_mib)?;
        }
    }
    Ok(all)
}

fn print(all: &[Times; 2]) {
    type Column = fn(&Times) -> &Series;
    let columns: [(&str, Column); 4] = [
        ("RunPodSandbox", |times| &times.sandbox),
        ("RunPodSandbox to a container's first byte", |times| {
            &times.first
        }),
        ("a second container to its first byte", |times| {
            &times.second
        }),
        ("StopPodSandbox and RemovePodSandbox", |times| &times.end),
    ];
    for (what, column) in columns {
        println!("  {what}");
        for times in all {
            column(times).print();
        }
    }
}

impl Times {
    fn of(name: &'static str) -> Self {
        let series = || Series::new(name);
        Self {
            sandbox: series(),
            first: series(),
            second: series(),
            end: series(),
        }
    }

    /// Measures one pod from its start to its end.
    fn add(&mut self, pod: PodBuilder<'_>, memory_mib: Option<i64>) -> Result<()> {
        let start = Instant::now();
        let pod = limited_pod(pod, memory_mib).start()?;
        self.sandbox.add(start.elapsed());
        let _first = first_byte(&pod, memory_mib)?;
        self.first.add(start.elapsed());
        let start = Instant::now();
        let _second = first_byte(&pod, memory_mib)?;
        self.second.add(start.elapsed());
        let start = Instant::now();
        pod.stop()?;
        pod.remove()?;
        self.end.add(start.elapsed());
        Ok(())
    }
}

/// Sets the sandbox's limit, which a kubelet sets to the sum of the containers' limits.
pub fn limited_pod(pod: PodBuilder<'_>, memory_mib: Option<i64>) -> PodBuilder<'_> {
    let Some(mib) = memory_mib else { return pod };
    pod.configure(|config| {
        let linux = config.linux.get_or_insert_default();
        linux.resources = Some(LinuxContainerResources {
            memory_limit_in_bytes: mib << 20,
            ..Default::default()
        });
    })
}

pub fn limited(container: ContainerBuilder<'_>, memory_mib: Option<i64>) -> ContainerBuilder<'_> {
    match memory_mib {
        Some(mib) => container.memory_mib(mib),
        None => container,
    }
}

/// Starts a container and waits for the first byte in its log.
fn first_byte<'p>(pod: &'p Pod<'_>, memory_mib: Option<i64>) -> Result<Container<'p>> {
    // The pod has two containers.
    let half = memory_mib.map(|mib| mib / 2);
    let container = limited(pod.container("busybox"), half);
    let container = container.sh("echo ready; exec sleep 1000").start()?;
    wait_for_byte(container.log_path())?;
    Ok(container)
}

fn wait_for_byte(log: &Path) -> Result<()> {
    let start = Instant::now();
    while fs::metadata(log).map_or(0, |log| log.len()) == 0 {
        ensure!(start.elapsed() < Duration::from_secs(60), "no output");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
