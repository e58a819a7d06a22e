//! Containers and pods with KVM: what they run on.

use anyhow::{Context, Result};
use serde_json::{json, Value};

use crate::site::{self, Site};

const RUN: &str = "ctr run --rm --runtime io.containerd.caisson.v2 localhost/busybox:test";

/// What the kernel of a guest under KVM measures time by.
const CLOCK: &str = "cat /sys/devices/system/clocksource/clocksource0/current_clocksource";

#[test]
fn container_by_ctr_has_a_kernel_of_its_own_under_kvm() -> Result<()> {
    let node = site::installed()?;
    let said = node.sh(&format!("{RUN} by-ctr sh -c 'uname -r; {CLOCK}'"))?;
    let (kernel, clock) = said.split_once('\n').unwrap_or_default();
    assert_ne!(kernel, node.sh("uname -r")?);
    assert_eq!(clock, "kvm-clock");
    node.has_nothing_left()
}

#[test]
fn container_whose_vm_boots_runs_under_kvm() -> Result<()> {
    let node = site::installed()?;
    let said = with_settings(&node, "[vm]\ntemplates = false\n", || {
        node.sh(&format!("{RUN} boots {CLOCK}"))
    })?;
    assert_eq!(said, "kvm-clock");
    node.has_nothing_left()
}

#[test]
fn vm_starts_from_the_template_under_kvm() -> Result<()> {
    let node = site::installed()?;
    let pod = node.pod("clone", json!({}))?;
    let qemu = pod.process("qemu")?;
    let line = node.sh(&format!("tr '\\0' ' ' </proc/{qemu}/cmdline"))?;
    assert!(
        line.contains("-accel kvm") && line.contains("-incoming"),
        "{line}"
    );
    assert_eq!(pod.sleeping()?.sh(CLOCK)?, "kvm-clock");
    pod.remove()?;
    node.has_nothing_left()
}

#[test]
fn pod_gets_the_vm_that_waits_in_the_pool_under_kvm() -> Result<()> {
    let node = site::installed()?;
    with_settings(&node, "[pool]\nsize = 1\n", || {
        node.pod("fills-the-pool", json!({}))?.remove()?;
        let waits = "caisson list | grep 'in pool' | sed 's/.* qemu \\([0-9]*\\).*/\\1/' | grep .";
        let waiting = node.poll("a VM in the pool", waits)?;
        let pod = node.pod("from-the-pool", json!({}))?;
        assert_eq!(pod.process("qemu")?.to_string(), waiting);
        assert_eq!(pod.sleeping()?.sh("echo runs")?, "runs");
        pod.remove()
    })?;
    // Its members end when a shim finds that the node wants none.
    node.pod("ends-the-pool", json!({}))?.remove()?;
    node.has_nothing_left()
}

#[test]
fn pod_by_cri_has_its_network_and_a_kernel_of_its_own() -> Result<()> {
    let node = site::installed()?;
    let pod = node.pod("by-cri", json!({}))?;
    let container = pod.sleeping()?;
    assert_ne!(container.sh("uname -r")?, node.sh("uname -r")?);
    let status: Value = serde_json::from_str(&node.sh(&format!("crictl inspectp {}", pod.id))?)?;
    let address = status["status"]["network"]["ip"].as_str();
    let address = address.with_context(|| format!("no address in {status}"))?;
    let addresses = container.sh("ip -4 addr show dev eth0")?;
    assert!(addresses.contains(address), "{address}: {addresses}");
    node.sh(&format!("busybox ping -c 1 -w 60 {address}"))?;
    pod.remove()?;
    node.has_nothing_left()
}

#[test]
fn vm_uses_the_vsock_of_the_nodes_kernel() -> Result<()> {
    let node = site::installed()?;
    let pod = node.pod("vsock", json!({}))?;
    let qemu = pod.process("qemu")?;
    let open = node.sh(&format!("ls -l /proc/{qemu}/fd"))?;
    assert!(open.contains("/dev/vhost-vsock"), "{open}");
    assert!(pod.process("vsock").is_err(), "there is a daemon, too");
    pod.remove()
}

#[test]
fn packets_of_a_pod_are_moved_by_the_nodes_kernel() -> Result<()> {
    let node = site::installed()?;
    let pod = node.pod("vhost-net", json!({}))?;
    let qemu = pod.process("qemu")?;
    let open = node.sh(&format!("ls -l /proc/{qemu}/fd"))?;
    assert!(open.contains("/dev/vhost-net"), "{open}");
    pod.remove()
}

#[test]
fn cpus_and_memory_are_plugged_in_under_kvm() -> Result<()> {
    let node = site::installed()?;
    let pod = node.pod("grows", json!({}))?;
    let resources = json!({ "linux": { "resources": {
        "cpu_period": 100_000, "cpu_quota": 200_000, "memory_limit_in_bytes": 700 << 20,
    }}});
    let container = pod.container("sleep 100000", resources)?;
    assert_eq!(container.sh("nproc")?, "2");
    let total = "awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo";
    let mib: u64 = container.sh(total)?.parse()?;
    assert!((700..1000).contains(&mib), "{mib} MiB");
    // The memory is there: it can be written to.
    container.sh("dd if=/dev/zero of=/dev/null bs=400M count=1")?;
    pod.remove()
}

#[test]
fn containers_run_with_the_nodes_apparmor_on() -> Result<()> {
    let node = site::installed()?;
    assert_eq!(node.sh("cat /sys/module/apparmor/parameters/enabled")?, "Y");
    let refusals = "journalctl --dmesg --no-pager | grep -c 'apparmor=\"DENIED\"'";
    let before = node.sh(&format!("{refusals} || true"))?;
    let pod = node.pod("with-apparmor", json!({}))?;
    let container = pod.sleeping()?;
    // containerd's own profile for a pod that names none: the guest's kernel has no AppArmor, and
    // the VM is what confines.
    assert_eq!(container.sh("echo runs")?, "runs");
    pod.remove()?;
    assert_eq!(node.sh(&format!("{refusals} || true"))?, before);
    Ok(())
}

/// Does something on a node whose configuration has a drop-in, and takes that away whatever comes.
fn with_settings<T>(node: &Site, text: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    const FILE: &str = "/etc/caisson/config.d/90-test.toml";
    node.sh(&format!(
        "mkdir -p /etc/caisson/config.d; cat >{FILE} <<'EOF'\n{text}\nEOF"
    ))?;
    let done = work();
    node.sh(&format!("rm {FILE}"))?;
    done
}
