//! containerd as a unit of systemd, its journal, and pods in systemd's slices.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::json;

use crate::site::{self, Site};

#[test]
fn pod_lives_on_when_containerd_is_restarted() -> Result<()> {
    let node = site::installed()?;
    let pod = node.pod("restarted", json!({}))?;
    let container = pod.sleeping()?;
    let qemu = pod.process("qemu")?;
    node.sh("systemctl restart containerd")?;
    assert_eq!(pod.process("qemu")?, qemu);
    assert_eq!(container.sh("echo goes on")?, "goes on");
    pod.remove()?;
    node.has_nothing_left()
}

#[test]
fn pod_lives_on_while_containerd_is_stopped() -> Result<()> {
    let node = site::installed()?;
    let pod = node.pod("stopped", json!({}))?;
    let container = pod.container(
        "while sleep 1; do date +%s >/tmp/next; mv /tmp/next /tmp/now; done",
        json!({}),
    )?;
    let qemu = pod.process("qemu")?;
    node.sh("systemctl stop containerd && sleep 5")?;
    assert_eq!(
        node.sh("systemctl is-active containerd || true")?,
        "inactive"
    );
    assert_eq!(pod.process("qemu")?, qemu);
    node.sh("systemctl start containerd")?;
    // It has gone on meanwhile, and containerd has it again.
    container.sh("test $(($(date +%s) - $(cat /tmp/now))) -lt 5")?;
    pod.remove()?;
    node.has_nothing_left()
}

#[test]
fn shim_and_vm_are_in_cgroups_of_their_own_and_status_shows_containerd() -> Result<()> {
    let node = site::installed()?;
    let pod = node.pod("placed", json!({}))?;
    let (shim, qemu) = (pod.process("SHIM")?, pod.process("qemu")?);
    let cgroup = |pid: u32| node.sh(&format!("cut -d: -f3 /proc/{pid}/cgroup"));
    // As runc's shim: containerd starts it, and KillMode=process lets it live.
    assert_eq!(cgroup(shim)?, "/system.slice/containerd.service");
    let of_qemu = cgroup(qemu)?;
    assert!(of_qemu.contains(&pod.id), "{of_qemu}");
    let status = node.sh("systemctl status --no-pager --full containerd")?;
    assert!(status.contains("Active: active (running)"), "{status}");
    assert!(status.contains("containerd-shim-caisson-v2 "), "{status}");
    pod.remove()
}

#[test]
fn vm_of_a_pod_in_a_slice_is_charged_to_the_slice() -> Result<()> {
    const SLICE: &str = "kubepods-burstable-podslice.slice";
    let node = site::installed()?;
    node.sh(&format!(
        "systemd-run --slice={SLICE} --unit=holds-the-slice sleep 100000"
    ))?;
    let pod = node.pod("in-a-slice", json!({ "linux": { "cgroup_parent": SLICE } }))?;
    let container = pod.sleeping()?;
    let folder = format!("kubepods.slice/kubepods-burstable.slice/{SLICE}");
    let qemu = pod.process("qemu")?;
    let of_qemu = node.sh(&format!("cut -d: -f3 /proc/{qemu}/cgroup"))?;
    assert_eq!(
        of_qemu,
        format!("/{folder}/cri-containerd-{}.scope", pod.id)
    );
    // systemd looks through its slices when units change; what is not a unit has to survive that.
    node.sh("systemctl daemon-reload && systemctl restart systemd-journald")?;
    assert_eq!(container.sh("echo goes on")?, "goes on");
    // The file is there only as long as the slice passes the controller on.
    let charged = node.sh(&format!(
        "cat /sys/fs/cgroup/{folder}/cri-containerd-{}.scope/memory.current",
        pod.id
    ))?;
    assert!(charged.parse::<u64>()? > 50 << 20, "{charged}");
    pod.remove()?;
    node.sh("systemctl stop holds-the-slice")?;
    node.has_nothing_left()?;
    assert_eq!(node.sh("systemctl --failed --no-legend --plain")?, "");
    Ok(())
}

/// What containerd 1.7 warns of when an event of a container comes while its pod is being removed:
/// its own race, whatever the runtime.
const RACE: &str = "Failed to get podSandbox status for container event";

/// containerd itself warns of what is none of a runtime's, and so it does for a pod of runc's.
#[test]
fn healthy_pod_puts_no_warning_into_the_journal() -> Result<()> {
    let node = site::installed()?;
    let runcs = warnings(&node, "runc")?;
    let ours = warnings(&node, "sandbox")?;
    let new = ours.difference(&runcs);
    let new: Vec<&String> = new.filter(|message| !message.contains(RACE)).collect();
    assert!(new.is_empty(), "{new:#?}");
    Ok(())
}

/// Returns the messages of the warnings and errors that the journal has of containerd and its
/// shims for the life of a pod.
fn warnings(node: &Site, handler: &str) -> Result<BTreeSet<String>> {
    let cursor = node.sh("journalctl --unit containerd --lines 1 --show-cursor | tail -1")?;
    let cursor = cursor.trim_start_matches("-- cursor: ");
    let pod = node.pod_of(handler, &format!("healthy-{handler}"), json!({}))?;
    let container = pod.sleeping()?;
    assert_eq!(container.sh("echo runs")?, "runs");
    pod.remove()?;
    node.has_nothing_left()?;
    // They write logfmt to their standard error.
    let lines = node.sh(&format!(
        "journalctl --unit containerd --after-cursor '{cursor}' --no-pager --output cat |
            grep -E 'level=(warn|error|fatal)' || true"
    ))?;
    let message = |line: &str| {
        let (_, message) = line.split_once("msg=")?;
        Some(message.split(" id=").next()?.to_owned())
    };
    Ok(lines.lines().filter_map(message).collect())
}
