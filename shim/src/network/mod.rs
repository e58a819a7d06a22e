//! The pod's network: moves whatever CNI put into the pod's network namespace to the guest.
//!
//! Each interface (veth, macvlan, ipvlan …) gets a tap in the same namespace, to which traffic
//! control wires it, see [`tc`]. Behind the tap is a network card of the VM with the interface's
//! hardware address, name, MTU, addresses, routes and permanent neighbours. The interface itself
//! keeps all of these: nothing changes for NetworkPolicy, for the node's statistics and for CNI's
//! DEL.
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
//! the tap, see [`guard`]. These are the addresses that the interface has when the pod starts: CNI
//! sets them before. The guest does not learn of an address that comes later, and the tap does not
//! let it through.
//!
//! When a shim is killed, the VMM ends with it, and then the taps go. The redirects stay on the
//! interface and go with it at CNI's DEL. A new shim in the same namespace replaces them.

mod forward;
mod guard;
mod interface;
mod namespace;
mod netlink;
mod tap;
mod tc;

use std::{
    io,
    net::Ipv4Addr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use caisson_protocol::agent as proto;
use caisson_vmm::Device;
use proto::attach_request::Device as GuestDevice;

use crate::{machine::Plug, vm::VmHandle};
use forward::Forward;
use interface::Interface;
pub use interface::Statistics;
use namespace::Namespace;
use netlink::Netlink;
use tap::Kind;
use tc::{Hook, Onward, Redirect};

/// The device through which the host's kernel drives a network card; not every host has it.
const VHOST: &str = "/dev/vhost-net";

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
    /// Connections to the namespace's loopback can't be led to the guest.
    #[error("forward ports to the guest")]
    Forward {
        #[source]
        source: io::Error,
    },
}

/// The first interface of every network namespace.
const LOOPBACK: u32 = 1;

/// Tries what holds a guest to its addresses, in a network namespace that is gone afterwards.
///
/// # Errors
/// What the kernel says where it lacks cls_bpf or act_mirred, or the caller CAP_SYS_ADMIN.
pub fn try_anti_spoofing() -> io::Result<()> {
    let tried = std::thread::spawn(|| {
        // SAFETY: touches no memory. The thread ends in the new namespace, which then goes, too.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut netlink = Netlink::open()?;
        tc::hook(&mut netlink, LOOPBACK, Hook::Ingress)?;
        let program = guard::program([0; 6], &[Ipv4Addr::LOCALHOST.into()]);
        tc::redirect_if(&mut netlink, LOOPBACK, &program, LOOPBACK)
    });
    let died = |_| Err(io::Error::other("the thread that tried it died"));
    tried.join().unwrap_or_else(died)
}

/// A pod's network. Dropping it leaves the namespace as CNI made it; the VM must have ended
/// before.
pub struct Network {
    namespace: Namespace,
    forward: Option<Forward>,
    netlink: Mutex<Netlink>,
    cards: Vec<Card>,
}

struct Card {
    interface: Interface,
    /// The tap's queue, until the VMM takes it.
    queue: Option<OwnedFd>,
    /// The tap's index.
    tap: u32,
}

impl Network {
    /// Makes a tap for every interface of the namespace and wires it up. A namespace that has only
    /// `lo` gets no cards.
    ///
    /// With `anti_spoofing` the guest can only send with the interface's addresses.
    pub async fn open(path: &Path, anti_spoofing: bool) -> Result<Self, NetworkError> {
        let namespace = Namespace::open(path)?;
        let inside = namespace.clone();
        let make = move || Self::make(inside, anti_spoofing);
        namespace.run(make).await
    }

    /// Does the work of [`Network::open`] inside the namespace.
    fn make(namespace: Namespace, anti_spoofing: bool) -> Result<Self, NetworkError> {
        let read = |source| NetworkError::Read { source };
        let mut netlink = Netlink::open().map_err(read)?;
        let interfaces = interface::list(&mut netlink)?;
        let mut network = Self {
            namespace,
            forward: None,
            netlink: Mutex::new(netlink),
            cards: Vec::new(),
        };
        for interface in interfaces {
            network.add(interface, anti_spoofing)?;
        }
        Ok(network)
    }

    fn add(&mut self, interface: Interface, anti_spoofing: bool) -> Result<(), NetworkError> {
        let name = interface.name.clone();
        let failed = |step| {
            let interface = name.clone();
            move |source| NetworkError::Card {
                interface,
                step,
                source,
            }
        };
        let (index, mtu) = (interface.index, interface.mtu);
        let program = match anti_spoofing {
            true => Some(guard::program(interface.mac, &interface.addresses())),
            false => None,
        };
        if program
            .as_ref()
            .is_some_and(|ops| ops.len() > guard::MAX_LENGTH)
        {
            return Err(NetworkError::Unsupported {
                interface: name,
                reason: "it has too many addresses to be held to them; `anti_spoofing = false` in [network] does without",
            });
        }
        let (queue, tap) = tap::create(Kind::Tap).map_err(failed("make a tap (/dev/net/tun)"))?;
        // From here on the tap is undone with the rest.
        self.cards.push(Card {
            interface,
            queue: Some(queue),
            tap,
        });
        let netlink = self.netlink.get_mut();
        let netlink = netlink.unwrap_or_else(PoisonError::into_inner);
        tap::set_up(netlink, tap, mtu).map_err(failed("set up the tap"))?;
        let all = |from, to| Redirect {
            from,
            hook: Hook::Ingress,
            protocol: tc::ETH_P_ALL,
            matches: &[],
            to: Onward::Out(to),
        };
        for from in [tap, index] {
            tc::hook(netlink, from, Hook::Ingress).map_err(failed("redirect packets"))?;
        }
        tc::redirect(netlink, &all(index, tap)).map_err(failed("redirect packets"))?;
        match program {
            Some(program) => tc::redirect_if(netlink, tap, &program, index).map_err(failed(
                "filter what the guest sends (by the kernel's cls_bpf; `anti_spoofing = false` in [network] does without)",
            )),
            None => tc::redirect(netlink, &all(tap, index)).map_err(failed("redirect packets")),
        }
    }

    /// Leads connections to the namespace's loopback to the guest's, until the network is dropped.
    pub async fn forward(&mut self, vm: VmHandle) -> Result<(), NetworkError> {
        self.forward = Some(Forward::start(&self.namespace, vm).await?);
        Ok(())
    }

    /// Returns the cards to be plugged in; none the second time.
    pub fn plugs(&mut self) -> Vec<Plug> {
        let cards = self.cards.iter_mut();
        let plug = |card: &mut Card| {
            Some(Plug {
                vm: Device::Network {
                    tap: card.queue.take()?,
                    vhost: open_vhost(),
                    mac: card.interface.mac,
                    mtu: u16::try_from(card.interface.mtu).unwrap_or(u16::MAX),
                },
                guest: GuestDevice::Network(card.interface.guest.clone()),
                hold: None,
            })
        };
        cards.filter_map(plug).collect()
    }

    /// Returns the traffic counters of the pod's interfaces since CNI made them. Blocks for less
    /// than a millisecond.
    pub fn statistics(&self) -> Result<Vec<Statistics>, NetworkError> {
        let mut netlink = self.netlink.lock().unwrap_or_else(PoisonError::into_inner);
        let read = |source| NetworkError::Read { source };
        let mut all = interface::statistics(&mut netlink).map_err(read)?;
        let of = |card: &Card| {
            let mut statistics = all.remove(&card.interface.index)?;
            // Packets that the VM did not take in time.
            let lost = all.get(&card.tap).map_or(0, |tap| tap.tx_dropped);
            statistics.rx_dropped += lost;
            Some(statistics)
        };
        Ok(self.cards.iter().filter_map(of).collect())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.forward = None;
        let netlink = self.netlink.get_mut();
        let netlink = netlink.unwrap_or_else(PoisonError::into_inner);
        for card in &self.cards {
            if let Err(error) = tc::unhook(netlink, card.interface.index, Hook::Ingress) {
                let interface = card.interface.name.as_str();
                log::warn!(interface, error:%; "the pod's interface stays redirected");
            }
        }
    }
}

/// Opens the host kernel's network driver, if there is one.
fn open_vhost() -> Option<OwnedFd> {
    let opened = std::fs::File::options().read(true).write(true).open(VHOST);
    match opened {
        Ok(file) => Some(file.into()),
        Err(error) => {
            log::debug!("{VHOST}: {error}");
            None
        }
    }
}
