//! Tests limits, changes of limits, and the resource usage that CRI reports.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use caisson_node::record::Record;
use caisson_tests::{
    command,
    cri::{
        api::{ContainerStats, LinuxContainerResources, UInt64Value},
        Container, CriNode, Pod,
    },
    proc, Runtime,
};
use rstest::rstest;

const LIMIT: Duration = Duration::from_secs(60);
const SPIN: &str = "while :; do :; done";

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn memory_above_the_limit_ends_the_container_with_oom_killed(
    #[case] runtime: Runtime,
) -> Result<()> {
    let container = pod(runtime)?.container("busybox").memory_mib(48);
    let container = container.args(["probe", "allocate", "200"]).start()?;
    let status = container.wait()?;
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled"),
        "{status:?}"
    );
    Ok(())
}

/// If a RuntimeClass defines no overhead, the kubelet gives the pod the sum of its containers'
/// limits, and the VMM has to fit in it too.
#[test]
fn vm_that_is_over_the_pods_limit_ends_its_containers_with_oom_killed() -> Result<()> {
    let pod = CriNode::shared().pod().runtime(Runtime::Caisson).start()?;
    let container = pod.container("busybox").args(["sleep", "1000"]).start()?;
    let parent = pod.cgroup_parent().trim_start_matches('/');
    let root = Path::new("/sys/fs/cgroup");
    let version_1 = root.join("memory").join(parent);
    let (usage, limit) = match version_1.exists() {
        true => (
            version_1.join("memory.usage_in_bytes"),
            version_1.join("memory.limit_in_bytes"),
        ),
        false => (
            root.join(parent).join("memory.current"),
            root.join(parent).join("memory.max"),
        ),
    };
    let used: u64 = fs::read_to_string(usage)?.trim().parse()?;
    fs::write(limit, (used + (24 << 20)).to_string())?;
    let _ = container.exec(["probe", "allocate", "150"]);
    let status = container.wait()?;
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled"),
        "{status:?}"
    );
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn memory_below_the_limit_is_there(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?.container("busybox").memory_mib(100);
    let output = container.args(["probe", "allocate", "80"]).run()?.ok()?;
    assert_eq!(output.line(), "allocated 20480 pages");
    Ok(())
}

/// The VM begins with 256 MiB here.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn container_without_a_memory_limit_has_what_it_needs(#[case] runtime: Runtime) -> Result<()> {
    let pod = CriNode::shared().pod().runtime(runtime).start()?;
    let container = pod.container("busybox").args(["probe", "allocate", "1200"]);
    assert_eq!(container.run()?.ok()?.line(), "allocated 307200 pages");
    Ok(())
}

/// An emptyDir in memory counts, as anything that can't be taken back.
#[test]
fn files_in_memory_of_a_container_without_a_limit_have_room() -> Result<()> {
    let pod = CriNode::shared().pod().runtime(Runtime::Caisson);
    let pod = pod.privileged().start()?;
    let container = pod.container("busybox").privileged();
    let line = "mount -t tmpfs -o size=1g none /mnt && dd if=/dev/zero of=/mnt/file bs=1M count=700 2>/dev/null && du -m /mnt/file";
    assert_eq!(container.sh(line).run()?.ok()?.line(), "700\t/mnt/file");
    Ok(())
}

#[test]
fn memory_that_a_vm_has_grown_by_goes_back_to_the_host_when_it_is_free() -> Result<()> {
    let pod = CriNode::shared().pod().runtime(Runtime::Caisson).start()?;
    let container = pod.container("busybox").args(["sleep", "1000"]).start()?;
    let vmm = pod.vmm()?;
    let before = proc::rss(vmm)?;
    container.exec(["probe", "allocate", "900"])?.ok()?;
    let after = proc::rss(vmm)?;
    assert!(after > before + (800 << 20), "{before} {after}");
    command::poll("the memory to be back", LIMIT, || {
        let now = proc::rss(vmm).ok()?;
        (now < before + (200 << 20)).then_some(())
    })
}

#[test]
fn container_that_needs_more_than_its_vm_may_have_is_oom_killed_and_the_log_says_why() -> Result<()>
{
    let node = CriNode::start_with(|config| config["vm"]["max_memory_mib"] = 512.into())?;
    node.image("busybox")?;
    let pod = node.pod().start()?;
    let container = pod.container("busybox").args(["probe", "allocate", "700"]);
    let status = container.start()?.wait()?;
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled")
    );
    let log = node.log();
    assert!(
        log.contains("grows to 512 MiB and no further: vm.max_memory_mib"),
        "{log}"
    );
    Ok(())
}

#[test]
fn files_that_are_read_do_not_make_the_vm_grow() -> Result<()> {
    let pod = CriNode::shared().pod().runtime(Runtime::Caisson).start()?;
    let container = pod.container("busybox");
    let line = "dd if=/dev/zero of=/file bs=1M count=500 2>/dev/null && cat /file > /dev/null";
    container.sh(line).run()?.ok()?;
    let machine = record(&pod)?.machine.context("no machine")?;
    assert_eq!(machine.memory_mib, 256);
    Ok(())
}

/// A program sizes its heap by that. The node may have more than a VM may grow to.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn container_without_a_memory_limit_sees_what_it_may_have(#[case] runtime: Runtime) -> Result<()> {
    let of_the_node = proc::memory("MemTotal")?.min(8 << 30);
    let container = pod(runtime)?.container("busybox");
    let line = "awk '/^MemTotal/ { print $2 }' /proc/meminfo";
    let seen: u64 = container.sh(line).run()?.ok()?.line().parse()?;
    assert!(seen << 10 > of_the_node / 10 * 9, "{seen} KiB");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn container_without_a_cpu_limit_sees_the_cpus_of_the_node(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?
        .container("busybox")
        .args(["sleep", "1000"])
        .start()?;
    let of_the_node = std::thread::available_parallelism()?.to_string();
    command::poll("the node's cpus", LIMIT, || {
        let seen = container.sh("nproc").ok()?;
        (seen == of_the_node).then_some(())
    })
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn neighbour_of_a_container_out_of_memory_goes_on(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let neighbour = pod.container("busybox").memory_mib(64);
    let neighbour = neighbour.args(["sleep", "1000"]).start()?;
    let container = pod.container("busybox").memory_mib(48);
    let output = container.args(["probe", "allocate", "200"]).run()?;
    assert_eq!(output.code, 137);
    assert_eq!(neighbour.sh("echo still here")?, "still here");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn cpu_limit_slows_the_container(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?.container("busybox").milli_cpus(200);
    let container = container.sh(SPIN).start()?;
    let used = milli_cpus(&container)?;
    assert!((100..350).contains(&used), "{used}");
    Ok(())
}

/// What the container has to pay for is its own program, as if its shell had started it. With a
/// limit of 10m, every further millisecond takes a tenth of a second. runc charges six times that,
/// which is little without emulation.
#[test]
fn exec_is_not_charged_for_what_makes_it() -> Result<()> {
    const TIMES: u32 = 20;
    let container = pod(Runtime::Caisson)?.container("busybox");
    let container = container.args(["sleep", "1000"]).start()?;
    let charged = || cpu_nanos(&container.stats()?);
    container.exec(["/bin/true"])?.ok()?;
    let before = charged()?;
    for _ in 0..TIMES {
        container.exec(["/bin/true"])?.ok()?;
    }
    let execs = charged()? - before;
    let line = format!("n=0; while [ $n -lt {TIMES} ]; do /bin/true; n=$((n + 1)); done");
    let before = charged()?;
    container.sh(&line)?;
    let forks = charged()? - before;
    assert!(execs < 2 * forks, "{execs} ns, by a shell {forks} ns");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn container_with_a_hundredth_of_a_cpu_starts_and_takes_execs(
    #[case] runtime: Runtime,
) -> Result<()> {
    let container = pod(runtime)?.container("busybox");
    let container = container.milli_cpus(10).memory_mib(16);
    let container = container.args(["sleep", "1000"]).start()?;
    container.exec(["true"])?.ok()?;
    Ok(())
}

/// The kubelet's podPidsLimit is a limit of the pod's cgroup.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn pod_with_a_limit_of_processes_has_no_more(#[case] runtime: Runtime) -> Result<()> {
    let pod = CriNode::shared().pod().runtime(runtime);
    pod.limit_processes(100)?;
    let pod = pod.start()?;
    let line = "n=0; while [ $n -lt 150 ]; do sleep 1000 & n=$((n + 1)); done; echo all";
    let container = pod.container("busybox").sh(line).start()?;
    command::poll("a refused fork", LIMIT, || {
        let lines = container.logs().ok()?;
        let mut texts = lines.iter().map(|line| &line.text);
        texts.any(|text| text.contains("can't fork")).then_some(())
    })
}

#[test]
fn container_with_memory_oom_group_ends_as_a_whole() -> Result<()> {
    let container = pod(Runtime::Caisson)?.container("busybox").memory_mib(48);
    let container = container.resources(|resources| {
        let group = ("memory.oom.group".to_owned(), "1".to_owned());
        resources.unified.extend([group]);
    });
    let container = container
        .sh("probe allocate 200; echo goes on; sleep 1000")
        .start()?;
    let status = container.wait()?;
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled")
    );
    Ok(())
}

#[rstest]
#[case::unknown("no.such.key", "no.such.key")]
#[case::path("../memory.max", "without a slash")]
fn file_of_a_cgroup_that_cannot_be_is_refused_by_name(
    #[case] key: &str,
    #[case] said: &str,
) -> Result<()> {
    let container = pod(Runtime::Caisson)?.container("busybox");
    let container = container.resources(|resources| {
        resources.unified.extend([(key.to_owned(), "1".to_owned())]);
    });
    let error = container
        .args(["sleep", "1000"])
        .start()
        .err()
        .context("it has started")?;
    assert!(format!("{error:#}").contains(said), "{error:#}");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn updated_cpu_limit_is_in_force(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?.container("busybox").milli_cpus(700);
    let container = container.sh(SPIN).start()?;
    container.update(LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 15_000,
        ..Default::default()
    })?;
    let used = milli_cpus(&container)?;
    assert!((80..300).contains(&used), "{used}");
    Ok(())
}

#[test]
fn guest_uses_no_more_cpus_than_an_updated_limit_needs() -> Result<()> {
    // Not the pod that others share, whose containers need cpus too.
    let pod = CriNode::shared().pod().runtime(Runtime::Caisson).start()?;
    let container = pod.container("busybox").milli_cpus(2000);
    let container = container.args(["sleep", "1000"]).start()?;
    assert_eq!(container.sh("nproc")?, "2");
    container.update(LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 100_000,
        ..Default::default()
    })?;
    assert_eq!(container.sh("nproc")?, "1");
    Ok(())
}

#[test]
fn record_of_the_pod_has_an_updated_limit() -> Result<()> {
    let pod = CriNode::shared().pod().runtime(Runtime::Caisson).start()?;
    let container = pod.container("busybox").milli_cpus(2000);
    let container = container.args(["sleep", "1000"]).start()?;
    let recorded =
        || -> Result<Option<u64>> { Ok(record(&pod)?.containers[container.id()].cpu_milli) };
    assert_eq!(recorded()?, Some(2000));
    container.update(LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        ..Default::default()
    })?;
    assert_eq!(recorded()?, Some(500));
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn updated_memory_limit_is_in_force(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?.container("busybox").memory_mib(32);
    let container = container.args(["sleep", "1000"]).start()?;
    assert_eq!(container.exec(["probe", "allocate", "80"])?.code, 137);
    container.update(LinuxContainerResources {
        memory_limit_in_bytes: 160 << 20,
        ..Default::default()
    })?;
    assert_eq!(container.exec(["probe", "allocate", "80"])?.code, 0);
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn stats_of_a_container_follow_what_it_uses(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?.container("busybox").memory_mib(128);
    let line = "head -c 40000000 /dev/urandom > /dev/shm/held; echo ready; sleep 1000";
    let container = container.sh(line).start()?;
    container.wait_for_output("ready")?;
    let stats = container.stats()?;
    let attributes = stats.attributes.clone().context("no attributes")?;
    assert_eq!(attributes.id, container.id());
    let memory = stats.memory.context("no memory")?;
    let used = value(&memory.working_set_bytes)?;
    assert!((38_000_000..128 << 20).contains(&used), "{memory:?}");
    assert!(cpu_nanos(&stats)? > 10_000_000, "{stats:?}");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn stats_of_a_container_know_its_writable_layer(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?.container("busybox").args(["sleep", "1000"]);
    let container = container.start()?;
    container.sh("head -c 20000000 /dev/urandom > /root/written; sync")?;
    // containerd looks at the snapshots every 10 s.
    command::poll("the file in the stats", LIMIT, || {
        let layer = container.stats().ok()?.writable_layer?;
        (value(&layer.used_bytes).ok()? >= 20_000_000).then_some(())
    })
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn stats_of_a_pod_have_cpu_memory_network_and_containers(#[case] runtime: Runtime) -> Result<()> {
    let pod = CriNode::shared().pod().runtime(runtime).start()?;
    let container = pod.container("busybox").args(["sleep", "1000"]).start()?;
    // A rate needs two samples.
    let stats = command::poll("the pod's stats", LIMIT, || {
        let linux = pod.stats().ok()?.linux?;
        (linux.cpu.is_some() && linux.memory.is_some()).then_some(linux)
    })?;
    let cpu = stats.cpu.context("no cpu")?;
    assert!(value(&cpu.usage_core_nano_seconds)? > 0);
    let memory = stats.memory.context("no memory")?;
    assert!(value(&memory.working_set_bytes)? > 0);
    let network = stats.network.context("no network")?;
    let interface = network.default_interface.context("no interface")?;
    assert_eq!(interface.name, "eth0");
    assert!(value(&interface.rx_bytes)? + value(&interface.tx_bytes)? > 0);
    let ids = stats.containers.iter().flat_map(|stats| &stats.attributes);
    assert!(ids
        .map(|attributes| &attributes.id)
        .any(|id| id == container.id()));
    assert!(pod.is_in_the_list_of_stats()?);
    Ok(())
}

/// If the guest of a pod does not answer, the node's stats still come, with fresh values for its
/// other pods.
#[test]
fn stats_of_a_vm_that_stands_still_are_the_last_and_come_within_a_second() -> Result<()> {
    let pod = CriNode::shared().pod().runtime(Runtime::Caisson).start()?;
    let sleeping = || pod.container("busybox").args(["sleep", "1000"]).start();
    let containers = [sleeping()?, sleeping()?, sleeping()?];
    let before = cpu_nanos(&containers[0].stats()?)?;
    for container in &containers {
        container.stats()?;
    }
    let qemu = pod.vmm()?;
    proc::kill(qemu, libc::SIGSTOP);
    let started = Instant::now();
    let asked: Result<Vec<_>> = containers.iter().map(Container::stats).collect();
    let took = started.elapsed();
    proc::kill(qemu, libc::SIGCONT);
    assert!(cpu_nanos(&asked?[0])? >= before);
    assert!(took < Duration::from_millis(1500), "{took:?}");
    assert_eq!(containers[0].sh("echo goes on")?, "goes on");
    Ok(())
}

/// Measures how much of a CPU a container uses over 3 s, in thousandths.
fn milli_cpus(container: &Container<'_>) -> Result<u64> {
    thread::sleep(Duration::from_secs(1));
    let (before, start) = (cpu_nanos(&container.stats()?)?, Instant::now());
    thread::sleep(Duration::from_secs(3));
    let used = cpu_nanos(&container.stats()?)? - before;
    Ok(used * 1000 / start.elapsed().as_nanos() as u64)
}

fn cpu_nanos(stats: &ContainerStats) -> Result<u64> {
    let cpu = stats.cpu.as_ref().context("no cpu")?;
    value(&cpu.usage_core_nano_seconds)
}

fn value(value: &Option<UInt64Value>) -> Result<u64> {
    Ok(value.as_ref().context("no value")?.value)
}

fn record(pod: &Pod<'_>) -> Result<Record> {
    let folder = pod.node().state_dir().join(pod.id());
    caisson_node::record::read(&folder)?.context("no record")
}

fn pod(runtime: Runtime) -> Result<&'static Pod<'static>> {
    CriNode::shared().shared_pod(runtime)
}
