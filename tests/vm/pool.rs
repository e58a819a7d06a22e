//! Tests containers whose VMs were ready before them, in the node's pool.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::LazyLock,
    thread,
};

use anyhow::{anyhow, ensure, Context, Result};
use caisson_tests::{
    command,
    container::{vm_processes, vmm},
    leftovers::alone,
    node::{self, LIMIT},
    proc, Container, Leftovers, Node,
};
use nix::unistd::{lseek, Whence};
use rstest::rstest;

/// A node that keeps one VM ready. Its tests run one at a time, since each takes that VM.
static NODE: LazyLock<&Node> = LazyLock::new(|| {
    let node = node().and_then(|node| fill(&node).map(|()| node));
    Node::keep(node.unwrap_or_else(|error| panic!("{error:?}")))
});

fn node() -> Result<Node> {
    Node::start_with(|config| config["pool"] = serde_json::json!({ "size": 1 }))
}

/// Has the first member born, by a first pod.
fn fill(node: &Node) -> Result<()> {
    end(&sleeping(node)?)?;
    member(node).map(drop)
}

fn sleeping(node: &Node) -> Result<Container<'_>> {
    node.container("busybox").args(["sleep", "1000"]).start()
}

fn end(container: &Container<'_>) -> Result<()> {
    container.kill("SIGKILL")?;
    container.wait_within(LIMIT)?;
    container.delete()
}

/// A VM that waits for its pod.
struct Member {
    id: String,
    shim: u32,
    vmm: u32,
}

/// Waits for the only member.
fn member(node: &Node) -> Result<Member> {
    command::poll("a member of the pool", LIMIT, || {
        members(node).ok().filter(|ids| ids.len() == 1)?.pop()
    })
}

/// Returns the members that `caisson list` knows.
fn members(node: &Node) -> Result<Vec<Member>> {
    let list = command::run(node::caisson(node)?.arg("list"), None, LIMIT)?.ok()?;
    let text = list.text();
    let lines = text.lines().filter(|line| line.contains(" in pool "));
    lines
        .map(|line| {
            let id = line.split_whitespace().next().unwrap_or_default();
            let dir = node.state_dir().join(id);
            let shim = fs::read_to_string(dir.join("shim.pid"))?;
            let shim = shim.split(' ').next().context("no pid")?.parse()?;
            Ok(Member {
                id: id.to_owned(),
                shim,
                vmm: vmm(&dir)?,
            })
        })
        .collect()
}

#[test]
fn container_gets_the_vm_that_was_ready() -> Result<()> {
    let _alone = alone();
    let ready = member(&NODE)?;
    let container = sleeping(&NODE)?;
    assert_eq!(container.vmm()?, ready.vmm);
    assert_eq!(container.sh("echo alive")?, "alive");
    Ok(())
}

#[test]
fn next_vm_is_made_ready_after_the_start() -> Result<()> {
    let _alone = alone();
    let before = member(&NODE)?;
    let _container = sleeping(&NODE)?;
    assert_ne!(member(&NODE)?.id, before.id);
    Ok(())
}

#[test]
fn containers_that_start_at_once_all_run() -> Result<()> {
    let _alone = alone();
    let ready = member(&NODE)?;
    let started = thread::scope(|scope| {
        let starts: Vec<_> = (0..4).map(|_| scope.spawn(|| sleeping(&NODE))).collect();
        let started = starts.into_iter().map(|start| start.join());
        started
            .map(|start| start.map_err(|_| anyhow!("a start panicked"))?)
            .collect::<Result<Vec<_>>>()
    })?;
    let mut of_the_pool = 0;
    for container in &started {
        assert_eq!(container.sh("hostname")?, container.id());
        of_the_pool += usize::from(container.vmm()? == ready.vmm);
    }
    assert_eq!(of_the_pool, 1);
    Ok(())
}

#[test]
fn hostname_is_the_containers() -> Result<()> {
    let _alone = alone();
    member(&NODE)?;
    let container = sleeping(&NODE)?;
    assert_eq!(container.sh("hostname")?, container.id());
    Ok(())
}

#[test]
fn processes_of_the_vm_are_in_the_pods_cgroup() -> Result<()> {
    let _alone = alone();
    member(&NODE)?;
    let container = sleeping(&NODE)?;
    for (role, pid) in vm_processes(&container.state_dir())? {
        let place = memory_cgroup(pid)?;
        assert!(place.ends_with(container.id()), "{role}: {place:?}");
    }
    Ok(())
}

#[test]
fn memory_of_a_vm_that_waits_is_limited_and_shown() -> Result<()> {
    let _alone = alone();
    let member = member(&NODE)?;
    let place = memory_cgroup(member.vmm)?;
    assert!(
        place.ends_with(format!("caisson-pool/{}", member.id)),
        "{place:?}"
    );
    // Of version 1 and of version 2.
    let limits = ["memory.limit_in_bytes", "memory.max"];
    let limit = limits
        .iter()
        .find_map(|file| fs::read_to_string(place.join(file)).ok());
    let limit: u64 = limit.context("no limit")?.trim().parse()?;
    assert!((200 << 20..300 << 20).contains(&limit), "{limit}");
    let list = command::run(node::caisson(&NODE)?.arg("list"), None, LIMIT)?.ok()?;
    let list = String::from_utf8(list.stderr)?;
    let shown = list
        .lines()
        .find(|line| line.starts_with("/caisson-pool has "));
    let mib: u64 = shown
        .and_then(|line| line.split(' ').nth(2))
        .context(list.clone())?
        .parse()?;
    assert!((20..300).contains(&mib), "{list}");
    Ok(())
}

/// Returns the folder of the cgroup that accounts for a process' memory.
fn memory_cgroup(pid: u32) -> Result<PathBuf> {
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let memory = |line: &str| {
        let version_1 = line
            .split_once(":memory:")
            .map(|(_, path)| ("memory", path.to_owned()));
        let version_2 = || line.strip_prefix("0::").map(|path| ("", path.to_owned()));
        version_1.or_else(version_2)
    };
    // Version 1's line comes first where there are both.
    let (hierarchy, path) = cgroups.lines().find_map(memory).context("no cgroup")?;
    let path = path.trim_start_matches('/');
    Ok(Path::new("/sys/fs/cgroup").join(hierarchy).join(path))
}

#[test]
fn clock_is_the_hosts() -> Result<()> {
    let _alone = alone();
    member(&NODE)?;
    let off = sleeping(&NODE)?.clock_off()?;
    assert!(off.abs() < 0.05, "{off} s");
    Ok(())
}

#[rstest]
#[case::boot_id("cat /proc/sys/kernel/random/boot_id")]
#[case::urandom("head -c 1048576 /dev/urandom | md5sum")]
#[case::addresses_of_a_program("grep -m1 stack /proc/self/maps")]
fn machines_from_the_pool_differ(#[case] command: &str) -> Result<()> {
    let _alone = alone();
    member(&NODE)?;
    let one = sleeping(&NODE)?;
    member(&NODE)?;
    let two = sleeping(&NODE)?;
    assert_ne!(one.sh(command)?, two.sh(command)?);
    Ok(())
}

#[test]
fn secret_of_a_pod_is_in_no_other_machine_and_no_template() -> Result<()> {
    let _alone = alone();
    member(&NODE)?;
    // In two halves, so that it is in no other memory by way of this test's own arguments.
    let secret = format!("{}-{}", std::process::id(), "never in two machines");
    let holder = NODE
        .container("busybox")
        .flag("--env", format!("SECRET={secret}"));
    let holder = holder.args(["sleep", "1000"]).start()?;
    let other = sleeping(&NODE)?;
    let member = member(&NODE)?;
    let secret = secret.as_bytes();
    assert!(proc::memory_has(holder.vmm()?, secret)?);
    assert!(!proc::memory_has(other.vmm()?, secret)?);
    assert!(!proc::memory_has(member.vmm, secret)?);
    // There is none where QEMU can make none.
    let templates = fs::read_dir(NODE.store_dir().join("templates"));
    for template in templates.into_iter().flatten().flatten() {
        if let Ok(machine) = fs::File::open(template.path().join("machine")) {
            assert!(!has(&machine, secret)?);
        }
    }
    Ok(())
}

/// Whether a file has these bytes. Most of a template's file is a hole.
fn has(file: &fs::File, wanted: &[u8]) -> Result<bool> {
    let mut at = 0;
    while let Ok(data) = lseek(file, at, Whence::SeekData) {
        let end = lseek(file, data, Whence::SeekHole)?;
        let mut bytes = vec![0; usize::try_from(end - data)?];
        file.read_exact_at(&mut bytes, u64::try_from(data)?)?;
        if memchr::memmem::find(&bytes, wanted).is_some() {
            return Ok(true);
        }
        at = end;
    }
    Ok(false)
}

/// What can have become of a VM that waits.
#[derive(Debug, Clone, Copy)]
enum Fault {
    ShimIsKilled,
    ShimIsStopped,
    VmmIsKilled,
    VmmIsStopped,
}

impl Fault {
    fn befalls(self, member: &Member) {
        match self {
            Self::ShimIsKilled => proc::kill(member.shim, libc::SIGKILL),
            Self::ShimIsStopped => proc::kill(member.shim, libc::SIGSTOP),
            Self::VmmIsKilled => proc::kill(member.vmm, libc::SIGKILL),
            Self::VmmIsStopped => proc::kill(member.vmm, libc::SIGSTOP),
        }
    }
}

#[rstest]
#[case::shim_killed(Fault::ShimIsKilled)]
#[case::shim_stopped(Fault::ShimIsStopped)]
#[case::vmm_killed(Fault::VmmIsKilled)]
#[case::vmm_stopped(Fault::VmmIsStopped)]
fn container_starts_without_a_broken_member(#[case] fault: Fault) -> Result<()> {
    let _alone = alone();
    let broken = member(&NODE)?;
    fault.befalls(&broken);
    let container = sleeping(&NODE)?;
    assert_eq!(container.sh("echo alive")?, "alive");
    assert_ne!(container.vmm()?, broken.vmm);
    assert_ne!(member(&NODE)?.id, broken.id);
    let left = || Leftovers::of(&NODE, &broken.id).is_empty().then_some(());
    command::poll("the member to be gone", LIMIT, left)
}

#[test]
fn container_from_the_pool_leaves_nothing() -> Result<()> {
    let _alone = alone();
    let ready = member(&NODE)?;
    let container = sleeping(&NODE)?;
    let id = container.id().to_owned();
    end(&container)?;
    assert!(!proc::is_running(ready.vmm));
    assert!(!proc::is_running(ready.shim));
    for id in [&id, &ready.id] {
        let left = Leftovers::of(&NODE, id);
        assert!(left.is_empty(), "{left}");
    }
    Ok(())
}

/// Changes a line of a node's configuration.
fn configure(node: &Node, from: &str, to: &str) -> Result<()> {
    let file = node.config_file();
    let text = fs::read_to_string(&file)?;
    ensure!(text.contains(from), "no {from:?} in {text}");
    Ok(fs::write(&file, text.replace(from, to))?)
}

#[test]
fn container_starts_without_a_member_from_before_the_configuration_changed() -> Result<()> {
    let node = node()?;
    fill(&node)?;
    let stale = member(&node)?;
    configure(
        &node,
        "default_memory_mib = 256",
        "default_memory_mib = 300",
    )?;
    let container = sleeping(&node)?;
    assert_ne!(container.vmm()?, stale.vmm);
    assert_ne!(member(&node)?.id, stale.id);
    Ok(())
}

#[test]
fn members_end_when_the_pool_has_no_size_any_more() -> Result<()> {
    let node = node()?;
    fill(&node)?;
    configure(&node, "[pool]\nsize = 1", "[pool]\nsize = 0")?;
    command::poll("the members to end", LIMIT, || {
        members(&node).ok()?.is_empty().then_some(())
    })
}
