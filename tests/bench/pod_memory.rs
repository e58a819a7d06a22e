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

/// The row with what the node has less than before, which no piece is part of.
const AVAILABLE: &str = "less MemAvailable";

/// The bytes of all pods together, for each piece at each count of pods.
type Rows = BTreeMap<String, Vec<u64>>;

/// Prints the memory of a pod with one sleeping container, for each number of pods in [`COUNTS`].
pub fn measure(node: &CriNode) -> Result<()> {
    heading(
        "\nmemory per pod of one container that sleeps (PSS), at 1, 5 and 20 pods; of each more",
    );
    for (runtime, name) in [(Runtime::Runc, "runc"), (Runtime::Caisson, "Caisson")] {
        println!("  {name}");
        print(&COUNTS, &at_counts(node, runtime, &COUNTS, None)?);
    }
    heading(&format!(
        "\nthe same of one pod with a limit of {LIMIT_MIB} MiB"
    ));
    for (runtime, name) in [(Runtime::Runc, "runc"), (Runtime::Caisson, "Caisson")] {
        println!("  {name}");
        print(&[1], &at_counts(node, runtime, &[1], Some(LIMIT_MIB))?);
    }
    Ok(())
}

/// Prints the mean of a pod at each of the counts, and of the pods that the last count has more
/// than the first.
fn print(counts: &[usize], rows: &Rows) {
    let row = |name: &str, sums: &[u64]| {
        let means = sums.iter().zip(counts);
        let mut columns: Vec<_> = means.map(|(sum, count)| mib(sum / *count as u64)).collect();
        if let ([first, .., last], [fewest, .., most]) = (sums, counts) {
            columns.push(mib(last.saturating_sub(*first) / (most - fewest) as u64));
        }
        println!("    {name:<40} {}", columns.join(" "));
    };
    let pieces = || rows.iter().filter(|(piece, _)| *piece != AVAILABLE);
    pieces().for_each(|(piece, sums)| row(piece, sums));
    let sum = |at: usize| pieces().filter_map(|(_, sums)| sums.get(at)).sum();
    let together: Vec<u64> = (0..counts.len()).map(sum).collect();
    row("together", &together);
    if let Some(sums) = rows.get(AVAILABLE) {
        row(AVAILABLE, sums);
    }
}

/// Returns what the pods have together for each piece at each of the counts.
fn at_counts(
    node: &CriNode,
    runtime: Runtime,
    counts: &[usize],
    memory_mib: Option<i64>,
) -> Result<Rows> {
    let mut pods: Vec<Pod<'_>> = Vec::new();
    let mut rows = Rows::new();
    let before = proc::memory("MemAvailable")?;
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
        let available = proc::memory("MemAvailable")?;
        sums.insert(AVAILABLE.to_owned(), before.saturating_sub(available));
        for (piece, sum) in sums {
            rows.entry(piece).or_default().push(sum);
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
        Runtime::Runc | Runtime::Gvisor => {
            let processes = family_pss(shim)?.saturating_sub(pieces[0].1);
            pieces.push(("pause and container".to_owned(), processes));
        }
        Runtime::Caisson => {
            for (role, pid) in pod.vm_processes()? {
                match role.as_str() {
                    "qemu" => pieces.extend(of_the_vmm(pid)?),
                    _ => pieces.push((role, family_pss(pid)?)),
                }
            }
        }
    }
    Ok(pieces)
}

/// Returns what the VMM's process has: the guest's memory, what it has translated of the guest's
/// instructions, and its own.
fn of_the_vmm(pid: u32) -> Result<Vec<(String, u64)>> {
    let (mut guest, mut code, mut rest) = (0, 0, 0);
    let mappings = proc::mappings(pid)?;
    let is_from_the_template = |mapping: &proc::Mapping| mapping.path.ends_with("/translations");
    for (at, mapping) in mappings.iter().enumerate() {
        // What QEMU keeps about each of the template's translations is right before them
        // (packaging/machine/qemu.patch).
        let is_about_them = mappings.get(at + 1).is_some_and(is_from_the_template);
        let sum = match mapping.path.as_str() {
            path if path.starts_with("/memfd:") => &mut guest,
            _ if is_from_the_template(mapping) => &mut code,
            "" if mapping.permissions.contains('x') || is_about_them => &mut code,
            _ => &mut rest,
        };
        *sum += mapping.pss;
    }
    let pieces = [("guest", guest), ("translated code", code), ("qemu", rest)];
    Ok(pieces
        .map(|(piece, bytes)| (piece.to_owned(), bytes))
        .into())
}
