//! Decides how soon the OOM killer takes a pod's VM, by the quality of service that the kubelet
//! gives the pod.
//!
//! The kubelet gives containers these scores (pkg/kubelet/qos/policy.go,
//! `GetContainerOOMScoreAdjust`): 1000 in a best-effort pod, -997 in a guaranteed pod and in any
//! pod that is critical to the node. In a burstable pod, a container gets 1000 minus the
//! thousandths of the node's memory that it requests, limited to 3 to 999.
//!
//! The VM has the memory of all containers. In a burstable pod it gets the score of one container
//! that requests what all of them do: 1000 minus the sum of what their scores lack to 1000, limited
//! to 2 to 999. Before the first container is created, the path of the cgroup that the kubelet puts
//! the pod in shows its class.

use std::path::Path;

const GUARANTEED: i32 = -997;
const BEST_EFFORT: i32 = 1000;

/// A pod's quality of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Guaranteed,
    Burstable,
    BestEffort,
    /// Not the kubelet's: a container alone, or a pod that something else made.
    Other,
}

impl Class {
    /// Returns the class that the path of the pod's cgroup shows, in plain form and with either
    /// driver. The kubelet's layout (pkg/kubelet/cm/pod_container_manager_linux.go) is
    /// `kubepods/burstable/pod<uid>/…` or
    /// `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice/…`.
    /// Guaranteed pods have no folder for their class. A cgroup root of the kubelet's own may come
    /// first.
    pub fn of(cgroup: &Path) -> Self {
        let mut names = cgroup.components().map(|part| {
            let name = part.as_os_str().to_string_lossy().into_owned();
            // A slice's name contains the names of the slices above it (systemd.slice(5)).
            match name.strip_suffix(".slice") {
                Some(slice) => slice.rsplit('-').next().unwrap_or(slice).to_owned(),
                None => name,
            }
        });
        if !names.any(|name| name == "kubepods") {
            return Self::Other;
        }
        match names.next().as_deref() {
            Some("besteffort") => Self::BestEffort,
            Some("burstable") => Self::Burstable,
            Some(name) if name.starts_with("pod") => Self::Guaranteed,
            _ => Self::Other,
        }
    }
}

/// Returns the `oom_score_adj` of a VM whose pod's containers have the given scores.
pub fn of_vm(class: Class, containers: &[i32]) -> i32 {
    // Only a container that must not be killed has a score below 0.
    let containers = || containers.iter().map(|adj| (*adj).clamp(-1000, 1000));
    let lowest = containers().min();
    let sum = || 1000 - containers().map(|adj| 1000 - adj).sum::<i32>();
    match (lowest, class) {
        (Some(lowest), _) if lowest < 0 => lowest,
        (_, Class::Guaranteed) => GUARANTEED,
        (_, Class::BestEffort) => BEST_EFFORT,
        (_, Class::Burstable) => sum().clamp(2, 999),
        (None, Class::Other) => 0,
        (_, Class::Other) => sum().clamp(0, 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_is_that_of_the_kubelets_cgroup_with_either_driver() {
        for (cgroup, class) in [
            ("kubepods/besteffort/pod1-2/ab", Class::BestEffort),
            ("kubepods/burstable/pod1-2/ab", Class::Burstable),
            ("kubepods/pod1-2/ab", Class::Guaranteed),
            ("kubelet/kubepods/burstable/pod1-2/ab", Class::Burstable),
            (
                "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice/cri-containerd-ab.scope",
                Class::BestEffort,
            ),
            (
                "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod1_2.slice/cri-containerd-ab.scope",
                Class::Guaranteed,
            ),
            ("default/ab", Class::Other),
            ("kubepods/ab", Class::Other),
        ] {
            assert_eq!(Class::of(Path::new(cgroup)), class, "{cgroup}");
        }
    }

    #[test]
    fn vm_has_the_requests_of_all_containers() {
        assert_eq!(of_vm(Class::Burstable, &[]), 999);
        assert_eq!(of_vm(Class::Burstable, &[900]), 900);
        assert_eq!(of_vm(Class::Burstable, &[900, 950, 999]), 849);
        assert_eq!(of_vm(Class::Burstable, &[400, 300]), 2);
        assert_eq!(of_vm(Class::BestEffort, &[1000, 1000]), 1000);
        assert_eq!(of_vm(Class::Guaranteed, &[]), -997);
        assert_eq!(of_vm(Class::Guaranteed, &[-997]), -997);
    }

    #[test]
    fn vm_of_a_pod_that_is_critical_is_as_its_containers() {
        assert_eq!(of_vm(Class::BestEffort, &[-997]), -997);
        assert_eq!(of_vm(Class::Burstable, &[-997, -997]), -997);
    }

    #[test]
    fn vm_of_a_container_alone_is_as_the_container() {
        assert_eq!(of_vm(Class::Other, &[0]), 0);
        assert_eq!(of_vm(Class::Other, &[500]), 500);
        assert_eq!(of_vm(Class::Other, &[-500]), -500);
        assert_eq!(of_vm(Class::Other, &[]), 0);
    }
}
