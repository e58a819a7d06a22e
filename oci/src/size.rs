//! Computes the size of a VM from the limits of its containers.

use oci_spec::runtime::LinuxResources;

use crate::{
    config::{Vm, MIN_MEMORY_MIB},
    Error, Result,
};

/// The node that VMs run on.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    /// Its `[vm]` configuration.
    pub vm: &'a Vm,
    /// Its cpus.
    pub cpus: u32,
    /// Its memory, in MiB.
    pub memory_mib: u64,
}

/// The size of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmSize {
    /// 1 or more.
    pub cpus: u32,
    /// In MiB.
    pub memory_mib: u64,
    /// In MiB, no less than `memory_mib`. The VM grows up to this size when its containers need it,
    /// since one of them has no memory limit.
    pub most_mib: u64,
}

impl VmSize {
    /// Whether the VM gets more memory when its containers need it.
    pub fn may_grow(self) -> bool {
        self.most_mib > self.memory_mib
    }

    /// Returns the size of a VM that does not grow.
    pub fn fixed(self) -> Self {
        Self {
            most_mib: self.memory_mib,
            ..self
        }
    }

    /// Returns the size with at least this much memory.
    pub fn at_least(self, memory_mib: u64) -> Self {
        let memory_mib = memory_mib.max(self.memory_mib);
        Self {
            memory_mib,
            most_mib: match self.may_grow() {
                true => self.most_mib.max(memory_mib),
                false => memory_mib,
            },
            ..self
        }
    }

    /// Returns the next size of a VM that needs more memory. It grows by half, and now up to
    /// `most_mib`.
    pub fn grown(self, most_mib: u64) -> Self {
        let step = (self.memory_mib / 2).max(LEAST_STEP_MIB);
        let most_mib = most_mib.min(self.most_mib);
        let size = self.at_least(self.memory_mib.saturating_add(step).min(most_mib));
        match size.memory_mib < most_mib {
            true => size,
            false => size.fixed(),
        }
    }
}

/// The least by which a VM grows that needs more memory.
const LEAST_STEP_MIB: u64 = 256;

/// The most that a container may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Thousandths of a cpu; `None` is no limit.
    pub cpu_milli: Option<u64>,
    /// Bytes; `None` is no limit.
    pub memory: Option<u64>,
}

impl Limits {
    /// Returns the limits of a spec's `linux.resources`.
    pub fn of(resources: Option<&LinuxResources>) -> Self {
        let mut limits = Self::default();
        if let Some(resources) = resources {
            limits.update(resources);
        }
        limits
    }

    /// Changes the limits that `resources` names, as a runtime's `update` does; the others stay.
    pub fn update(&mut self, resources: &LinuxResources) {
        let cpu = resources.cpu().as_ref();
        if let Some(quota) = cpu.and_then(|cpu| cpu.quota()) {
            self.set_cpu(quota, cpu.and_then(|cpu| cpu.period()));
        }
        if let Some(limit) = resources.memory().as_ref().and_then(|m| m.limit()) {
            self.set_memory(limit);
        }
    }

    /// Sets the time in µs that all processes together may run in each period. -1 and 0 mean no
    /// limit; the default period is 100,000 µs (kernel, cgroup-v2.rst `cpu.max`).
    pub fn set_cpu(&mut self, quota: i64, period: Option<u64>) {
        let period = period.filter(|p| *p > 0).unwrap_or(100_000);
        let quota = u64::try_from(quota).ok().filter(|q| *q > 0);
        self.cpu_milli = quota.map(|q| q.saturating_mul(1000).div_ceil(period));
    }

    /// Sets the memory in bytes. -1 and 0 mean no limit.
    pub fn set_memory(&mut self, limit: i64) {
        self.memory = u64::try_from(limit).ok().filter(|l| *l > 0);
    }
}

impl Node<'_> {
    /// Returns the size of the VM for containers with these limits. It is their sum: the cpus
    /// rounded up and at most the node's, the memory with the configured overhead added. All
    /// containers without a limit share the node's default, and so does a pod without containers.
    pub fn size(&self, limits: impl IntoIterator<Item = Limits>) -> VmSize {
        let limits: Vec<_> = limits.into_iter().collect();
        let sum = |of: fn(&Limits) -> Option<u64>| {
            let set = limits.iter().filter_map(of);
            let sum = set.fold(0u64, |sum, limit| sum.saturating_add(limit));
            (
                sum,
                limits.is_empty() || limits.iter().any(|l| of(l).is_none()),
            )
        };
        let (milli, unlimited) = sum(|limits| limits.cpu_milli);
        let mut cpus = u32::try_from(milli.div_ceil(1000)).unwrap_or(u32::MAX);
        if unlimited {
            cpus = cpus.max(self.vm.default_cpus);
        }
        let (bytes, unlimited) = sum(|limits| limits.memory);
        let overhead = self.vm.memory_overhead_mib;
        let mut memory_mib = bytes.div_ceil(1 << 20) + overhead;
        if unlimited {
            memory_mib += self.vm.default_memory_mib.saturating_sub(overhead);
        }
        // The size in bytes must fit in a u64, too.
        memory_mib = memory_mib.min(u64::MAX >> 20);
        let memory_mib = memory_mib.max(MIN_MEMORY_MIB);
        VmSize {
            cpus: cpus.clamp(1, self.most_cpus()),
            memory_mib,
            most_mib: match unlimited {
                true => self.most_memory_mib().max(memory_mib),
                false => memory_mib,
            },
        }
    }

    /// Returns the cpus that a VM has when its containers have started. One without a limit sees
    /// those of the node.
    pub fn cpus(&self, limits: &[Limits]) -> u32 {
        let cpus = self.size(limits.iter().copied()).cpus;
        match limits.iter().any(|limits| limits.cpu_milli.is_none()) {
            true => cpus.max(self.most_cpus().min(self.vm.max_cpus)),
            false => cpus,
        }
    }

    /// Returns the most cpus that a VM may have, 1 or more.
    fn most_cpus(&self) -> u32 {
        let limit = self.vm.limit_cpus.unwrap_or(u32::MAX);
        self.cpus.min(limit).max(1)
    }

    /// Returns the memory up to which a VM grows when its containers need more, in MiB.
    pub fn most_memory_mib(&self) -> u64 {
        let limit = self.vm.limit_memory_mib.unwrap_or(u64::MAX);
        self.vm.max_memory_mib.min(limit).min(self.memory_mib)
    }

    /// Refuses a VM with more memory than `vm.limit_memory_mib`.
    pub fn check(&self, size: VmSize) -> Result<VmSize> {
        match self.vm.limit_memory_mib {
            Some(limit) if size.memory_mib > limit => Err(Error::Field {
                field: "linux.resources.memory.limit",
                reason: format!(
                    "the VM would need {} MiB of memory (the limits and vm.memory_overhead_mib), and vm.limit_memory_mib is {limit}; lower the limits",
                    size.memory_mib
                ),
            }),
            _ => Ok(size),
        }
    }

    /// Returns the size as [`Self::size`] does, unless the node has less memory or a VM may have
    /// less.
    pub fn room_for(&self, limits: impl IntoIterator<Item = Limits>) -> Result<VmSize> {
        let size = self.check(self.size(limits))?;
        if size.memory_mib <= self.memory_mib {
            return Ok(size);
        }
        Err(Error::Field {
            field: "linux.resources.memory.limit",
            reason: format!(
                "the VM would need {} MiB of memory (the limits and vm.memory_overhead_mib), the node has {} MiB; lower the limit",
                size.memory_mib, self.memory_mib
            ),
        })
    }
}

#[cfg(test)]
impl<'c> Node<'c> {
    /// Returns a node of 4 cpus and 16 GiB.
    pub fn small(vm: &'c Vm) -> Self {
        Self {
            vm,
            cpus: 4,
            memory_mib: 16 << 10,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{LinuxCpuBuilder, LinuxMemoryBuilder, LinuxResourcesBuilder};

    fn sum(limits: impl IntoIterator<Item = Limits>) -> VmSize {
        Node::small(&Vm::default()).size(limits)
    }

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
        sum([Limits::of(Some(&resources))])
    }

    #[test]
    fn size_without_limits_is_the_nodes_default() {
        let size = sum([Limits::default()]);
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
        let mut limits = Limits {
            cpu_milli: Some(2500),
            memory: None,
        };
        limits.update(&resources);
        let size = sum([limits]);
        assert_eq!((size.cpus, size.memory_mib), (3, 64 + 128));
    }

    #[test]
    fn memory_limit_that_is_absurd_does_not_overflow() {
        assert!(size(-1, 0, i64::MAX).memory_mib > 1 << 40);
        let absurd = Limits {
            cpu_milli: None,
            memory: Some(u64::MAX),
        };
        let size = sum([absurd, absurd]);
        assert!((size.memory_mib << 20) >> 20 == size.memory_mib && size.memory_mib > 1 << 40);
    }

    #[test]
    fn size_of_a_pod_is_the_sum_of_its_containers() {
        let limited = Limits {
            cpu_milli: Some(700),
            memory: Some(100 << 20),
        };
        let pod = |limits: &[Limits]| {
            let size = sum(limits.iter().copied());
            (size.cpus, size.memory_mib)
        };
        assert_eq!(pod(&[]), (1, 512));
        assert_eq!(pod(&[limited, limited]), (2, 200 + 128));
        let free = Limits::default();
        assert_eq!(pod(&[limited, free, free]), (1, 100 + 512));
    }

    #[test]
    fn vm_grows_if_a_container_has_no_memory_limit() {
        let limited = Limits {
            cpu_milli: None,
            memory: Some(1 << 20),
        };
        assert!(!sum([limited]).may_grow());
        assert_eq!(sum([limited, Limits::default()]).most_mib, 8192);
    }

    #[test]
    fn vm_grows_by_half_until_it_has_all_it_may_have() {
        let mut size = sum([Limits::default()]);
        let mut sizes = Vec::new();
        while size.may_grow() {
            size = size.grown(1500);
            sizes.push(size.memory_mib);
        }
        assert_eq!(sizes, [768, 1152, 1500]);
        assert_eq!(size.grown(1000).memory_mib, 1500);
    }

    #[test]
    fn container_without_a_cpu_limit_sees_the_cpus_of_the_node_up_to_a_most() {
        let cpus = |most, limit: Option<u64>| {
            let vm = Vm {
                max_cpus: most,
                ..Vm::default()
            };
            let limits = Limits {
                cpu_milli: limit,
                memory: None,
            };
            Node::small(&vm).cpus(&[limits])
        };
        assert_eq!((cpus(8, None), cpus(3, None)), (4, 3));
        assert_eq!(cpus(8, Some(2000)), 2);
    }

    #[test]
    fn vm_has_no_more_than_its_limits() {
        let vm = Vm {
            limit_cpus: Some(2),
            limit_memory_mib: Some(1024),
            ..Vm::default()
        };
        let node = Node::small(&vm);
        let limits = |cpu_milli, memory_mib: Option<u64>| Limits {
            cpu_milli,
            memory: memory_mib.map(|mib| mib << 20),
        };
        assert_eq!(node.size([limits(Some(3000), None)]).cpus, 2);
        assert_eq!(node.cpus(&[limits(None, None)]), 2);
        assert_eq!(node.size([limits(None, None)]).most_mib, 1024);
        assert_eq!(
            node.room_for([limits(None, Some(896))]).unwrap().memory_mib,
            1024
        );
        let error = node
            .room_for([limits(None, Some(897))])
            .unwrap_err()
            .to_string();
        assert!(error.contains("vm.limit_memory_mib is 1024"), "{error}");
    }
}
