//! The errors of a pod's network.

use std::{io, path::PathBuf};

/// What can go wrong with a pod's network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The namespace can't be entered.
    #[error("enter the pod's network namespace {}", path.display())]
    Namespace {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The namespace is the host's own.
    #[error("{} is the host's network namespace, which is not reachable from the guest", .0.display())]
    HostNamespace(PathBuf),
    /// The kernel does not list the contents of the namespace.
    #[error("read the pod's network")]
    Read {
        #[source]
        source: io::Error,
    },
    /// No network card of a VM can stand for an interface.
    #[error("interface {interface} can't be moved into the guest: {reason}")]
    Unsupported {
        interface: String,
        reason: &'static str,
    },
    /// The card of an interface can't be made.
    #[error("{step} for the interface {interface}")]
    Card {
        interface: String,
        step: &'static str,
        #[source]
        source: io::Error,
    },
    /// The kernel has no means to filter what the pod opens.
    #[error(
        "hold the pod to its egress, which takes eBPF and cls_bpf in the node's kernel \
         (`caisson check` tries them; the egress `open` does without)"
    )]
    Egress {
        #[source]
        source: io::Error,
    },
    /// Names can't be resolved for the pod.
    #[error("start the resolver of the names in the pod's egress")]
    Resolver {
        #[source]
        source: io::Error,
    },
    /// Connections to the namespace's loopback can't be led to the guest.
    #[error("forward ports to the guest")]
    Forward {
        #[source]
        source: io::Error,
    },
}
