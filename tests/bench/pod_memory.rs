//! Measures the host memory that pods take, by process. The more pods there are, the more of it
//! they share.

use std::collections::BTreeMap;

use anyhow::Result;
use caisson_tests::{
    cri::{Container, CriNode, Pod},
    proc, Runtime,
};

use crate::{
    pod_starts::{limited, limited_pod, LIMIT_MIB},
    sizes::family_pss,
    table::{heading, mib},
};

const COUNTS: [usize; 3] = [1, 5, 20];

/// Prints the memory of a pod with one sleeping container, for each number of pods in [`COUNTS`].
pub fn measure(node: &CriNode) -> Result<()> {
    heading("\nmemory per pod of one container that sleeps (PSS), at 1, 5 and 20 pods");
    for (runtime, name) in [(Runtime::Runc, "runc"), (Runtime::Caisson, "Caisson")] {
        println!("  {name}");
        print(&at_counts(node, runtime, &COUNTS, None)?);
    }
    heading(&format!(
        "\nthe same of one pod with a limit of {LIMIT_MIB} MiB"
    ));
    for (runtime, name) in [(Runtime::Runc, "runc"), (Runtime::Caisson, "Caisson")] {
        println!("  {name}");
        print(&at_counts(node, runtime, &[1], Some(LIMIT_MIB))?);
    }
    Ok(())
}

fn print(rows: &BTreeMap<String, Vec<u64>>) {
    for (piece, columns) in rows {
        let columns: Vec<_> = columns.iter().map(|&bytes| mib(bytes)).collect();
        println!("    {piece:<40} {}", columns.join(" "));
    }
    let counts = rows.values().next().map_or(0, Vec::len);
    let sum = |count| rows.values().filter_map(|columns| columns.get(count)).sum();
    let sums: Vec<_> = (0..counts).map(|count| mib(sum(count))).collect();
    println!("    {:<40} {}", "together", sums.join(" "));
}

/// Returns the mean over the pods for each piece at each of the counts.
fn at_counts(
    node: &CriNode,
    runtime: Runtime,
    counts: &[usize],
    memory_mib: Option<i64>,
) -> Result<BTreeMap<String, Vec<u64>>> {
    let mut pods: Vec<Pod<'_>> = Vec::new();
    let mut rows: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for &count in counts {
        while pods.len() < count {
            let pod = limited_pod(node.pod().runtime(runtime), memory_mib).start()?;
            // The container ends with its pod.
            std::mem::forget(sleeping(&pod, memory_mib)?);
            pods.push(pod);
        }
        let mut sums: BTreeMap<String, u64> = BTreeMap::new();
        for pod in &pods {
            for (piece, bytes) in pieces(pod)? {
                *sums.entry(piece).or_default() += bytes;
            }
        }
        for (piece, sum) in sums {
            rows.entry(piece).or_default().push(sum / count as u64);
        }
    }
    Ok(rows)
}

fn sleeping<'p>(pod: &'p Pod<'_>, memory_mib: Option<i64>) -> Result<Container<'p>> {
    let container = limited(pod.container("busybox"), memory_mib);
    let container = container.args(["sleep", "10000"]).start()?;
    container.sh("true")?;
    Ok(container)
}

/// Returns a pod's processes on the host and their memory.
fn pieces(pod: &Pod<'_>) -> Result<Vec<(String, u64)>> {
    let shim = pod.shim()?;
    let mut pieces = vec![("shim".to_owned(), proc::pss(shim)?)];
    match pod.runtime() {
        Runtime::Runc => {
            let processes = family_pss(shim)?.saturating_sub(pieces[0].1);
            pieces.push(("pause and container".to_owned(), processes));
        }
        Runtime::Caisson => {
            for (role, pid) in pod.vm_processes()? {
                pieces.push((role, family_pss(pid)?));
            }
        }
    }
    Ok(pieces)
}
