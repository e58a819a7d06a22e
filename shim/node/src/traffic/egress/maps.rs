//! The maps that an egress filter's programs share with the shim.
//!
//! An address of IPv4 is in the form of IPv6. Addresses and ports are in network order, times in
//! nanoseconds of CLOCK_MONOTONIC.

use std::{io, net::IpAddr};

use ipnet::IpNet;

use crate::traffic::ebpf::{Map, MapKind};

/// The most flows that are remembered. The one that was not used for the longest time is forgotten.
const FLOWS: u32 = 16 * 1024;
/// The most addresses that names have at a time, over all ports.
pub const PINS: u32 = 16 * 1024;
/// The most addresses of the node and of an interface.
const ADDRESSES: u32 = 4096;
/// The most servers of DNS in a resolv.conf(5) that are used. glibc reads three.
const SERVERS: u32 = 16;

/// The maps. See the fields for keys and values.
#[derive(Debug)]
pub struct Maps {
    /// Remote address, its port, the guest's port, the protocol (32 bits): until when the flow is
    /// remembered.
    pub flows: Map,
    /// Bits that count, port, 16 bits of nothing, address: 1 if the entry also opens what is
    /// closed.
    pub nets: Map,
    /// Port, 16 bits of nothing, address: until when a name has it.
    pub pins: Map,
    /// Addresses that no list opens without naming them.
    pub closed: Map,
    /// The guest's own addresses.
    pub own: Map,
    /// Prefixes on the guest's links, as `nets` has them.
    pub links: Map,
    /// The pod's servers of DNS.
    pub servers: Map,
    /// The number of frames that were dropped, at 0.
    pub denied: Map,
}

impl Maps {
    pub fn new(entries: usize) -> io::Result<Self> {
        let entries = u32::try_from(entries).unwrap_or(u32::MAX).max(1);
        let addresses = |most| Map::new(MapKind::Hash, 16, 4, most);
        Ok(Self {
            flows: Map::new(MapKind::LruHash, 24, 8, FLOWS)?,
            nets: Map::new(MapKind::Trie, 24, 4, entries)?,
            pins: Map::new(MapKind::Hash, 20, 8, PINS)?,
            closed: addresses(ADDRESSES)?,
            own: addresses(ADDRESSES)?,
            links: Map::new(MapKind::Trie, 24, 4, ADDRESSES)?,
            servers: addresses(SERVERS)?,
            denied: Map::new(MapKind::Array, 4, 8, 1)?,
        })
    }
}

/// Returns an address as keys have it.
pub fn address(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// Returns a key of `nets` or `links`. No port is 0.
pub fn net(net: &IpNet, port: Option<u16>) -> Vec<u8> {
    let mapped = if net.addr().is_ipv4() { 96 } else { 0 };
    let bits = 32 + mapped + u32::from(net.prefix_len());
    let mut key = bits.to_ne_bytes().to_vec();
    key.extend(pin(net.network(), port));
    key
}

/// Returns a key of `pins`.
pub fn pin(ip: IpAddr, port: Option<u16>) -> Vec<u8> {
    let mut key = port.unwrap_or(0).to_be_bytes().to_vec();
    key.extend([0, 0]);
    key.extend(address(ip));
    key
}
