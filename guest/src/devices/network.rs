//! Sets up a network card of the pod: waits for it and makes it what an interface of the pod's
//! network namespace is on the host.
//!
//! [`crate::service`] calls this. All of it blocks.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Mutex, PoisonError},
};

use caisson_protocol::agent::{Address, Neighbour, Network, Route};
use netlink_packet_core::{
    DefaultNla, ErrorBuffer, NetlinkHeader, NetlinkMessage, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE,
    NLM_F_REPLACE, NLM_F_REQUEST,
};
use netlink_packet_route::{
    address::{AddressAttribute, AddressFlags, AddressHeader, AddressMessage},
    link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteVia},
    AddressFamily, RouteNetlinkMessage,
};
use netlink_sys::{protocols::NETLINK_ROUTE, Socket, SocketAddr};

use crate::{
    kernel::{
        modules,
        sysfs::{names_in, wait_for},
    },
    Error, Result,
};

/// The length of a netlink message's header (netlink(7), `struct nlmsghdr`).
const HEADER: usize = 16;

/// Several cards are attached at the same time and may trade names.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Waits for a card and sets it up. Idempotent.
pub fn attach(network: &Network) -> Result<()> {
    modules::load(modules::NETWORK)?;
    let card = wait_for("net", &format!("network card {}", network.mac), || {
        Ok(find(&network.mac))
    })?;
    if network.name.is_empty() {
        return Ok(());
    }
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let failed = |step: &'static str| {
        move |source| Error::Network {
            interface: network.name.clone(),
            step,
            source,
        }
    };
    let mut netlink = Netlink::open().map_err(failed("open a netlink socket for"))?;
    // While this call waited, another one may have given this card another name.
    let card = find(&network.mac).unwrap_or(card);
    let index = index_of(&card).map_err(failed("find"))?;
    if card != network.name {
        netlink
            .rename(index, &network.name)
            .map_err(failed("name"))?;
    }
    netlink.set_up(index, network).map_err(failed("set up"))?;
    for address in &network.addresses {
        netlink
            .add_address(index, address)
            .map_err(failed("add an address to"))?;
    }
    for neighbour in &network.neighbours {
        netlink
            .add_neighbour(index, neighbour)
            .map_err(failed("add a neighbour to"))?;
    }
    // A gateway must be reachable on the link before a route can lead through it.
    let mut routes: Vec<&Route> = network.routes.iter().collect();
    routes.sort_by_key(|route| !route.gateway.is_empty());
    for route in routes {
        netlink
            .add_route(index, route)
            .map_err(failed("add a route through"))?;
    }
    Ok(())
}

/// Returns the current name of the card with this address. An interface on top of a card can have
/// the same address, but has no device.
fn find(mac: &str) -> Option<String> {
    names_in("/sys/class/net").into_iter().find(|name| {
        let path = std::path::Path::new("/sys/class/net").join(name);
        let address = std::fs::read_to_string(path.join("address"));
        address.is_ok_and(|found| found.trim() == mac) && path.join("device").exists()
    })
}

fn index_of(name: &str) -> io::Result<u32> {
    let text = std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex"))?;
    text.trim().parse().map_err(io::Error::other)
}

/// A socket on which the guest's kernel is asked to change its network.
struct Netlink {
    socket: Socket,
}

impl Netlink {
    fn open() -> io::Result<Netlink> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        Ok(Netlink { socket })
    }

    /// Sends a request and waits for the kernel's answer.
    fn change(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut message = NetlinkMessage::new(header, request.into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        let (answer, _) = self.socket.recv_from_full()?;
        let answer = answer.get(HEADER..).unwrap_or_default();
        let answer = ErrorBuffer::new_checked(answer).map_err(io::Error::other)?;
        match answer.code() {
            None => Ok(()),
            Some(code) => Err(io::Error::from_raw_os_error(code.get().abs())),
        }
    }

    fn change_link(&mut self, message: LinkMessage) -> io::Result<()> {
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Renames a card that is down. If another card has the name, it gets a temporary one until it
    /// is given its own.
    fn rename(&mut self, index: u32, name: &str) -> io::Result<()> {
        if let Ok(occupant) = index_of(name) {
            let mut other = link(occupant);
            let aside = format!("card{occupant}");
            other.attributes.push(LinkAttribute::IfName(aside));
            self.change_link(other)?;
        }
        let mut message = link(index);
        message
            .attributes
            .push(LinkAttribute::IfName(name.to_string()));
        self.change_link(message)
    }

    /// Sets the MTU and the flags. The link-local address comes from the host with the other
    /// addresses.
    fn set_up(&mut self, index: u32, network: &Network) -> io::Result<()> {
        let mut message = link(index);
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let family = AfSpecUnspec::Inet6(vec![mode]);
        message
            .attributes
            .push(LinkAttribute::AfSpecUnspec(vec![family]));
        match self.change_link(message) {
            // This kernel has no IPv6.
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
            done => done?,
        }
        let mut message = link(index);
        if network.mtu != 0 {
            message.attributes.push(LinkAttribute::Mtu(network.mtu));
        }
        message.header.flags = LinkFlags::Up;
        message.header.flags.set(LinkFlags::Noarp, network.no_arp);
        message.header.change_mask = LinkFlags::Up | LinkFlags::Noarp;
        self.change_link(message)
    }

    fn add_address(&mut self, index: u32, address: &Address) -> io::Result<()> {
        let own = ip("address", &address.address)?;
        let mut message = AddressMessage::default();
        message.header = AddressHeader {
            family: family(own),
            prefix_len: small("prefix_length", address.prefix_length)?,
            scope: small("scope", address.scope)?.into(),
            index,
            ..Default::default()
        };
        let attributes = &mut message.attributes;
        attributes.push(AddressAttribute::Local(own));
        let other = match address.peer.is_empty() {
            true => own,
            false => ip("peer", &address.peer)?,
        };
        attributes.push(AddressAttribute::Address(other));
        if let Ok(broadcast) = <[u8; 4]>::try_from(address.broadcast.as_slice()) {
            attributes.push(AddressAttribute::Broadcast(broadcast.into()));
        }
        // The host's interface keeps the address, too. Without duplicate address detection, the two
        // do not find each other.
        let mut flags = AddressFlags::Nodad;
        flags.set(AddressFlags::Noprefixroute, address.no_prefix_route);
        attributes.push(AddressAttribute::Flags(flags));
        if address.metric != 0 {
            attributes.push(AddressAttribute::RoutePriority(address.metric));
        }
        let message = RouteNetlinkMessage::NewAddress(message);
        self.change(message, NLM_F_CREATE | NLM_F_REPLACE)
    }

    fn add_neighbour(&mut self, index: u32, neighbour: &Neighbour) -> io::Result<()> {
        let address = ip("neighbour", &neighbour.address)?;
        let mut message = NeighbourMessage::default();
        message.header.family = family(address);
        message.header.ifindex = index;
        message.header.state = NeighbourState::Permanent;
        message.attributes.extend([
            NeighbourAttribute::Destination(match address {
                IpAddr::V4(address) => NeighbourAddress::Inet(address),
                IpAddr::V6(address) => NeighbourAddress::Inet6(address),
            }),
            NeighbourAttribute::LinkLayerAddress(mac(&neighbour.mac)?),
        ]);
        let message = RouteNetlinkMessage::NewNeighbour(message);
        self.change(message, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Adds a route after the existing ones. A route that exists already counts as a success.
    fn add_route(&mut self, index: u32, route: &Route) -> io::Result<()> {
        let destination = ip("destination", &route.destination)?;
        let mut message = RouteMessage::default();
        message.header.address_family = family(destination);
        message.header.destination_prefix_length = small("prefix_length", route.prefix_length)?;
        message.header.kind = small("type", route.type_)?.into();
        message.header.scope = small("scope", route.scope)?.into();
        message.header.protocol = small("protocol", route.protocol)?.into();
        message.header.flags.set(RouteFlags::Onlink, route.on_link);
        let attributes = &mut message.attributes;
        attributes.push(RouteAttribute::Table(route.table));
        attributes.push(RouteAttribute::Oif(index));
        if route.prefix_length != 0 {
            let destination = RouteAddress::from(destination);
            attributes.push(RouteAttribute::Destination(destination));
        }
        if !route.gateway.is_empty() {
            attributes.push(match (destination, ip("gateway", &route.gateway)?) {
                (IpAddr::V4(_), IpAddr::V6(gateway)) => {
                    RouteAttribute::Via(RouteVia::Inet6(gateway))
                }
                (_, gateway) => RouteAttribute::Gateway(gateway.into()),
            });
        }
        if !route.source.is_empty() {
            let source = ip("source", &route.source)?;
            attributes.push(RouteAttribute::PrefSource(source.into()));
        }
        if route.priority != 0 {
            attributes.push(RouteAttribute::Priority(route.priority));
        }
        if !route.metrics.is_empty() {
            let metrics = route.metrics.iter().map(|(kind, value)| {
                let value = value.to_ne_bytes().to_vec();
                RouteMetric::Other(DefaultNla::new(*kind as u16, value))
            });
            attributes.push(RouteAttribute::Metrics(metrics.collect()));
        }
        let message = RouteNetlinkMessage::NewRoute(message);
        match self.change(message, NLM_F_CREATE | NLM_F_APPEND) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            result => result,
        }
    }
}

fn link(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn ip(field: &'static str, bytes: &[u8]) -> io::Result<IpAddr> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Ok(Ipv4Addr::from(bytes).into());
    }
    let bytes = <[u8; 16]>::try_from(bytes).map_err(|_| invalid(field))?;
    Ok(Ipv6Addr::from(bytes).into())
}

fn mac(text: &str) -> io::Result<Vec<u8>> {
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    bytes
        .collect::<std::result::Result<Vec<u8>, _>>()
        .ok()
        .filter(|bytes| bytes.len() == 6)
        .ok_or_else(|| invalid("mac"))
}

/// Checks that a number fits into a byte, as the kernel's messages require.
fn small(field: &'static str, number: u32) -> io::Result<u8> {
    u8::try_from(number).map_err(|_| invalid(field))
}

fn invalid(field: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{field} is not valid"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_of_another_length_than_four_or_sixteen_is_refused() {
        assert_eq!(
            ip("x", &[10, 0, 0, 1]).unwrap(),
            IpAddr::from([10, 0, 0, 1])
        );
        assert!(ip("x", &[0; 16]).unwrap().is_ipv6());
        for length in [0, 1, 5, 15, 17] {
            assert!(ip("x", &vec![0; length]).is_err(), "{length}");
        }
    }

    #[test]
    fn mac_that_is_not_six_bytes_is_refused() {
        assert_eq!(mac("02:00:00:00:ab:01").unwrap(), [2, 0, 0, 0, 0xab, 1]);
        for text in ["", "02:00", "02:00:00:00:ab:01:02", "xx:00:00:00:ab:01"] {
            assert!(mac(text).is_err(), "{text:?}");
        }
    }
}
