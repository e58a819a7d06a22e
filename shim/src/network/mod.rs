//! The pod's network: moves whatever CNI put into the pod's network namespace to the guest.
//!
//! Each interface (veth, macvlan, ipvlan …) gets a tap in the same namespace, to which traffic
//! control wires it, see [`caisson_node::traffic::tc`]. Behind the tap is a network card of the VM
//! with the interface's hardware address, name, MTU, addresses, routes and permanent neighbours.
//! The interface itself keeps all of these: nothing changes for NetworkPolicy, for the node's
//! statistics and for CNI's DEL.
//!
//! ```text
//!   bridge, host …  ──veth──  eth0 ──ingress: redirect──▶ tap ──VMM── the guest's eth0
//!                                  ◀──ingress: redirect──
//! ```
//!
//! Packets that arrive at either leave by the other before the namespace's own IP stack sees them,
//! so that stack never answers for the addresses that the interface keeps. Connections to the
//! namespace's loopback are led to the guest's, see [`forward`].
//!
//! Frames that the guest sends without one of the interface's addresses as source are dropped at
//! the tap, see [`caisson_node::traffic::guard`]. These are the addresses that the interface has
//! when the pod starts: CNI sets them before. The guest does not learn of an address that comes
//! later, and the tap does not let it through.
//!
//! What the pod may open connections to is decided at the same places, before anything else: see
//! [`egress`].
//!
//! When a shim is killed, the VMM ends with it, and then the taps go. The redirects stay on the
//! interface and go with it at CNI's DEL. A new shim in the same namespace replaces them.

mod cards;
mod egress;
mod error;
mod forward;
mod interface;
mod namespace;
pub mod rehearsal;
mod resolver;
mod tap;

pub use cards::{Network, Rules};
pub use error::NetworkError;
pub use interface::Statistics;
pub use resolver::servers;
