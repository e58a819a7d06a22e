//! Measures work with small files in the root of a container and in an emptyDir, shared and on
//! disks of the VM (`caisson.dev/scratch`), beside the memory of the same guest, and with runc.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use caisson_tests::{
    cri::{Container, CriNode, Pod},
    Runtime,
};

use crate::table::{heading, Series};

const FILES: &str = "2000";
/// The time limit for one piece of work.
const LIMIT: Duration = Duration::from_secs(300);
/// Where the work is done, and what that is. The first one is memory.
const PLACES: [(&str, &str); 3] = [
    ("/dev/shm", "memory"),
    ("", "the root"),
    ("/data", "an emptyDir"),
];
const WORK: [&str; 5] = ["create", "read", "rename", "remove", "all of it"];
/// Each pod, with its runtime and its annotation.
const PODS: [(&str, Runtime, Option<&str>); 3] = [
    ("runc", Runtime::Runc, None),
    ("shared", Runtime::Caisson, Some("shared")),
    ("disk", Runtime::Caisson, Some("disk")),
];

/// Prints how many times as long as in memory each piece of work takes in each place, by the
/// medians of rounds in turns.
pub fn measure(node: &'static CriNode, rounds: usize) -> Result<()> {
    let pods: Vec<_> = PODS
        .iter()
        .map(|pod| start(node, pod))
        .collect::<Result<_>>()?;
    let mut containers = Vec::new();
    for ((pod, volume), (name, ..)) in pods.iter().zip(PODS) {
        let container = pod.container("busybox").mount(volume, "/data");
        let container = container.args(["sleep", "100000"]).start()?;
        let series = PLACES.map(|_| WORK.map(Series::new));
        containers.push((name, container, series));
    }
    for _ in 0..rounds {
        for (_, container, series) in &mut containers {
            for ((place, _), series) in PLACES.iter().zip(series) {
                let times = work(container, place)?;
                for (series, time) in series.iter_mut().zip(times) {
                    series.add(time);
                }
            }
        }
    }
    heading(&format!("{FILES} small files, times those in memory"));
    for (name, _, [memory, others @ ..]) in &containers {
        for ((_, place), series) in PLACES[1..].iter().zip(others) {
            let ratio = |(one, memory): (&Series, &Series)| {
                let millis = one.median().as_millis();
                format!("{} {:.1} ({millis} ms)", one.name(), one.ratio_to(memory))
            };
            let ratios: Vec<_> = series.iter().zip(memory).map(ratio).collect();
            println!("  {name}, {place}: {}", ratios.join(", "));
        }
    }
    Ok(())
}

/// Starts a pod, and makes its emptyDir as a kubelet does.
fn start(
    node: &'static CriNode,
    (name, runtime, scratch): &(&str, Runtime, Option<&str>),
) -> Result<(Pod<'static>, PathBuf)> {
    let uid = format!("0f11e5-{name}");
    let pod = node.pod().runtime(*runtime).configure(|config| {
        config.metadata.get_or_insert_default().uid = uid.clone();
    });
    let pod = match scratch {
        Some(scratch) => pod.annotation("caisson.dev/scratch", scratch).start()?,
        None => pod.start()?,
    };
    let volume = pod.folder(&format!("pods/{uid}/volumes/kubernetes.io~empty-dir/data"))?;
    fs::set_permissions(&volume, fs::Permissions::from_mode(0o777))?;
    Ok((pod, volume))
}

/// Does the work in a new folder of a place. Returns the time of each piece, and of all.
fn work(container: &Container, place: &str) -> Result<[Duration; WORK.len()]> {
    let folder = format!("{place}/work");
    let done = container.exec_within(["probe", "small-files", &folder, FILES], LIMIT)?;
    let told = done.ok()?.line();
    let mut times = [Duration::ZERO; WORK.len()];
    let mut words = told.split(' ');
    let [pieces @ .., all] = &mut times;
    for piece in pieces {
        let micros = words.next().with_context(|| told.clone())?;
        *piece = Duration::from_micros(micros.parse()?);
        *all += *piece;
    }
    Ok(times)
}
