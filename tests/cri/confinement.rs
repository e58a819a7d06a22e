//! Tests what the host's kernel charges to a pod, and which pods it kills first.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use caisson_tests::{
    cri::{CriNode, Pod},
    proc, Runtime,
};
use rstest::rstest;

#[test]
fn whole_vm_is_charged_to_the_pods_cgroup() -> Result<()> {
    let pod = CriNode::shared().pod().runtime(Runtime::Caisson).start()?;
    let container = pod.container("busybox").args(["sleep", "1000"]).start()?;
    let output = container.exec(["probe", "allocate", "60"])?.ok()?;
    assert_eq!(output.line(), "allocated 15360 pages");
    let parent = pod.cgroup_parent().trim_start_matches('/');
    let root = Path::new("/sys/fs/cgroup");
    let version_1 = root.join("memory").join(parent);
    let usage = match version_1.exists() {
        true => version_1.join("memory.usage_in_bytes"),
        false => root.join(parent).join("memory.current"),
    };
    let mut held = 0;
    for pid in family(&pod)? {
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let memory = cgroup.lines().find(|line| line.contains(":memory:"));
        let line = memory.or(cgroup.lines().last()).context("no cgroup")?;
        assert!(line.contains(parent), "{line}");
        held += rss(pid, "RssAnon")?;
    }
    // The guest's memory, which the daemons map too, is counted once.
    held += rss(pod.vmm()?, "RssShmem")?;
    let charged: u64 = fs::read_to_string(usage)?.trim().parse()?;
    println!("{} KiB held, {} KiB charged", held >> 10, charged >> 10);
    // The kernel counts in batches of 64 pages per CPU (mm/memcontrol.c, MEMCG_CHARGE_BATCH).
    assert!(charged + (1 << 20) >= held, "{charged} of {held} bytes");
    Ok(())
}

#[rstest]
#[case::best_effort("besteffort", 1000, [1000, 1000], 1000)]
#[case::burstable("burstable", 999, [980, 900], 880)]
#[case::no_class("other", 0, [980, 900], 880)]
fn vm_has_the_oom_score_that_its_containers_make(
    #[case] class: &str,
    #[case] sandbox: i32,
    #[case] containers: [i64; 2],
    #[case] both: i32,
) -> Result<()> {
    let pod = pod_of(class)?;
    assert_eq!(scores(&pod)?, [sandbox]);
    let [first, second] = containers.map(|score| {
        let container = pod.container("busybox");
        let container = container.resources(|resources| resources.oom_score_adj = score);
        container.args(["sleep", "1000"]).start()
    });
    let (_first, second) = (first?, second?);
    assert_eq!(scores(&pod)?, [both]);
    second.stop(std::time::Duration::ZERO)?;
    second.remove()?;
    assert_eq!(scores(&pod)?, [containers[0] as i32]);
    Ok(())
}

/// The score is -997 with CAP_SYS_RESOURCE. Without it, the score is the shim's own, and the pod
/// starts all the same.
#[test]
fn vm_of_a_guaranteed_pod_has_the_lowest_score_that_can_be_set() -> Result<()> {
    const CAP_SYS_RESOURCE: u32 = 24;
    let pod = CriNode::shared().pod().runtime(Runtime::Caisson);
    let uid = format!("pod{}", std::process::id());
    let parent = format!("/{}/kubepods/{uid}", CriNode::shared().tag());
    let pod = pod.configure(|config| {
        config.linux.get_or_insert_default().cgroup_parent = parent;
    });
    let pod = pod.start()?;
    let shim = pod.shim()?;
    let wanted = match proc::capabilities(shim, "CapEff")?.contains(&CAP_SYS_RESOURCE) {
        true => -997,
        false => score(shim)?,
    };
    assert_eq!(scores(&pod)?, [wanted]);
    Ok(())
}

/// Starts a pod where a kubelet puts the pods of a class.
fn pod_of(class: &str) -> Result<Pod<'static>> {
    let node = CriNode::shared();
    let name = format!("pod{}-{class}", std::process::id());
    let parent = format!("/{}/kubepods/{class}/{name}", node.tag());
    let pod = node.pod().runtime(Runtime::Caisson);
    let pod = pod.configure(|config| {
        config.linux.get_or_insert_default().cgroup_parent = parent;
    });
    pod.start()
}

/// Returns the scores of all processes of a VM, without duplicates.
fn scores(pod: &Pod) -> Result<Vec<i32>> {
    let mut scores: Vec<_> = family(pod)?.into_iter().map(score).collect::<Result<_>>()?;
    scores.sort_unstable();
    scores.dedup();
    Ok(scores)
}

fn score(pid: u32) -> Result<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?;
    Ok(text.trim().parse()?)
}

/// Returns the processes of a VM and their descendants.
fn family(pod: &Pod) -> Result<Vec<u32>> {
    let processes = pod.vm_processes()?.into_iter();
    Ok(processes
        .flat_map(|(_, pid)| [vec![pid], proc::descendants(pid)].concat())
        .collect())
}

/// Returns a part of a process's resident memory in bytes.
fn rss(pid: u32, part: &str) -> Result<u64> {
    let status = proc::status(pid)?;
    let text = status.get(part).context("no such part")?;
    let kib: u64 = text.trim_end_matches(" kB").trim().parse()?;
    Ok(kib << 10)
}
