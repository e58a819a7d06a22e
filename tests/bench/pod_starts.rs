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
/// container of a pod without a limit starts within `limit` times runc's time, and whether nothing
/// takes longer than with the build before.
pub fn measure(
    node: &CriNode,
    before: Option<&CriNode>,
    rounds: usize,
    limit: f64,
) -> Result<bool> {
    let free = rounds_of(node, before, rounds, None)?;
    heading("\npods by CRI");
    let mut kept = free.print();
    let ratio = free.caisson.second.ratio_to(&free.runc.second);
    kept &= ratio <= limit;
    println!(
        "  second container, ratio of the medians {ratio:.2}, at most {limit}: {}",
        verdict(ratio <= limit)
    );
    pod_unemulated::measure(rounds)?.print();
    heading(&format!("\nthe same pods with a limit of {LIMIT_MIB} MiB"));
    kept &= rounds_of(node, before, rounds.div_ceil(2), Some(LIMIT_MIB))?.print();
    Ok(kept)
}

/// The times of pods that were started in turns.
struct Compared {
    runc: Times,
    /// Those of the build before, if there is one.
    before: Times,
    caisson: Times,
}

fn rounds_of(
    node: &CriNode,
    before: Option<&CriNode>,
    rounds: usize,
    memory_mib: Option<i64>,
) -> Result<Compared> {
    let mut all = Compared {
        runc: Times::of("runc"),
        before: Times::of("Caisson, the build before"),
        caisson: Times::of("Caisson"),
    };
    for _ in 0..rounds {
        all.runc
            .add(node.pod().runtime(Runtime::Runc), memory_mib)?;
        if let Some(node) = before {
            all.before.add(node.pod(), memory_mib)?;
        }
        all.caisson.add(node.pod(), memory_mib)?;
    }
    Ok(all)
}

impl Compared {
    /// Returns whether nothing takes longer than with the build before.
    fn print(&self) -> bool {
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
        let mut kept = true;
        for (what, column) in columns {
            println!("  {what}");
            column(&self.runc).print();
            column(&self.caisson).print();
            kept &= column(&self.caisson).print_beside(column(&self.before));
        }
        kept
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
pub fn first_byte<'p>(pod: &'p Pod<'_>, memory_mib: Option<i64>) -> Result<Container<'p>> {
    // The pod has two containers.
    let half = memory_mib.map(|mib| mib / 2);
    let container = limited(pod.container("busybox"), half);
    let container = container.sh("echo ready; exec sleep 1000").start()?;
    wait_for_byte(container.log_path())?;
    Ok(container)
}

/// Waits for the first byte in a log.
pub fn wait_for_byte(log: &Path) -> Result<()> {
    let start = Instant::now();
    while fs::metadata(log).map_or(0, |log| log.len()) == 0 {
        ensure!(start.elapsed() < Duration::from_secs(60), "no output");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
