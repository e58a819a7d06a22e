//! Measures whether a pod on a node with many pods starts as fast as the first.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    pod_starts::first_byte,
    table::{heading, Series},
    way::Way,
};

/// How many pods there are in the end.
const PODS: usize = 100;
/// How many starts are compared with as many.
const COMPARED: usize = 10;
/// The time for the last pods before those that are compared to do what comes after a start, as the
/// pods before the first ones have had.
const SETTLED: Duration = Duration::from_secs(60);

/// Prints the times of the first and the last starts.
pub fn measure() -> Result<()> {
    heading(&format!(
        "\n{PODS} pods one after another, each to its first byte"
    ));
    for way in [Way::runc()?, Way::from_a_template()?] {
        let mut first = Series::new("the first ten");
        let mut last = Series::new("the last ten");
        let mut pods = Vec::new();
        for at in 0..PODS {
            if at == PODS - COMPARED {
                thread::sleep(SETTLED);
            }
            let start = Instant::now();
            let pod = way.pod().start()?;
            // The container ends with its pod.
            std::mem::forget(first_byte(&pod, None)?);
            let time = start.elapsed();
            if at < COMPARED {
                first.add(time);
            }
            if at >= PODS - COMPARED {
                last.add(time);
            }
            pods.push(pod);
        }
        println!("  {}", way.name);
        first.print();
        last.print();
        println!("  {:<56} {:.2} × the first", "", last.ratio_to(&first));
        for pod in pods {
            pod.stop()?;
            pod.remove()?;
        }
        way.remove();
    }
    Ok(())
}
