//! Chooses the accelerator of this node's VMs: the one that the configuration names, or the one
//! that a probe VM found, once per node.
//!
//! The probe's result is remembered in `<store_dir>/accelerator.json` until the kernel, QEMU or the
//! guest image changes.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use caisson_oci::{config, NodeConfig};
pub use caisson_vmm::qemu::ProbeResult;
use caisson_vmm::{
    qemu::{probe_kvm, QemuConfig, QemuVmm, PROBE_LIMIT},
    Accelerator, Secret, VmSpec,
};
use serde::{Deserialize, Serialize};

use crate::{
    config::guest_image,
    host::{
        error::{FileError, OnFile},
        file,
        folder::create_private,
    },
    state::{PodDir, StateError},
};

/// What can go wrong with the choice of an accelerator.
#[derive(Debug, thiserror::Error)]
pub enum AcceleratorError {
    /// The state folder of the probe VM can't be made.
    #[error(transparent)]
    State(#[from] StateError),
    /// The probe VM failed.
    #[error("the pod's VM")]
    Vm(#[from] caisson_vmm::Error),
    /// The configuration asks for KVM alone.
    #[error(
        "hypervisor.accelerator is \"kvm\", and KVM does not work on this node: {0}; \
         `caisson check` says more"
    )]
    NoKvm(String),
    /// An operation on a file or folder failed.
    #[error(transparent)]
    File(#[from] FileError),
}

type Result<T> = std::result::Result<T, AcceleratorError>;

/// What operators should know about a node without KVM. Continues a message that says that guests
/// are emulated.
pub const EMULATION: &str =
    "which is no security boundary (QEMU, docs/system/security.rst, Non-virtualization Use Case)";

/// The name of the probe's state folder.
const PROBE_ID: &str = "caisson-probe";
/// The memory of a probe VM, in bytes.
const PROBE_MEMORY: u64 = 256 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    /// The kernel, QEMU and guest image that the result holds for, see [`key`].
    key: String,
    result: ProbeResult,
}

/// The VMM of this node.
pub fn qemu(config: &NodeConfig) -> QemuVmm {
    QemuVmm::new(qemu_config(config))
}

fn qemu_config(config: &NodeConfig) -> QemuConfig {
    QemuConfig {
        qemu: config.hypervisor.qemu.clone(),
        virtiofsd: config.hypervisor.virtiofsd.clone(),
        vsock_daemon: config.hypervisor.vsock_daemon.clone(),
    }
}

/// Returns the accelerator that the configuration names, or an error if it is KVM and that does not
/// work. For `auto`, returns what the probe found;
/// the probe runs at most once.
pub async fn choose(config: &NodeConfig) -> Result<Accelerator> {
    match config.hypervisor.accelerator {
        config::Accelerator::Kvm => only_kvm(config).await,
        config::Accelerator::Tcg => Ok(Accelerator::Tcg),
        config::Accelerator::Auto => Ok(probed(config).await?.accelerator),
    }
}

/// Returns KVM where it works. Where a probe has found that it does not, it is tried again: the
/// operator may have mended the node.
async fn only_kvm(config: &NodeConfig) -> Result<Accelerator> {
    let works = |result: &ProbeResult| result.accelerator == Accelerator::Kvm;
    let mut result = probed(config).await?;
    if !works(&result) {
        result = probe(config).await?;
    }
    match works(&result) {
        true => Ok(Accelerator::Kvm),
        false => Err(AcceleratorError::NoKvm(result.reason)),
    }
}

/// Returns the same as [`choose`], but never starts a probe: for `auto`, `None` if none has run
/// yet.
pub fn known(config: &NodeConfig) -> Option<Accelerator> {
    match config.hypervisor.accelerator {
        config::Accelerator::Kvm => Some(Accelerator::Kvm),
        config::Accelerator::Tcg => Some(Accelerator::Tcg),
        config::Accelerator::Auto => {
            let result = remembered(&remembered_path(config), &key(config));
            Some(result?.accelerator)
        }
    }
}

/// Returns the probe's result, remembered or fresh. Pods that start together wait for one probe.
async fn probed(config: &NodeConfig) -> Result<ProbeResult> {
    let path = remembered_path(config);
    let key = key(config);
    if let Some(result) = remembered(&path, &key) {
        return Ok(result);
    }
    let _lock = lock(config).await?;
    match remembered(&path, &key) {
        Some(result) => Ok(result),
        None => probe_alone(config).await,
    }
}

/// Boots a probe VM and remembers the result. Takes [`PROBE_LIMIT`] at most, and about a second
/// where KVM works or does nothing at all.
pub async fn probe(config: &NodeConfig) -> Result<ProbeResult> {
    let _lock = lock(config).await?;
    probe_alone(config).await
}

/// Waits until no other process probes.
async fn lock(config: &NodeConfig) -> Result<fs::File> {
    create_private(&config.store_dir)
        .map_err(AcceleratorError::file("create", &config.store_dir))?;
    let path = remembered_path(config).with_extension("lock");
    let lock = fs::File::create(&path).map_err(AcceleratorError::file("open", &path))?;
    let locked = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock));
    let locked = locked.await.unwrap_or_else(|error| Err(error.into()));
    locked.map_err(AcceleratorError::file("lock", path))
}

/// Boots a probe VM while no other process does.
async fn probe_alone(config: &NodeConfig) -> Result<ProbeResult> {
    // Removes what a probe left that was killed.
    let dir = PodDir::create(config, PROBE_ID)?;
    let spec = VmSpec {
        id: "probe".to_owned(),
        dir: dir.vm(),
        guest: guest_image(config),
        cpus: 1,
        max_cpus: 1,
        memory: PROBE_MEMORY,
        max_memory: PROBE_MEMORY,
        accelerator: Accelerator::Kvm,
        credentials: dir.credentials,
        placement: dir.placement.clone(),
        template: None,
        secret: Secret::random().map_err(AcceleratorError::file("read", "/dev/urandom"))?,
    };
    let result = probe_kvm(&qemu_config(config), &spec, PROBE_LIMIT).await?;
    match result.accelerator {
        Accelerator::Kvm => log::info!("probed: {}", result.reason),
        // The error says so.
        Accelerator::Tcg if config.hypervisor.accelerator == config::Accelerator::Kvm => {}
        // Logged once per node: from here on the result is remembered.
        Accelerator::Tcg => log::warn!(
            "the VMs of this node are emulated, {EMULATION}: {}",
            result.reason
        ),
    }
    let remember = Remembered {
        key: key(config),
        result: result.clone(),
    };
    create_private(&config.store_dir)
        .map_err(AcceleratorError::file("create", &config.store_dir))?;
    let text = serde_json::to_vec(&remember).unwrap_or_default();
    file::replace(&remembered_path(config), &text)?;
    Ok(result)
}

fn remembered_path(config: &NodeConfig) -> PathBuf {
    config.store_dir.join("accelerator.json")
}

fn remembered(path: &Path, key: &str) -> Option<ProbeResult> {
    let found: Remembered = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (found.key == key).then_some(found.result)
}

/// Identifies the host's kernel, QEMU and the guest image. A probe's result holds for these alone.
pub(crate) fn key(config: &NodeConfig) -> String {
    let guest = guest_image(config);
    let file = |path: &Path| {
        // A file that was replaced has another inode, or another time.
        let found = fs::metadata(path);
        let found = found.map(|m| (m.dev(), m.ino(), m.mtime(), m.mtime_nsec(), m.len()));
        format!("{found:?}")
    };
    let kernel = fs::read_to_string("/proc/version").unwrap_or_default();
    let files = [&config.hypervisor.qemu, &guest.kernel, &guest.initramfs].map(|path| file(path));
    format!("{} {}", kernel.trim(), files.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_for_another_guest_image_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("accelerator.json");
        let result = ProbeResult {
            accelerator: Accelerator::Tcg,
            reason: "no /dev/kvm".to_owned(),
        };
        let remember = Remembered {
            key: "image 1".to_owned(),
            result: result.clone(),
        };
        fs::write(&path, serde_json::to_vec(&remember).unwrap()).unwrap();
        assert_eq!(remembered(&path, "image 1"), Some(result));
        assert_eq!(remembered(&path, "image 2"), None);
    }
}
