//! `caisson node compare-kernels`: the command that `helm test` runs in a pod of the RuntimeClass.

use std::fs;

use anyhow::{bail, Context, Result};
use k8s_openapi::api::core::v1::NodeSystemInfo;

use super::api::{node_name, NodeApi};

/// Fails where the pod runs on its node's kernel. Two machines may have the same release, so the
/// boot's id decides.
pub async fn compare() -> Result<()> {
    let name = node_name()?;
    let node = NodeApi::connect(&name).await?.get().await?;
    let info = node.status.and_then(|status| status.node_info);
    let info = info.with_context(|| format!("node {name} says nothing of its kernel"))?;
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
    let release = read("/proc/sys/kernel/osrelease")?;
    let boot = read("/proc/sys/kernel/random/boot_id")?;
    println!(
        "node {name}: {}, boot {}",
        info.kernel_version, info.boot_id
    );
    println!("this pod: {}, boot {}", release.trim(), boot.trim());
    differs(boot.trim(), &info)
}

fn differs(boot: &str, node: &NodeSystemInfo) -> Result<()> {
    if boot == node.boot_id {
        bail!("the pod runs on the node's own kernel, it is not in a VM");
    }
    println!("the pod has a kernel of its own");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_of_one_release_differ_by_their_boot() {
        let node = NodeSystemInfo {
            boot_id: "one".to_owned(),
            kernel_version: "6.1".to_owned(),
            ..Default::default()
        };
        assert!(differs("one", &node).is_err());
        assert!(differs("two", &node).is_ok());
    }
}
