//! Reboots of the node with pods running.

use anyhow::Result;
use rstest::rstest;
use serde_json::json;

use crate::site;

/// A pod in its home writes a file and syncs it, as a program that cares does.
#[rstest]
#[case::in_good_order(true)]
#[case::by_a_power_cut(false)]
fn reboot_with_a_pod_running_leaves_nothing_and_its_home_whole(
    #[case] orderly: bool,
) -> Result<()> {
    let node = site::installed()?;
    let name = format!("at-home-{orderly}");
    let home = json!({ "annotations": {
        "caisson.dev/home": format!("persistent/{name}"), "caisson.dev/home-size": "64Mi",
    }});
    let pod = node.pod(&name, home.clone())?;
    let container = pod.sleeping()?;
    container.sh("echo kept >/root/note; sync")?;
    match orderly {
        true => node.reboot()?,
        false => node.power_cut()?,
    }
    // The node's own state folder is in /run, so nothing can be there; what is in the store is.
    assert_eq!(node.sh("caisson gc")?, "");
    assert_eq!(
        node.sh("pgrep -c 'qemu-system|containerd-shim' || true")?,
        "0"
    );
    // As the kubelet does: the pod of before the reboot is removed, and one like it made.
    node.sh(&format!("crictl rmp --force {}", pod.id))?;
    let next = node.pod(&name, home)?;
    let container = next.sleeping()?;
    assert_eq!(container.sh("cat /root/note")?, "kept");
    next.remove()?;
    node.sh(&format!("caisson home remove tests/{name}"))?;
    node.has_nothing_left()
}
