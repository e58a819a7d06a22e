//! Tests many containers and many pods, and that nothing is left of them. The tests run one at a
//! time, since they count what is left on the whole node.

use std::{
    fs,
    io::{self, Read},
    thread,
    time::Duration,
};

use anyhow::Result;
use caisson_tests::{
    cri::{CriNode, Pod},
    leftovers::alone,
    proc, skill, Leftovers, Runtime,
};
use rstest::rstest;

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn removed_pod_leaves_nothing(#[case] runtime: Runtime) -> Result<()> {
    let _alone = alone();
    let node = warm()?;
    let before = Leftovers::count(node);
    let pod = node.pod().runtime(runtime).start()?;
    let volume = pod.folder("volume")?;
    let running = pod.container("busybox").mount(&volume, "/volume");
    let running = running.args(["sleep", "1000"]).start()?;
    running.sh("touch /volume/file")?;
    let _ended = pod.container("busybox").args(["true"]).start()?;
    let _created = pod.container("busybox").args(["true"]).create()?;
    pod.stop()?;
    pod.remove()?;
    Leftovers::none_since(node, &before)
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn removed_pod_with_users_of_its_own_leaves_nothing(#[case] runtime: Runtime) -> Result<()> {
    let _alone = alone();
    let node = warm()?;
    let pod = || node.pod().runtime(runtime).own_users().start();
    // The first pod makes what the snapshotter keeps.
    pod()?.container("busybox").args(["true"]).run()?.ok()?;
    let before = Leftovers::count(node);
    let pod = pod()?;
    let volume = pod.folder("volume")?;
    let mut container = pod.container("busybox").args(["sleep", "1000"]);
    // containerd maps the owners of volumes since 2.0.
    if !node.containerd_version()?.starts_with("1.") {
        container = container.mount_mapped(&volume, "/volume");
    }
    container.start()?.sh("touch /tmp/file")?;
    pod.stop()?;
    pod.remove()?;
    Leftovers::none_since(node, &before)
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn removed_container_leaves_nothing_in_a_pod_that_goes_on(#[case] runtime: Runtime) -> Result<()> {
    let _alone = alone();
    let node = warm()?;
    let pod = node.pod().runtime(runtime).start()?;
    let before = Leftovers::count(node);
    let container = pod.container("busybox").args(["sleep", "1000"]).start()?;
    container.exec(["true"])?;
    container.stop(Duration::ZERO)?;
    container.remove()?;
    Leftovers::none_since(node, &before)
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn pod_that_cannot_start_leaves_nothing(#[case] runtime: Runtime) -> Result<()> {
    let _alone = alone();
    let node = warm()?;
    let before = Leftovers::count(node);
    let pod = node.pod().runtime(runtime).sysctl("no.such.sysctl", "1");
    assert!(pod.start().is_err());
    Leftovers::none_since(node, &before)
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn pod_of_twenty_containers_runs_each_of_them(#[case] runtime: Runtime) -> Result<()> {
    let _alone = alone();
    let node = warm()?;
    let before = Leftovers::count(node);
    let pod = node.pod().runtime(runtime).start()?;
    let containers: Vec<_> = (0..20)
        .map(|n| {
            let container = pod.container("busybox").env("NUMBER", &n.to_string());
            container.sh("echo number $NUMBER; exec sleep 1000").start()
        })
        .collect::<Result<_>>()?;
    for (n, container) in containers.iter().enumerate() {
        container.wait_for_output(&format!("number {n}\n"))?;
    }
    drop(containers);
    drop(pod);
    Leftovers::none_since(node, &before)
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn twenty_pods_run_beside_each_other(#[case] runtime: Runtime) -> Result<()> {
    let _alone = alone();
    let node = warm()?;
    let before = Leftovers::count(node);
    let pods = twenty(|| node.pod().runtime(runtime).start())?;
    let mut addresses = pods
        .iter()
        .map(|pod| pod.ipv4())
        .collect::<Result<Vec<_>>>()?;
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 20);
    for pod in &pods {
        let output = pod.container("busybox").args(["hostname"]).run()?.ok()?;
        assert_eq!(output.line(), pod.hostname());
    }
    thread::scope(|scope| {
        for pod in pods {
            scope.spawn(move || drop(pod));
        }
    });
    Leftovers::none_since(node, &before)
}

/// Returns the node with its image imported, so that no test sees the traces of the import.
fn warm() -> Result<&'static CriNode> {
    let node = CriNode::shared();
    node.image("busybox")?;
    Ok(node)
}

/// The guests' own memory is shared memory of the host, which counts as cached too, so it is
/// subtracted.
#[test]
fn twenty_pods_that_read_a_skill_have_one_copy_of_it_on_the_host() -> Result<()> {
    const MIB: usize = 100;
    let _alone = alone();
    let node = warm()?;
    let tree = skill::tree(node, "big")?;
    let mut urandom = fs::File::open("/dev/urandom")?.take((MIB as u64) << 20);
    io::copy(&mut urandom, &mut fs::File::create(tree.join("noise"))?)?;
    let digest = skill::pack(node, "big", &tree)?;
    let start = || node.pod().annotation("caisson.dev/skills", &digest).start();
    let pods = twenty(start)?;
    let before = Memory::now()?;
    for pod in &pods {
        let container = pod.container("busybox").sh("wc -c < /opt/skills/big/noise");
        let output = container.run()?.ok()?;
        assert_eq!(output.line(), (MIB << 20).to_string());
    }
    let after = Memory::now()?;
    let cached = after.cached_mib - before.cached_mib;
    println!(
        "20 pods read a skill of {MIB} MiB: {} MiB less available, {cached} MiB more cached outside the guests",
        before.available_mib - after.available_mib,
    );
    let limit = 0.15 * 20.0 * MIB as f64;
    assert!(cached as f64 <= limit, "{cached} MiB are more than {limit}");
    Ok(())
}

/// Memory of the host.
struct Memory {
    available_mib: i64,
    cached_mib: i64,
}

impl Memory {
    fn now() -> Result<Self> {
        let mib = |name| -> Result<i64> { Ok(i64::try_from(proc::memory(name)? >> 20)?) };
        Ok(Self {
            available_mib: mib("MemAvailable")?,
            cached_mib: mib("Cached")? - mib("Shmem")?,
        })
    }
}

/// Starts twenty pods, four at a time, which two CPUs can manage.
fn twenty<'n>(start: impl Fn() -> Result<Pod<'n>> + Sync) -> Result<Vec<Pod<'n>>> {
    let mut pods = Vec::new();
    for _ in 0..5 {
        let started = thread::scope(|scope| {
            let starts: Vec<_> = (0..4).map(|_| scope.spawn(&start)).collect();
            let joined = starts.into_iter().map(|start| start.join());
            joined
                .map(|pod| pod.map_err(|_| anyhow::anyhow!("a start panicked"))?)
                .collect::<Result<Vec<_>>>()
        })?;
        pods.extend(started);
    }
    Ok(pods)
}
