//! Ends that nobody asked for: of the VM, of its shim, of memory.

use anyhow::Result;
use rstest::rstest;
use serde_json::json;

use crate::site;

#[rstest]
#[case::shim("SHIM")]
#[case::qemu("qemu")]
#[case::virtiofsd("virtiofsd-pod")]
fn process_killed_ends_the_pod_and_leaves_nothing(#[case] role: &str) -> Result<()> {
    let node = site::installed()?;
    let pod = node.pod("killed", json!({}))?;
    let container = pod.sleeping()?;
    node.sh(&format!("kill -KILL {}", pod.process(role)?))?;
    let status = container.ended()?;
    assert_ne!(status["exitCode"], 0, "{status}");
    pod.remove()?;
    node.has_nothing_left()
}

/// The slice's limit is what a kubelet sets: containers and overhead. The VM stays below it, unless
/// something in it takes more than it should.
#[test]
fn qemu_killed_for_memory_in_the_pods_slice_ends_the_container_as_oom_killed() -> Result<()> {
    const SLICE: &str = "kubepods-podoom.slice";
    let node = site::installed()?;
    node.sh(&format!(
        "mkdir -p /run/systemd/system
        printf '[Slice]\\nMemoryMax=300M\\nMemorySwapMax=0\\n' >/run/systemd/system/{SLICE}
        systemctl daemon-reload && systemctl start {SLICE}"
    ))?;
    let pod = node.pod("oom", json!({ "linux": { "cgroup_parent": SLICE } }))?;
    let limit = json!({ "linux": { "resources": { "memory_limit_in_bytes": 600 << 20 } } });
    let container = pod.container("sleep 10; dd if=/dev/zero of=/dev/null bs=500M", limit)?;
    let status = container.ended()?;
    assert_eq!(status["reason"], "OOMKilled", "{status}");
    let kernel = node.sh("journalctl --dmesg --no-pager | grep -i 'killed process' | tail -1")?;
    assert!(kernel.contains("qemu"), "{kernel}");
    pod.remove()?;
    node.sh(&format!(
        "systemctl stop {SLICE}; rm /run/systemd/system/{SLICE}"
    ))?;
    node.has_nothing_left()
}
