//! Measures the time from a pod's creation to Ready on a real Kubernetes, for one pod and for ten
//! at once, compared with runc.

use std::time::{Duration, Instant};

use anyhow::Result;
use caisson_tests::{
    fixture,
    k8s::{set_class, TestCluster},
    Runtime,
};
use serde_json::json;

use crate::table::{heading, Series};

/// Prints the times until the last of a number of pods is ready, as `kubectl` sees it.
pub fn measure(rounds: usize) -> Result<()> {
    let cluster = TestCluster::shared();
    cluster.image("busybox")?;
    heading("\npods of a cluster, from create to Ready");
    for count in [1, 10] {
        println!("  {count} at once");
        let mut all = [Series::new("runc"), Series::new("Caisson")];
        for _ in 0..rounds {
            for (series, runtime) in all.iter_mut().zip([Runtime::Runc, Runtime::Caisson]) {
                series.add(ready(cluster, runtime, count)?);
            }
        }
        all.iter().for_each(Series::print);
    }
    Ok(())
}

fn ready(cluster: &TestCluster, runtime: Runtime, count: usize) -> Result<Duration> {
    let namespace = cluster.namespace()?;
    let pods: Vec<_> = (0..count)
        .map(|n| {
            let mut spec = json!({
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "main",
                    "image": fixture::full_name("busybox"),
                    "command": ["sleep", "100000"],
                }],
            });
            set_class(&mut spec, runtime);
            json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": { "name": format!("pod-{n}") },
                "spec": spec,
            })
        })
        .collect();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": pods });
    let start = Instant::now();
    namespace.apply(&list)?;
    let wait = [
        "wait",
        "--for=condition=Ready",
        "pods",
        "--all",
        "--timeout=110s",
    ];
    namespace.kubectl(&wait)?.ok()?;
    let time = start.elapsed();
    // The next pods must not wait for these.
    namespace.kubectl(&["delete", "pods", "--all"])?.ok()?;
    Ok(time)
}
