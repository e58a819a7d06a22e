//! Measures the ways in which a pod gets its VM, in turns in one run: it boots, it starts from a
//! template, or it waits in the pool. Beside them, the same by runc and, if it is there, gVisor.
//!
//! The figures go to `target/bench/starts.json` too, with every time that was measured, and a
//! picture of them to `target/bench/starts.png`.

use std::{fs, time::Instant};

use anyhow::{Context, Result};
use caisson_tests::{paths, Runtime};
use serde_json::{json, Value};

use crate::{
    bursts, plot,
    pod_starts::first_byte,
    stages::Stages,
    table::{heading, millis, Series},
    way::Way,
};

/// How often the times are resampled for an interval.
const RESAMPLES: usize = 2000;

/// What is measured of one way.
struct Times {
    run: Series,
    sandbox: Series,
    first: Series,
    /// The stages in which the sandbox and its container started.
    stages: Stages,
}

impl Times {
    fn of(way: &Way) -> Self {
        Self {
            run: Series::new(way.name),
            sandbox: Series::new(way.name),
            first: Series::new(way.name),
            stages: Stages::default(),
        }
    }

    fn add(&mut self, way: &Way) -> Result<()> {
        way.get_ready()?;
        let start = Instant::now();
        way.run_true()?;
        self.run.add(start.elapsed());
        way.get_ready()?;
        let start = Instant::now();
        let pod = way.pod().start()?;
        self.sandbox.add(start.elapsed());
        let container = first_byte(&pod, None)?;
        self.first.add(start.elapsed());
        drop(container);
        if pod.runtime() == Runtime::Caisson {
            self.stages.add(way, &pod)?;
        }
        pod.stop()?;
        pod.remove()
    }
}

/// Prints the times and writes them to a file.
pub fn measure(rounds: usize) -> Result<()> {
    let ways = Way::all()?;
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
        let gvisor = ways.iter().position(|way| way.runtime == Runtime::Gvisor);
        let of_gvisor = gvisor.map(|at| column(&times[at]));
        let rows = times.iter().map(|times| {
            let series = column(times);
            series.print();
            let (ratio, low, high) = series.interval_of_ratio_to(of_runc, RESAMPLES);
            println!(
                "  {:<56} {ratio:.2} × runc ({low:.2} to {high:.2}), p99 {} ms",
                "",
                series.quantile(0.99).as_millis()
            );
            if let Some(of_gvisor) = of_gvisor {
                let (ratio, low, high) = series.interval_of_ratio_to(of_gvisor, RESAMPLES);
                println!("  {:<56} {ratio:.2} × gVisor ({low:.2} to {high:.2})", "");
            }
            let millis: Vec<_> = series.in_order().map(millis).collect();
            (
                series.name().to_owned(),
                json!({ "ms": millis, "ratio_to_runc": [ratio, low, high] }),
            )
        });
        figures.insert(what.to_owned(), Value::Object(rows.collect()));
    }
    figures.insert("stages".to_owned(), stages(&times));
    figures.insert(
        "pods at once".to_owned(),
        bursts::measure(ways, rounds.div_ceil(4))?,
    );
    let panels = columns.map(|(what, column)| (what, times.iter().map(column).collect()));
    let folder = paths::target().join("bench");
    fs::create_dir_all(&folder)?;
    let picture = folder.join("starts.png");
    plot::write(&panels, &picture)?;
    let file = folder.join("starts.json");
    fs::write(&file, serde_json::to_vec_pretty(&figures)?)
        .with_context(|| format!("write {}", file.display()))?;
    println!("\nall times: {}, {}", file.display(), picture.display());
    Ok(())
}

/// Prints the stages of Caisson's starts and returns them.
fn stages(times: &[Times]) -> Value {
    heading("\nQEMU is executed to the first answer of the guest's agent");
    let series = times
        .iter()
        .filter_map(|times| times.stages.to_the_agent(times.run.name()));
    series.for_each(|series| series.print());
    let mut figures = serde_json::Map::new();
    for times in times.iter().filter(|times| !times.stages.is_empty()) {
        heading(&format!("\nstages (caisson trace): {}", times.run.name()));
        times.stages.print();
        figures.insert(times.run.name().to_owned(), times.stages.json());
    }
    Value::Object(figures)
}
