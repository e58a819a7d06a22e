//! Decides which extended resources a node offers to the scheduler, and how many of each. It does
//! no I/O.
//!
//! A pod of a RuntimeClass that has them in its overhead takes them. The scheduler counts them.

use k8s_openapi::api::core::v1::Node;

use super::standing::{Standing, ACCELERATOR, READY};

/// How many pods may use KVM at a time. The resource tells nodes with KVM from others, so there are
/// more than a node has pods. It is KubeVirt's number of `devices.kubevirt.io/kvm`
/// (virt-handler's `--max-devices`).
const KVM_COUNT: u32 = 1000;

/// An extended resource of Caisson.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Room for one VM.
    VmSlot,
    /// The use of the node's KVM by one VM.
    Kvm,
}

impl Resource {
    pub const ALL: [Self; 2] = [Self::VmSlot, Self::Kvm];

    /// Returns its name, as a RuntimeClass' overhead has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::VmSlot => "caisson.dev/vm-slot",
            Self::Kvm => "caisson.dev/kvm",
        }
    }
}

/// What a node offers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capacity {
    vm_slots: u32,
    kvm: u32,
    /// Whether new pods may have any of it. If not, the node's `capacity` keeps the number, and its
    /// `allocatable` is 0.
    healthy: bool,
}

impl Capacity {
    /// Returns what a node offers whose VMs run by `accelerator`.
    fn ready(vm_slots: u32, accelerator: Option<&str>) -> Self {
        Self {
            vm_slots,
            kvm: if accelerator == Some("kvm") {
                KVM_COUNT
            } else {
                0
            },
            healthy: true,
        }
    }

    /// Returns what a node goes on to offer when this program starts anew: a node with the label
    /// has run VMs before.
    pub fn of_node(node: &Node, vm_slots: u32) -> Self {
        let label = |name| Some(node.metadata.labels.as_ref()?.get(name)?.as_str());
        match label(READY) {
            Some("true") => Self::ready(vm_slots, label(ACCELERATOR)),
            _ => Self::default(),
        }
    }

    /// Returns what the node offers from now on, after it offered `self`.
    pub fn after(self, standing: &Standing, vm_slots: u32) -> Self {
        match standing {
            // A ready node stays ready while it gets another version.
            Standing::Installing => self,
            Standing::Ready { accelerator } => Self::ready(vm_slots, accelerator.as_deref()),
            Standing::Failed { .. } | Standing::Removing => Self {
                healthy: false,
                ..self
            },
            Standing::Removed => Self::default(),
        }
    }

    /// Returns how many there are of a resource.
    pub fn count(&self, resource: Resource) -> u32 {
        match resource {
            Resource::VmSlot => self.vm_slots,
            Resource::Kvm => self.kvm,
        }
    }

    /// Returns whether new pods may have them.
    pub fn is_healthy(&self) -> bool {
        self.healthy
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::node::progress::Wanted;

    fn ready(accelerator: &str) -> Standing {
        Standing::Ready {
            accelerator: Some(accelerator.to_owned()),
        }
    }

    fn counts(capacity: Capacity) -> (u32, u32, bool) {
        let count = |resource| capacity.count(resource);
        (
            count(Resource::VmSlot),
            count(Resource::Kvm),
            capacity.is_healthy(),
        )
    }

    #[test]
    fn ready_node_offers_kvm_only_where_its_vms_run_by_it() {
        let none = Capacity::default();
        assert_eq!(counts(none.after(&ready("kvm"), 7)), (7, 1000, true));
        assert_eq!(counts(none.after(&ready("tcg"), 7)), (7, 0, true));
        let unknown = Standing::Ready { accelerator: None };
        assert_eq!(counts(none.after(&unknown, 7)), (7, 0, true));
    }

    #[test]
    fn node_that_fails_or_is_drained_keeps_the_number_and_gives_none() {
        let offered = Capacity::default().after(&ready("kvm"), 7);
        let failed = Standing::failed(Wanted::Installed, "no QEMU");
        for standing in [failed, Standing::Removing] {
            assert_eq!(counts(offered.after(&standing, 7)), (7, 1000, false));
        }
        assert_eq!(counts(offered.after(&Standing::Removed, 7)), (0, 0, false));
    }

    #[test]
    fn node_that_gets_another_version_goes_on_offering() {
        let offered = Capacity::default().after(&ready("tcg"), 7);
        assert_eq!(offered.after(&Standing::Installing, 7), offered);
        let node = |labels| -> Node {
            serde_json::from_value(json!({ "metadata": { "labels": labels } })).unwrap()
        };
        let labelled = node(json!({ READY: "true", ACCELERATOR: "tcg" }));
        assert_eq!(Capacity::of_node(&labelled, 7), offered);
        let new = node(json!({ "a": "b" }));
        assert_eq!(Capacity::of_node(&new, 7), Capacity::default());
    }
}
