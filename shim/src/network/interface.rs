//! Reads the interfaces that CNI made in a network namespace, and the settings that the guest's
//! cards take over from them.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr},
};

use caisson_node::traffic::netlink::Netlink;
use caisson_protocol::agent as proto;
use ipnet::IpNet;
use netlink_packet_core::Nla;
use netlink_packet_route::{
    address::{AddressAttribute, AddressFlags, AddressMessage},
    link::{
        InfoData, InfoIpVlan, InfoKind, IpVlanMode, LinkAttribute, LinkFlags, LinkInfo,
        LinkLayerType, LinkMessage,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteType, RouteVia,
    },
    AddressFamily, RouteNetlinkMessage,
};

use super::{error::NetworkError, tap};

/// The kernel's own table of local addresses (rtnetlink(7)).
const TABLE_LOCAL: u32 = 255;

/// An interface that is moved into the guest.
#[derive(Debug)]
pub struct Interface {
    pub index: u32,
    pub name: String,
    pub mac: [u8; 6],
    pub mtu: u32,
    /// What the agent is told about it.
    pub guest: proto::Network,
}

impl Interface {
    /// The addresses of the interface, which the guest gets too.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.nets().iter().map(IpNet::addr).collect()
    }

    /// The addresses of the interface with the lengths of their prefixes.
    pub fn nets(&self) -> Vec<IpNet> {
        let net = |own: &proto::Address| {
            let length = u8::try_from(own.prefix_length).ok()?;
            IpNet::new(ip(&own.address)?, length).ok()
        };
        self.guest.addresses.iter().filter_map(net).collect()
    }

    /// The routers that the interface's routes lead to.
    pub fn gateways(&self) -> Vec<IpAddr> {
        let routes = self.guest.routes.iter();
        routes.filter_map(|route| ip(&route.gateway)).collect()
    }
}

/// The traffic counters of an interface, from the pod's point of view.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statistics {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// The counters of all interfaces of a namespace, by index.
pub fn statistics(netlink: &mut Netlink) -> io::Result<HashMap<u32, Statistics>> {
    let links = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let mut found = HashMap::new();
    for message in netlink.list(links)? {
        let RouteNetlinkMessage::NewLink(link) = message else {
            continue;
        };
        let counted = find(&link.attributes, |attribute| match attribute {
            LinkAttribute::Stats64(counted) => Some(counted),
            _ => None,
        });
        if let Some(counted) = counted {
            let statistics = Statistics {
                name: name(&link),
                rx_bytes: counted.rx_bytes,
                rx_packets: counted.rx_packets,
                rx_errors: counted.rx_errors,
                rx_dropped: counted.rx_dropped,
                tx_bytes: counted.tx_bytes,
                tx_packets: counted.tx_packets,
                tx_errors: counted.tx_errors,
                tx_dropped: counted.tx_dropped,
            };
            found.insert(link.header.index, statistics);
        }
    }
    Ok(found)
}

/// Returns the addresses of all interfaces of a namespace.
pub fn addresses(netlink: &mut Netlink) -> io::Result<Vec<IpAddr>> {
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let mut found = Vec::new();
    for message in netlink.list(request)? {
        if let RouteNetlinkMessage::NewAddress(message) = message {
            // Of both ends of a point-to-point link, the first is the own one.
            let local = find(&message.attributes, |attribute| match attribute {
                AddressAttribute::Local(ip) => Some(*ip),
                _ => None,
            });
            let any = || {
                find(&message.attributes, |attribute| match attribute {
                    AddressAttribute::Address(ip) => Some(*ip),
                    _ => None,
                })
            };
            found.extend(local.or_else(any));
        }
    }
    Ok(found)
}

/// Lists the interfaces of a namespace that the guest gets. Fails for an interface that it can't
/// get; leaves out those that are down.
pub fn list(netlink: &mut Netlink) -> Result<Vec<Interface>, NetworkError> {
    let failed = |source| NetworkError::Read { source };
    let mut interfaces: Vec<Interface> = Vec::new();
    let links = RouteNetlinkMessage::GetLink(LinkMessage::default());
    for message in netlink.list(links).map_err(failed)? {
        let RouteNetlinkMessage::NewLink(link) = message else {
            continue;
        };
        let name = name(&link);
        let unsupported = |reason| NetworkError::Unsupported {
            interface: name.clone(),
            reason,
        };
        if !is_moved(&link, &name) {
            log::debug!(interface = name.as_str(); "not moved into the guest");
            continue;
        }
        let mac = mac(&link).map_err(unsupported)?;
        if interfaces.iter().any(|other| other.mac == mac) {
            return Err(unsupported(
                "another one has its hardware address, by which the guest finds its card",
            ));
        }
        let mtu = find(&link.attributes, |attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        let mtu = mtu.unwrap_or(1500);
        interfaces.push(Interface {
            index: link.header.index,
            mac,
            mtu,
            guest: proto::Network {
                mac: format_mac(&mac),
                name: name.clone(),
                mtu,
                no_arp: link.header.flags.contains(LinkFlags::Noarp),
                ..Default::default()
            },
            name,
        });
    }
    if interfaces.is_empty() {
        return Ok(interfaces);
    }
    let addresses = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    for message in netlink.list(addresses).map_err(failed)? {
        if let RouteNetlinkMessage::NewAddress(message) = message {
            let card = of(&mut interfaces, message.header.index);
            if let (Some(card), Some(address)) = (card, address(&message)) {
                card.guest.addresses.push(address);
            }
        }
    }
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut routes = RouteMessage::default();
        routes.header.address_family = family;
        let routes = RouteNetlinkMessage::GetRoute(routes);
        for message in netlink.list(routes).map_err(failed)? {
            if let RouteNetlinkMessage::NewRoute(message) = message {
                if let Some((index, route)) = route(&message) {
                    if let Some(card) = of(&mut interfaces, index) {
                        card.guest.routes.push(route);
                    }
                }
            }
        }
    }
    let neighbours = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    for message in netlink.list(neighbours).map_err(failed)? {
        if let RouteNetlinkMessage::NewNeighbour(message) = message {
            let card = of(&mut interfaces, message.header.ifindex);
            if let (Some(card), Some(neighbour)) = (card, neighbour(&message)) {
                card.guest.neighbours.push(neighbour);
            }
        }
    }
    Ok(interfaces)
}

/// A hardware address as the kernel writes it.
pub fn format_mac(mac: &[u8]) -> String {
    let bytes: Vec<_> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

fn of(interfaces: &mut [Interface], index: u32) -> Option<&mut Interface> {
    interfaces.iter_mut().find(|found| found.index == index)
}

fn find<'a, A, T>(attributes: &'a [A], pick: impl FnMut(&'a A) -> Option<T>) -> Option<T> {
    attributes.iter().find_map(pick)
}

fn name(link: &LinkMessage) -> String {
    let name = find(&link.attributes, |attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    name.unwrap_or_else(|| format!("number {}", link.header.index))
}

/// Whether the interface moves to the guest. Excluded are loopback, interfaces that are down (as
/// the kernel's own tunnel devices are), parts of a bridge or bond, and the tap and the way to the
/// resolver of a VM that is just ending.
fn is_moved(link: &LinkMessage, name: &str) -> bool {
    let flags = link.header.flags;
    let is_part = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::Controller(_));
    let is_tap =
        matches!(kind(link), Some(InfoKind::Tun | InfoKind::Veth)) && name.starts_with(tap::PREFIX);
    flags.contains(LinkFlags::Up)
        && !flags.contains(LinkFlags::Loopback)
        && !link.attributes.iter().any(is_part)
        && !is_tap
}

/// The hardware address for the guest's card. The error says why there can be no such card.
fn mac(link: &LinkMessage) -> Result<[u8; 6], &'static str> {
    if link.header.link_layer_type != LinkLayerType::Ether {
        return Err("it is not an Ethernet interface");
    }
    let below = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::Link(_));
    let elsewhere = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::LinkNetNsId(_));
    let stackable = matches!(
        kind(link),
        Some(InfoKind::Vlan | InfoKind::MacVlan | InfoKind::MacVtap | InfoKind::IpVlan)
    );
    if stackable && link.attributes.iter().any(below) && !link.attributes.iter().any(elsewhere) {
        return Err("it lies on another interface of the pod, whose packets go to the guest");
    }
    if ipvlan_mode(link) == Some(IpVlanMode::L3S) {
        return Err("ipvlan in mode l3s passes its packets behind traffic control; use l2 or l3");
    }
    let address = find(&link.attributes, |attribute| match attribute {
        LinkAttribute::Address(address) => <[u8; 6]>::try_from(address.as_slice()).ok(),
        _ => None,
    });
    // Bit 0 of the first byte marks a group address.
    let is_one = |mac: &[u8; 6]| *mac != [0; 6] && mac[0] & 1 == 0;
    address
        .filter(is_one)
        .ok_or("it has no hardware address that a card could have")
}

fn info(link: &LinkMessage) -> &[LinkInfo] {
    let info = find(&link.attributes, |attribute| match attribute {
        LinkAttribute::LinkInfo(info) => Some(info.as_slice()),
        _ => None,
    });
    info.unwrap_or_default()
}

fn kind(link: &LinkMessage) -> Option<&InfoKind> {
    find(info(link), |info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    })
}

fn ipvlan_mode(link: &LinkMessage) -> Option<IpVlanMode> {
    let data = find(info(link), |info| match info {
        LinkInfo::Data(InfoData::IpVlan(data)) => Some(data),
        _ => None,
    })?;
    find(data, |data| match data {
        InfoIpVlan::Mode(mode) => Some(*mode),
        _ => None,
    })
}

pub(super) fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}

/// Converts an address. Leaves out temporary addresses (RFC 8981): a kernel makes its own.
fn address(message: &AddressMessage) -> Option<proto::Address> {
    let mut local = None;
    let mut other = None;
    let mut address = proto::Address {
        prefix_length: message.header.prefix_len.into(),
        scope: u8::from(message.header.scope).into(),
        ..Default::default()
    };
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => other = Some(*ip),
            AddressAttribute::Broadcast(ip) => address.broadcast = ip.octets().to_vec(),
            AddressAttribute::RoutePriority(metric) => address.metric = *metric,
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let own = local.or(other)?;
    // For IPv4 the flag has another meaning: not the first address of its prefix.
    if own.is_ipv6() && flags.contains(AddressFlags::Secondary) {
        return None;
    }
    if other.is_some_and(|other| other != own) {
        address.peer = other.map(bytes).unwrap_or_default();
    }
    address.address = bytes(own);
    address.no_prefix_route = flags.contains(AddressFlags::Noprefixroute);
    Some(address)
}

/// Converts a route that somebody has set. Returns it with the index of the interface that it leads
/// through.
fn route(message: &RouteMessage) -> Option<(u32, proto::Route)> {
    let header = &message.header;
    let is_set = header.kind == RouteType::Unicast
        && header.protocol != RouteProtocol::Kernel
        && !header.flags.contains(RouteFlags::Cloned);
    if !is_set {
        return None;
    }
    let any = match header.address_family {
        AddressFamily::Inet => bytes(Ipv4Addr::UNSPECIFIED.into()),
        AddressFamily::Inet6 => vec![0; 16],
        _ => return None,
    };
    let mut index = None;
    let mut route = proto::Route {
        destination: any,
        prefix_length: header.destination_prefix_length.into(),
        table: header.table.into(),
        type_: u8::from(header.kind).into(),
        scope: u8::from(header.scope).into(),
        protocol: u8::from(header.protocol).into(),
        on_link: header.flags.contains(RouteFlags::Onlink),
        ..Default::default()
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => index = Some(*oif),
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Priority(priority) => route.priority = *priority,
            RouteAttribute::Destination(to) => route.destination = route_address(to)?,
            RouteAttribute::PrefSource(source) => route.source = route_address(source)?,
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics.iter().filter(|metric| metric.value_len() == 4) {
                    let mut value = [0; 4];
                    metric.emit_value(&mut value);
                    let value = u32::from_ne_bytes(value);
                    route.metrics.insert(metric.kind().into(), value);
                }
            }
            RouteAttribute::MultiPath(hops) => {
                // A card has only routes of its own, so one of the ways is taken.
                let hop = hops.first()?;
                log::warn!("a route of the pod over several ways leads over the first alone");
                index = Some(hop.interface_index);
                for attribute in &hop.attributes {
                    gateway(attribute, &mut route);
                }
            }
            other => gateway(other, &mut route),
        }
    }
    if route.table == TABLE_LOCAL {
        return None;
    }
    Some((index?, route))
}

fn gateway(attribute: &RouteAttribute, route: &mut proto::Route) {
    route.gateway = match attribute {
        RouteAttribute::Gateway(gateway) => route_address(gateway).unwrap_or_default(),
        RouteAttribute::Via(RouteVia::Inet(gateway)) => gateway.octets().to_vec(),
        RouteAttribute::Via(RouteVia::Inet6(gateway)) => gateway.octets().to_vec(),
        _ => return,
    };
}

fn route_address(address: &RouteAddress) -> Option<Vec<u8>> {
    match address {
        RouteAddress::Inet(address) => Some(address.octets().to_vec()),
        RouteAddress::Inet6(address) => Some(address.octets().to_vec()),
        _ => None,
    }
}

fn neighbour(message: &NeighbourMessage) -> Option<proto::Neighbour> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let mut neighbour = proto::Neighbour::new();
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                neighbour.address = address.octets().to_vec();
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
                neighbour.address = address.octets().to_vec();
            }
            NeighbourAttribute::LinkLayerAddress(mac) if mac.len() == 6 => {
                neighbour.mac = format_mac(mac);
            }
            _ => {}
        }
    }
    let whole = !neighbour.address.is_empty() && !neighbour.mac.is_empty();
    whole.then_some(neighbour)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An interface of a kind that is up, and whose lower half is in another namespace.
    fn link(kind: InfoKind, data: Option<InfoData>) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.link_layer_type = LinkLayerType::Ether;
        link.header.flags = LinkFlags::Up;
        let data = data.map(LinkInfo::Data);
        let info = [LinkInfo::Kind(kind)].into_iter().chain(data).collect();
        link.attributes = vec![
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
            LinkAttribute::Link(7),
            LinkAttribute::LinkNetNsId(0),
            LinkAttribute::LinkInfo(info),
        ];
        link
    }

    fn ipvlan(mode: IpVlanMode) -> LinkMessage {
        let data = InfoData::IpVlan(vec![InfoIpVlan::Mode(mode)]);
        link(InfoKind::IpVlan, Some(data))
    }

    #[test]
    fn ipvlan_is_moved_but_for_the_mode_that_hides_its_packets() {
        for mode in [IpVlanMode::L2, IpVlanMode::L3] {
            assert_eq!(mac(&ipvlan(mode)), Ok([2, 0, 0, 0, 0, 1]));
        }
        assert!(mac(&ipvlan(IpVlanMode::L3S)).unwrap_err().contains("l3s"));
    }

    #[test]
    fn macvlan_on_another_interface_of_the_pod_is_refused() {
        let mut link = link(InfoKind::MacVlan, None);
        assert!(mac(&link).is_ok());
        link.attributes
            .retain(|attribute| !matches!(attribute, LinkAttribute::LinkNetNsId(_)));
        assert!(mac(&link).is_err());
    }

    #[test]
    fn interface_that_is_no_ethernet_is_refused() {
        let mut link = link(InfoKind::Wireguard, None);
        link.header.link_layer_type = LinkLayerType::None;
        assert!(mac(&link).is_err());
    }

    #[test]
    fn hardware_address_that_no_card_can_have_is_refused() {
        for address in [vec![0; 6], vec![1, 0, 0, 0, 0, 1], vec![2; 20]] {
            let mut link = link(InfoKind::Veth, None);
            link.attributes[0] = LinkAttribute::Address(address);
            assert!(mac(&link).is_err());
        }
    }

    #[test]
    fn what_is_down_or_part_of_something_or_a_tap_of_ours_is_not_moved() {
        let veth = link(InfoKind::Veth, None);
        assert!(is_moved(&veth, "eth0"));
        let mut down = veth.clone();
        down.header.flags = LinkFlags::empty();
        assert!(!is_moved(&down, "eth0"));
        let mut part = veth;
        part.attributes.push(LinkAttribute::Controller(3));
        assert!(!is_moved(&part, "eth0"));
        assert!(!is_moved(&link(InfoKind::Tun, None), "caisson0"));
        assert!(!is_moved(&link(InfoKind::Veth, None), "caissonr5"));
    }
}
