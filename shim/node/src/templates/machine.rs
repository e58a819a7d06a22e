//! The bare VM that a template is of.

use std::{fs, path::PathBuf};

use caisson_oci::{NodeConfig, VmSize};
use caisson_vmm::{Accelerator, Credentials, Guest, Placement, Secret, VmSpec};
use sha2::{Digest, Sha256};

use crate::{
    accelerator,
    config::guest_image,
    host::{
        error::{FileError, OnFile},
        size::{host_cpus, host_memory_mib},
        sysctls,
    },
};

/// The size of a VM that starts from a template. One size serves every pod, which gets its own
/// afterwards. Nearly no pod has less, since it has `vm.memory_overhead_mib` in any case.
pub const SIZE: VmSize = VmSize {
    cpus: 1,
    memory_mib: 128,
    most_mib: 128,
};

/// Returns a bare VM of that size, of no pod and without a place on the host yet.
pub fn bare(
    config: &NodeConfig,
    accelerator: Accelerator,
) -> std::result::Result<VmSpec, FileError> {
    Ok(VmSpec {
        id: String::new(),
        dir: PathBuf::new(),
        guest: Guest {
            sysctls: sysctls::of_the_node(),
            ..guest_image(config)
        },
        cpus: SIZE.cpus,
        max_cpus: host_cpus(),
        memory: SIZE.memory_mib << 20,
        max_memory: config.vm.max_memory_mib.min(host_memory_mib()) << 20,
        accelerator,
        credentials: Credentials { uid: 0, gid: 0 },
        placement: Placement::default(),
        template: None,
        secret: Secret::random().map_err(FileError::file("read", "/dev/urandom"))?,
    })
}

/// Identifies what the state of a bare VM depends on: what [`accelerator::key`] has, its shape, the
/// accelerator and the host's cpu.
pub(super) fn key(config: &NodeConfig, spec: &VmSpec) -> String {
    let Guest {
        modules,
        log_level,
        sysctls,
        ..
    } = &spec.guest;
    let shape = (spec.cpus, spec.max_cpus, spec.memory, spec.max_memory);
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = |key: &str| {
        let line = cpus.lines().find(|line| line.starts_with(key));
        line.unwrap_or_default().to_owned()
    };
    let all = format!(
        "{} {} {shape:?} {:?} {} {log_level} {sysctls:?} {} {}",
        env!("CARGO_PKG_VERSION"),
        accelerator::key(config),
        spec.accelerator,
        modules.is_some(),
        cpu("model name"),
        cpu("flags"),
    );
    hex::encode(Sha256::digest(all))[..16].to_owned()
}

/// Describes it for people.
pub(super) fn shape(spec: &VmSpec) -> String {
    format!(
        "{} of {} cpus, {} of {} MiB, {:?}",
        spec.cpus,
        spec.max_cpus,
        spec.memory >> 20,
        spec.max_memory >> 20,
        spec.accelerator
    )
}
