//! Holds a pod to what its egress allows: a filter of eBPF programs at the host's side of its
//! network cards.
//!
//! Traffic control runs the programs, since it is where the tap's packets pass. Packets that it
//! redirects never get to nftables' hook of an interface's ingress, and nftables can't track
//! connections at its hook of the egress. The programs keep track by themselves, in a map of flows.
//! `flower` and `matchall` are modules that not every kernel has. The anti-spoofing filter needs
//! cls_bpf, too.
//!
//! `maps.rs` has what programs and shim share, `programs.rs` what passes.

mod maps;
mod programs;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
    time::Duration,
};

use caisson_oci::egress::{Egress, Target};
use ipnet::IpNet;

pub use maps::PINS;
pub use programs::Resolver;

use super::ebpf;
use maps::Maps;

/// The addresses of clouds' metadata services. Whoever reaches them may get the node's credentials.
const METADATA: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// The groups and addresses of IPv6 that are on every link, and on no other.
const ON_EVERY_LINK: [&str; 2] = ["ff02::/16", "fe80::/10"];

/// The filter of a pod. Its programs live on where they are attached.
#[derive(Debug)]
pub struct Filter {
    maps: Maps,
}

impl Filter {
    /// Makes the filter for an egress that is not open. `node` has the node's own addresses, which
    /// are closed to lists, as those of metadata services are.
    ///
    /// # Errors
    /// What the kernel says where it lacks eBPF, or the caller CAP_BPF.
    pub fn new(egress: &Egress, node: &[IpAddr]) -> io::Result<Self> {
        let maps = Maps::new(egress.entries().len())?;
        for address in METADATA.iter().chain(node) {
            maps.closed.set(&maps::address(*address), &[0; 4])?;
        }
        for entry in egress.entries() {
            if let Target::Net { net, named } = &entry.to {
                let named = u32::from(*named).to_ne_bytes();
                maps.nets.set(&maps::net(net, entry.port), &named)?;
            }
        }
        for net in ON_EVERY_LINK.iter().filter_map(|net| net.parse().ok()) {
            maps.links.set(&maps::net(&net, None), &[0; 4])?;
        }
        Ok(Self { maps })
    }

    /// Adds an address that the guest has and the prefix of its link.
    pub fn add_address(&self, address: IpNet) -> io::Result<()> {
        self.maps.own.set(&maps::address(address.addr()), &[0; 4])?;
        self.add_link(address.trunc())
    }

    /// Adds a prefix that is on a link of the guest.
    pub fn add_link(&self, prefix: IpNet) -> io::Result<()> {
        self.maps.links.set(&maps::net(&prefix, None), &[0; 4])
    }

    /// Adds a server of DNS whose queries are led to the resolver.
    pub fn add_server(&self, server: IpAddr) -> io::Result<()> {
        self.maps.servers.set(&maps::address(server), &[0; 4])
    }

    /// Loads the program for what the guest sends, with `own_addresses` from its addresses alone.
    pub fn outward(&self, own_addresses: bool, resolver: Option<Resolver>) -> io::Result<OwnedFd> {
        ebpf::load(&programs::outward(&self.maps, own_addresses, resolver))
    }

    /// Loads the program for what comes to the guest.
    pub fn inward(&self) -> io::Result<OwnedFd> {
        ebpf::load(&programs::inward(&self.maps))
    }

    /// Opens an address of a name until a time of CLOCK_MONOTONIC, at one port or all.
    pub fn pin(&self, address: IpAddr, port: Option<u16>, until: Duration) -> io::Result<()> {
        let until = u64::try_from(until.as_nanos()).unwrap_or(u64::MAX);
        let key = maps::pin(address, port);
        self.maps.pins.set(&key, &until.to_ne_bytes())
    }

    /// Closes an address that was pinned.
    pub fn unpin(&self, address: IpAddr, port: Option<u16>) -> io::Result<()> {
        self.maps.pins.remove(&maps::pin(address, port))
    }

    /// Returns how many frames of the guest were dropped.
    pub fn denied(&self) -> io::Result<u64> {
        let value = self.maps.denied.get(&[0; 4])?.unwrap_or_default();
        let value: Result<[u8; 8], _> = value.try_into();
        Ok(value.map_or(0, u64::from_ne_bytes))
    }
}
