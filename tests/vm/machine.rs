//! Tests that the container's machine is not the host's and has the size of its limits.

use std::time::Duration;

use anyhow::{Context, Result};
use caisson_tests::{command, node::LIMIT, proc, Container, Node, Runtime};
use rstest::rstest;

/// How many KiB the guest's kernel, its agent and the rounding to what can be plugged may add to a
/// limit or take from it.
const MEMORY_SLACK_KIB: u64 = 192 * 1024;

#[test]
fn kernel_of_container_is_not_the_hosts() -> Result<()> {
    let node = Node::shared();
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let theirs = node
        .container("busybox")
        .runtime(Runtime::Runc)
        .args(["uname", "-r"])
        .run()?
        .ok()?;
    let ours = node
        .container("busybox")
        .args(["uname", "-r"])
        .run()?
        .ok()?;
    assert_eq!(
        theirs.line(),
        host.trim(),
        "runc's container shares the host's kernel"
    );
    assert_ne!(ours.line(), host.trim());
    assert!(!ours.line().is_empty());
    Ok(())
}

#[rstest]
#[case(1, 256)]
#[case(2, 640)]
fn machine_of_container_follows_its_limits(#[case] cpus: u32, #[case] mib: u64) -> Result<()> {
    let output = Node::shared()
        .container("busybox")
        .cpus(cpus)
        .memory_mib(mib)
        .sh("grep -c ^processor /proc/cpuinfo; grep MemTotal /proc/meminfo")
        .run()?
        .ok()?
        .text();
    let mut lines = output.lines();
    assert_eq!(lines.next(), Some(cpus.to_string().as_str()), "{output}");
    let total = lines.next().and_then(|line| line.split_whitespace().nth(1));
    let total: u64 = total.with_context(|| output.clone())?.parse()?;
    let limit = mib * 1024;
    assert!(
        total >= limit,
        "MemTotal of {total} KiB is less than the limit of {limit} KiB"
    );
    assert!(
        total <= limit + MEMORY_SLACK_KIB,
        "MemTotal of {total} KiB is far over {limit} KiB"
    );
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn memory_above_the_limit_ends_the_process(#[case] runtime: Runtime) -> Result<()> {
    let container = Node::shared()
        .container("busybox")
        .runtime(runtime)
        .memory_mib(64);
    let output = container
        .sh("probe allocate 30; probe allocate 110")
        .run()?;
    assert_eq!(output.code, 137, "{}{}", output.text(), output.errors());
    assert_eq!(output.line(), "allocated 7680 pages");
    Ok(())
}

/// Programs such as Go's and Java's reserve far more than they use. Kubernetes' nodes allow it
/// (the kubelet sets vm.overcommit_memory to 1), and only what is touched counts against the limit.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn memory_above_the_limit_can_be_reserved(#[case] runtime: Runtime) -> Result<()> {
    let container = Node::shared()
        .container("busybox")
        .runtime(runtime)
        .memory_mib(64);
    let output = container.args(["probe", "reserve", "1024"]).run()?;
    assert_eq!(output.line(), "reserved 1", "{}", output.errors());
    Ok(())
}

#[test]
fn memory_that_is_freed_goes_back_to_the_host() -> Result<()> {
    const MIB: u64 = 1 << 20;
    let node = Node::shared();
    let container = node.container("busybox").memory_mib(512);
    let container = container.args(["sleep", "1000"]).start()?;
    let qemu = container.vmm()?;
    let before = proc::rss(qemu)?;
    // dd fills one buffer, which goes away with the process.
    let fill = ["dd", "if=/dev/zero", "of=/dev/null", "bs=300M", "count=1"];
    container.exec(fill)?.ok()?;
    let after = proc::rss(qemu)?;
    assert!(after > before + 250 * MIB, "{before} {after}");
    let back = command::poll("the memory to be back", LIMIT, || {
        let now = proc::rss(qemu).ok()?;
        (now < after - 200 * MIB).then_some(())
    });
    back.with_context(|| format!("{before} before, {after} with it, {:?}", proc::rss(qemu)))
}

#[rstest]
#[case::back("- 3600")]
#[case::forth("+ 3600")]
fn clock_that_a_container_sets_goes_back_to_the_hosts(#[case] by: &str) -> Result<()> {
    let container = Node::shared().container("busybox");
    let container = container.flag("--cap-add", "CAP_SYS_TIME");
    let container = container.args(["sleep", "1000"]).start()?;
    container.sh(&format!("date -s @$(($(date +%s) {by}))"))?;
    assert!(container.clock_off()?.abs() > 3000.0);
    has_the_right_clock_soon(&container)
}

/// Waits until a container's clock is within 50 ms of the host's.
fn has_the_right_clock_soon(container: &Container<'_>) -> Result<()> {
    let right = || (container.clock_off().ok()?.abs() < 0.05).then_some(());
    command::poll("the right clock", LIMIT, right)
}

/// The VMM stands still for longer than the shim waits between two messages, and not so long that
/// the VM counts as dead.
#[test]
fn clock_is_right_after_the_vmm_stood_still() -> Result<()> {
    let container = Node::shared().container("busybox");
    let container = container.args(["sleep", "1000"]).start()?;
    proc::kill(container.vmm()?, libc::SIGSTOP);
    std::thread::sleep(Duration::from_secs(7));
    proc::kill(container.vmm()?, libc::SIGCONT);
    has_the_right_clock_soon(&container)
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn container_sees_only_its_own_processes(#[case] runtime: Runtime) -> Result<()> {
    let output = Node::shared()
        .container("busybox")
        .runtime(runtime)
        .args(["ps", "-o", "pid,comm"])
        .run()?
        .ok()?;
    assert_eq!(output.text().lines().count(), 2, "{}", output.text());
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn user_of_image_runs_the_command(#[case] runtime: Runtime) -> Result<()> {
    let container = Node::shared().container("busybox-app").runtime(runtime);
    let output = container
        .sh("id -u; id -g; id -G; pwd; grep -E 'NoNewPrivs|CapEff' /proc/self/status")
        .run()?
        .ok()?;
    let expected = "1000\n1000\n1000 2000\n/\nCapEff:\t0000000000000000\nNoNewPrivs:\t1";
    assert_eq!(output.line(), expected);
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn seccomp_filter_of_the_spec_is_in_force(#[case] runtime: Runtime) -> Result<()> {
    let container = Node::shared()
        .container("busybox")
        .runtime(runtime)
        .switch("--seccomp");
    let output = container
        .sh("grep Seccomp: /proc/self/status; unshare -U true; echo $?")
        .run()?
        .ok()?;
    assert_eq!(output.line(), "Seccomp:\t2\n1", "{}", output.errors());
    assert!(
        output.errors().contains("not permitted"),
        "{}",
        output.errors()
    );
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn masked_and_read_only_paths_are_closed(#[case] runtime: Runtime) -> Result<()> {
    let line = "cat /proc/kcore /proc/keys /proc/timer_list 2>/dev/null | wc -c; ls /sys/firmware | wc -l; echo 1 > /proc/sys/kernel/panic || echo refused";
    let output = Node::shared()
        .container("busybox")
        .runtime(runtime)
        .sh(line)
        .run()?;
    assert_eq!(output.line(), "0\n0\nrefused", "{}", output.errors());
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn tun_that_the_container_makes_is_opened(#[case] runtime: Runtime) -> Result<()> {
    let line =
        "mkdir /dev/net && mknod /dev/net/tun c 10 200 && exec 3<>/dev/net/tun && echo opened";
    let container = Node::shared().container("busybox").runtime(runtime);
    let output = container
        .flag("--cap-add", "CAP_NET_ADMIN")
        .sh(line)
        .run()?;
    assert_eq!(output.line(), "opened", "{}", output.errors());
    Ok(())
}

#[test]
fn device_that_is_asked_for_is_the_guests_and_can_be_used() -> Result<()> {
    let container = Node::shared().container("busybox");
    let output = container
        .annotation("caisson.dev/devices", "fuse")
        .sh("exec 3<>/dev/fuse && echo opened; mkdir /m && mount -t tmpfs m /m && echo mounted; test -e /dev/net/tun || echo no tun")
        .run()?;
    assert_eq!(
        output.text(),
        "opened\nmounted\nno tun\n",
        "{}",
        output.errors()
    );
    Ok(())
}
