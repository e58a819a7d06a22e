//! Measures the ways in which a pod gets its VM, in turns in one run: it boots, it starts from a
//! template, or it waits in the pool. Beside them, the same by runc and, if it is there, gVisor.
//!
//! The figures go to `target/bench/starts.json` too, with every time that was measured.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{anyhow, Context, Result};
use caisson_tests::{
    command,
    cri::{CriNode, Pod},
    node, paths, Node, Runtime,
};
use serde_json::{json, Value};

use crate::{
    pod_starts::first_byte,
    run_true,
    table::{heading, Series},
};

/// How long a member of the pool may take to be ready.
const READY: Duration = Duration::from_secs(120);
/// How often the times are resampled for an interval.
const RESAMPLES: usize = 2000;

/// How many pods a burst has.
const BURST: usize = 20;

/// A way to get a VM, with a containerd of its own.
struct Way {
    name: &'static str,
    node: CriNode,
    runtime: Runtime,
    has_pool: bool,
}

impl Way {
    fn new(name: &'static str, runtime: Runtime, templates: bool, pool: u32) -> Result<Self> {
        let node = CriNode::start_with(|config| {
            config["vm"]["templates"] = templates.into();
            config["pool"] = json!({ "size": pool });
        })?;
        node.image("busybox")?;
        let way = Self {
            name,
            node,
            runtime,
            has_pool: pool > 0,
        };
        if templates {
            let mut build = node::caisson(&way.node)?;
            let built = command::run(build.args(["template", "build"]), None, READY)?;
            built.ok()?;
        }
        // The first start of a node finds out about KVM, and has the first member of a pool born.
        run_true(&way.node, runtime, None)?;
        Ok(way)
    }

    /// Waits until the next start would find what it needs.
    fn get_ready(&self) -> Result<()> {
        if self.has_pool {
            command::poll("a member of the pool", READY, || {
                let list = command::run(node::caisson(&self.node).ok()?.arg("list"), None, READY);
                list.ok()?.text().contains(" in pool ").then_some(())
            })?;
        }
        Ok(())
    }
}

/// What is measured of one way.
struct Times {
    run: Series,
    sandbox: Series,
    first: Series,
}

impl Times {
    fn of(way: &Way) -> Self {
        Self {
            run: Series::new(way.name),
            sandbox: Series::new(way.name),
            first: Series::new(way.name),
        }
    }

    fn add(&mut self, way: &Way) -> Result<()> {
        way.get_ready()?;
        let start = Instant::now();
        run_true(&way.node, way.runtime, None)?;
        self.run.add(start.elapsed());
        way.get_ready()?;
        let start = Instant::now();
        let pod = way.node.pod().runtime(way.runtime).start()?;
        self.sandbox.add(start.elapsed());
        let container = first_byte(&pod, None)?;
        self.first.add(start.elapsed());
        drop(container);
        pod.stop()?;
        pod.remove()
    }
}

/// Prints how long it takes until each of many pods that are started at once has said something.
fn bursts(ways: &[Way], rounds: usize, figures: &mut serde_json::Map<String, Value>) -> Result<()> {
    let mut times: Vec<_> = ways.iter().map(|way| Series::new(way.name)).collect();
    for _ in 0..rounds {
        for (way, series) in ways.iter().zip(&mut times) {
            way.get_ready()?;
            let start = Instant::now();
            let pods = thread::scope(|scope| {
                let starts: Vec<_> = (0..BURST).map(|_| scope.spawn(|| started(way))).collect();
                let pods = starts.into_iter().map(|start| {
                    let start = start.join().map_err(|_| anyhow!("a start panicked"));
                    start?
                });
                pods.collect::<Result<Vec<_>>>()
            })?;
            series.add(start.elapsed());
            for pod in pods {
                pod.stop()?;
                pod.remove()?;
            }
        }
    }
    heading(&format!(
        "\n{BURST} pods at once, to the first byte of each"
    ));
    let rows = times.iter().map(|series| {
        series.print();
        let ratio = 1.0 / series.ratio_to(&times[0]);
        let pods_per_second = BURST as f64 / series.median().as_secs_f64();
        println!(
            "  {:<56} {pods_per_second:.2} pods a second, {ratio:.2} × runc",
            ""
        );
        let millis: Vec<_> = series.in_order().map(millis).collect();
        (series.name().to_owned(), json!({ "ms": millis }))
    });
    let rows = rows.collect();
    figures.insert(format!("{BURST} pods at once"), Value::Object(rows));
    Ok(())
}

/// Starts a pod and waits for its container's first byte.
fn started(way: &Way) -> Result<Pod<'_>> {
    let pod = way.node.pod().runtime(way.runtime).start()?;
    // The container ends with its pod.
    std::mem::forget(first_byte(&pod, None)?);
    Ok(pod)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Prints the times and writes them to a file.
pub fn measure(rounds: usize) -> Result<()> {
    let ways = [
        Way::new("runc", Runtime::Runc, false, 0)?,
        Way::new("Caisson, the VM boots", Runtime::Caisson, false, 0)?,
        Way::new("Caisson, from a template", Runtime::Caisson, true, 0)?,
        Way::new("Caisson, from the pool", Runtime::Caisson, true, 1)?,
    ];
    println!(
        "containerd {}, {rounds} rounds in turns",
        ways[0].node.containerd_version()?
    );
    let mut times: Vec<_> = ways.iter().map(Times::of).collect();
    for _ in 0..rounds {
        for (way, times) in ways.iter().zip(&mut times) {
            times.add(way)?;
        }
    }
    type Column = fn(&Times) -> &Series;
    let columns: [(&str, Column); 3] = [
        ("ctr run --rm … true", |times| &times.run),
        ("RunPodSandbox", |times| &times.sandbox),
        ("RunPodSandbox to the first byte", |times| &times.first),
    ];
    let mut figures = serde_json::Map::new();
    for (what, column) in columns {
        heading(&format!("\n{what}"));
        let of_runc = column(&times[0]);
        let rows = times.iter().map(|times| {
            let series = column(times);
            series.print();
            let (ratio, low, high) = series.interval_of_ratio_to(of_runc, RESAMPLES);
            println!(
                "  {:<56} {ratio:.2} × runc ({low:.2} to {high:.2}), p99 {} ms",
                "",
                series.quantile(0.99).as_millis()
            );
            let millis: Vec<_> = series.in_order().map(millis).collect();
            (
                series.name().to_owned(),
                json!({ "ms": millis, "ratio_to_runc": [ratio, low, high] }),
            )
        });
        figures.insert(what.to_owned(), Value::Object(rows.collect()));
    }
    bursts(&ways, rounds.div_ceil(4), &mut figures)?;
    let file = paths::target().join("bench/starts.json");
    fs::create_dir_all(paths::target().join("bench"))?;
    fs::write(&file, serde_json::to_vec_pretty(&figures)?)
        .with_context(|| format!("write {}", file.display()))?;
    println!("\nall times: {}", file.display());
    for way in &ways {
        let node: &Node = &way.node;
        node.remove();
    }
    Ok(())
}
