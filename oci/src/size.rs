//! How large a VM is, from the limits of the container that it is for.

use oci_spec::runtime::LinuxResources;

use crate::config::{Vm, MIN_MEMORY_MIB};

/// The size of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmSize {
    /// 1 or more.
    pub cpus: u32,
    /// In MiB.
    pub memory_mib: u64,
}

impl VmSize {
    /// The VM for a container with these limits: as many cpus as its quota fills, rounded up, at most `host_cpus`; its memory
    /// limit and the overhead on top. Without a limit, the node's default.
    pub fn of(resources: Option<&LinuxResources>, node: &Vm, host_cpus: u32) -> Self {
        let cpus = cpu_limit(resources).unwrap_or(node.default_cpus);
        let memory_mib = match memory_limit(resources) {
            Some(bytes) => bytes.div_ceil(1 << 20) + node.memory_overhead_mib,
            None => node.default_memory_mib,
        };
        Self {
            cpus: cpus.clamp(1, host_cpus.max(1)),
            memory_mib: memory_mib.max(MIN_MEMORY_MIB),
        }
    }

    /// The size that a running VM of this size needs for new limits; what they leave out stays as it is.
    pub fn with_limits(self, resources: &LinuxResources, node: &Vm, host_cpus: u32) -> Self {
        let limits = Some(resources);
        let new = Self::of(limits, node, host_cpus);
        Self {
            cpus: cpu_limit(limits).map_or(self.cpus, |_| new.cpus),
            memory_mib: memory_limit(limits).map_or(self.memory_mib, |_| new.memory_mib),
        }
    }
}

/// `linux.resources.cpu`: quota / period, rounded up. The period's default is 100,000 µs (kernel, cgroup-v2.rst `cpu.max`).
fn cpu_limit(resources: Option<&LinuxResources>) -> Option<u32> {
    let cpu = resources?.cpu().as_ref()?;
    let quota = u64::try_from(cpu.quota()?).ok().filter(|q| *q > 0)?;
    let period = cpu.period().filter(|p| *p > 0).unwrap_or(100_000);
    Some(u32::try_from(quota.div_ceil(period)).unwrap_or(u32::MAX))
}

/// `linux.resources.memory.limit` in bytes; -1 and 0 are no limit.
fn memory_limit(resources: Option<&LinuxResources>) -> Option<u64> {
    let limit = resources?.memory().as_ref()?.limit()?;
    u64::try_from(limit).ok().filter(|l| *l > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{LinuxCpuBuilder, LinuxMemoryBuilder, LinuxResourcesBuilder};

    fn size(quota: i64, period: u64, memory: i64) -> VmSize {
        let resources = LinuxResourcesBuilder::default()
            .cpu(
                LinuxCpuBuilder::default()
                    .quota(quota)
                    .period(period)
                    .build()
                    .unwrap(),
            )
            .memory(LinuxMemoryBuilder::default().limit(memory).build().unwrap())
            .build()
            .unwrap();
        VmSize::of(Some(&resources), &Vm::default(), 4)
    }

    #[test]
    fn size_without_limits_is_the_nodes_default() {
        let size = VmSize::of(None, &Vm::default(), 4);
        assert_eq!((size.cpus, size.memory_mib), (1, 512));
    }

    #[test]
    fn cpus_are_the_quota_rounded_up() {
        assert_eq!(size(150_000, 100_000, -1).cpus, 2);
        assert_eq!(size(50_000, 100_000, -1).cpus, 1);
    }

    #[test]
    fn cpus_are_at_most_the_hosts() {
        assert_eq!(size(i64::MAX, 1, -1).cpus, 4);
    }

    #[test]
    fn memory_is_the_limit_and_the_overhead() {
        assert_eq!(size(-1, 0, 256 << 20).memory_mib, 256 + 128);
    }

    #[test]
    fn new_limits_change_what_they_name_only() {
        let resources = LinuxResourcesBuilder::default()
            .memory(
                LinuxMemoryBuilder::default()
                    .limit(64 << 20)
                    .build()
                    .unwrap(),
            )
            .build()
            .unwrap();
        let old = VmSize {
            cpus: 3,
            memory_mib: 512,
        };
        let new = old.with_limits(&resources, &Vm::default(), 4);
        assert_eq!((new.cpus, new.memory_mib), (3, 64 + 128));
    }

    #[test]
    fn memory_limit_that_is_absurd_does_not_overflow() {
        assert!(size(-1, 0, i64::MAX).memory_mib > 1 << 40);
    }
}
