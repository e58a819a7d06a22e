//! The network cards of a pod's VM, one for each interface of the pod's network namespace.

use std::{
    net::IpAddr,
    os::fd::OwnedFd,
    path::Path,
    sync::{Mutex, PoisonError},
};

use caisson_node::traffic::{
    guard,
    netlink::Netlink,
    tc::{self, Hook, Onward, Redirect},
};
use caisson_oci::Egress;
use caisson_protocol::agent as proto;
use caisson_vmm::Device;
use proto::attach_request::Device as GuestDevice;

use super::{
    egress::Guard,
    error::NetworkError,
    forward::Forward,
    interface::{self, Interface, Statistics},
    namespace::Namespace,
    tap::{self, Kind},
};
use crate::{plug::Plug, vm::VmHandle};

/// The device through which the host's kernel drives a network card; not every host has it.
const VHOST: &str = "/dev/vhost-net";

/// What a guest is held to.
pub struct Rules {
    /// The guest can only send with its interfaces' addresses.
    pub anti_spoofing: bool,
    pub egress: Egress,
    /// The servers of DNS that the pod has.
    pub servers: Vec<IpAddr>,
}

/// A pod's network. Dropping it leaves the namespace as CNI made it. A VM that has not ended yet
/// reaches nothing any more.
pub struct Network {
    namespace: Namespace,
    forward: Option<Forward>,
    egress: Option<Guard>,
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
    /// `lo` gets no cards. The rules hold from the first packet on.
    pub async fn open(path: &Path, rules: Rules) -> Result<Self, NetworkError> {
        let namespace = Namespace::open(path)?;
        let inside = namespace.clone();
        let egress = Guard::new(&rules.egress, rules.servers).await?;
        let make = move || Self::make(inside, egress, rules.anti_spoofing);
        let mut network = namespace.run(make).await?;
        if let Some(egress) = &mut network.egress {
            egress.start().await?;
        }
        Ok(network)
    }

    /// Does the work of [`Network::open`] inside the namespace.
    fn make(
        namespace: Namespace,
        egress: Option<Guard>,
        anti_spoofing: bool,
    ) -> Result<Self, NetworkError> {
        let read = |source| NetworkError::Read { source };
        let mut netlink = Netlink::open().map_err(read)?;
        let interfaces = interface::list(&mut netlink)?;
        let mut network = Self {
            namespace,
            forward: None,
            egress,
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
        let interface = self.cards.last().map(|card| &card.interface);
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
        if let (Some(egress), Some(interface)) = (&mut self.egress, interface) {
            egress.hold(netlink, interface, tap, anti_spoofing)?;
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

    /// Returns what the pod may open connections to and how many frames were dropped because of
    /// that; none if it may open everything.
    pub fn egress(&self) -> Result<Option<(Egress, u64)>, NetworkError> {
        let state = self.egress.as_ref().map(Guard::state).transpose();
        state.map_err(|source| NetworkError::Egress { source })
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
        let netlink = self.netlink.get_mut();
        let netlink = netlink.unwrap_or_else(PoisonError::into_inner);
        // First of all, so that no frame of the guest's passes without the rules.
        if let Err(error) = tap::remove_all(netlink) {
            log::warn!(error:%; "the pod's taps stay until the VM has ended");
        }
        self.forward = None;
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
