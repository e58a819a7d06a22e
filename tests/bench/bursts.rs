//! Measures pods that are started at once: the time until each has said something, and the CPU time
//! that this takes, by process.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::{anyhow, Result};
use caisson_tests::{cri::Pod, proc, Runtime};
use serde_json::{json, Value};

use crate::{
    pod_starts::first_byte,
    table::{heading, millis, Series},
    way::Way,
};

/// How many pods a burst has.
const PODS: u32 = 20;

/// What the bursts of one way took.
struct Bursts {
    times: Series,
    /// The CPU time of all pods of a burst, by what took it.
    work: Vec<BTreeMap<String, Duration>>,
}

/// Prints the figures of some rounds, in turns, and returns them. The first way is what the others
/// are compared with. A pool that has a VM for each pod is measured, too.
pub fn measure(mut ways: Vec<Way>, rounds: usize) -> Result<Value> {
    ways.push(Way::from_a_pool_of(PODS)?);
    let mut measured: Vec<_> = ways.iter().map(Bursts::of).collect();
    for _ in 0..rounds {
        for (way, bursts) in ways.iter().zip(&mut measured) {
            bursts.add(way)?;
        }
    }
    heading(&format!("\n{PODS} pods at once, to the first byte of each"));
    let figures = measured.iter().map(|bursts| {
        bursts.print(&measured[0]);
        let millis: Vec<_> = bursts.times.in_order().map(millis).collect();
        (bursts.times.name().to_owned(), json!({ "ms": millis }))
    });
    let figures = figures.collect();
    ways.iter().for_each(Way::remove);
    Ok(Value::Object(figures))
}

impl Bursts {
    fn of(way: &Way) -> Self {
        Self {
            times: Series::new(way.name),
            work: Vec::new(),
        }
    }

    fn add(&mut self, way: &Way) -> Result<()> {
        way.get_ready()?;
        let before = proc::cpu_time_of_all()?;
        let start = Instant::now();
        let pods = thread::scope(|scope| {
            let starts: Vec<_> = (0..PODS).map(|_| scope.spawn(|| started(way))).collect();
            let pods = starts.into_iter().map(|start| {
                let start = start.join().map_err(|_| anyhow!("a start panicked"));
                start?
            });
            pods.collect::<Result<Vec<_>>>()
        })?;
        self.times.add(start.elapsed());
        let mut work = work(&pods)?;
        work.insert("all".to_owned(), proc::cpu_time_of_all()? - before);
        self.work.push(work);
        for pod in pods {
            pod.stop()?;
            pod.remove()?;
        }
        Ok(())
    }

    fn print(&self, first: &Self) {
        self.times.print();
        println!(
            "  {:<56} {:.2} pods a second, {:.2} × runc",
            "",
            f64::from(PODS) / self.times.median().as_secs_f64(),
            1.0 / self.times.ratio_to(&first.times)
        );
        let mut sums: BTreeMap<&str, Duration> = BTreeMap::new();
        for (piece, time) in self.work.iter().flatten() {
            *sums.entry(piece).or_default() += *time;
        }
        for (piece, sum) in sums {
            let per_pod = sum.as_millis() / (self.work.len() as u128 * u128::from(PODS)).max(1);
            println!("    CPU time of a pod, {piece:<37} {per_pod:>13} ms");
        }
    }
}

/// Starts a pod and waits for its container's first byte.
fn started(way: &Way) -> Result<Pod<'_>> {
    let pod = way.pod().start()?;
    // The container ends with its pod.
    std::mem::forget(first_byte(&pod, None)?);
    Ok(pod)
}

/// Returns the CPU time so far of the processes that pods have on the host.
fn work(pods: &[Pod<'_>]) -> Result<BTreeMap<String, Duration>> {
    let mut work: BTreeMap<String, Duration> = BTreeMap::new();
    for pod in pods {
        let mut processes = vec![("shim".to_owned(), pod.shim()?)];
        if pod.runtime() == Runtime::Caisson {
            processes.extend(pod.vm_processes()?);
        }
        for (role, pid) in processes {
            let mut family = vec![pid];
            if role != "shim" {
                family.extend(proc::descendants(pid));
            }
            for pid in family {
                *work.entry(role.clone()).or_default() += proc::cpu_time(pid)?;
            }
        }
    }
    Ok(work)
}
