//! The way of a query to the resolver: a network namespace that has nothing but the addresses of
//! the pod's servers, and a veth pair to it for each of the pod's cards.
//!
//! ```text
//!   the guest's eth0 ──VMM── tap ──query: redirect──▶ veth ── veth ─▶ server's address on lo
//!                                ◀──ingress: redirect──
//! ```
//!
//! The namespace and the pairs go with the last descriptor of it, so also when the shim is killed.

use std::{
    ffi::CString,
    io,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    os::fd::AsRawFd,
};

use caisson_node::traffic::{
    egress,
    netlink::Netlink,
    tc::{self, Hook, Onward, Redirect},
};
use caisson_oci::egress::DNS_PORT;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
    AddressFamily, RouteNetlinkMessage,
};

use crate::network::{
    error::NetworkError,
    interface::Interface,
    namespace::Namespace,
    tap::{self, PREFIX},
};

/// The hardware addresses of a pair: the pod's end, the resolver's.
const MACS: [[u8; 6]; 2] = [[2, 0xca, 0x15, 0, 0, 1], [2, 0xca, 0x15, 0, 0, 2]];
/// The index of `lo` in every namespace (net/core/dev.h, LOOPBACK_IFINDEX).
const LO: u32 = 1;

/// The namespace and the pairs that lead to it.
pub struct Link {
    namespace: Namespace,
    servers: Vec<IpAddr>,
    ends: Vec<End>,
}

/// The resolver's end of a pair.
struct End {
    name: String,
    mtu: u32,
    /// The guest's card.
    addresses: Vec<IpAddr>,
    mac: [u8; 6],
}

impl Link {
    /// Makes the namespace for these servers of DNS.
    pub async fn new(servers: Vec<IpAddr>) -> Result<Self, NetworkError> {
        Ok(Self {
            namespace: Namespace::empty().await?,
            servers,
            ends: Vec::new(),
        })
    }

    pub fn servers(&self) -> &[IpAddr] {
        &self.servers
    }

    /// Makes the pair for a card of the pod. Runs in the pod's namespace.
    pub fn connect(
        &mut self,
        netlink: &mut Netlink,
        interface: &Interface,
        tap: u32,
    ) -> io::Result<egress::Resolver> {
        let [near, far] = ["r", "g"].map(|end| format!("{PREFIX}{end}{tap}"));
        let [near_mac, far_mac] = MACS;
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(far.clone()),
            LinkAttribute::Address(far_mac.to_vec()),
            LinkAttribute::NetNsFd(self.namespace.descriptor().as_raw_fd()),
        ];
        let mut pair = LinkMessage::default();
        pair.attributes = vec![
            LinkAttribute::IfName(near.clone()),
            LinkAttribute::Address(near_mac.to_vec()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        netlink.change(
            RouteNetlinkMessage::NewLink(pair),
            NLM_F_CREATE | NLM_F_EXCL,
        )?;
        let index = index_of(&near)?;
        tap::set_up(netlink, index, interface.mtu)?;
        tc::hook(netlink, index, Hook::Ingress)?;
        let answers = Redirect {
            from: index,
            hook: Hook::Ingress,
            protocol: tc::ETH_P_ALL,
            matches: &[],
            to: Onward::Out(tap),
        };
        tc::redirect(netlink, &answers)?;
        self.ends.push(End {
            name: far,
            mtu: interface.mtu,
            addresses: interface.addresses(),
            mac: interface.mac,
        });
        Ok(egress::Resolver {
            interface: index,
            mac: far_mac,
        })
    }

    /// Makes the namespace that of the servers, and returns the sockets of each.
    pub async fn listen(&mut self) -> Result<Vec<(UdpSocket, TcpListener)>, NetworkError> {
        let (servers, ends) = (self.servers.clone(), std::mem::take(&mut self.ends));
        let listen = move || -> io::Result<_> {
            configure(&servers, &ends)?;
            let servers = servers.iter();
            servers
                .map(|server| sockets(*server))
                .collect::<Result<_, _>>()
        };
        let failed = |source| NetworkError::Resolver { source };
        self.namespace.run(move || listen().map_err(failed)).await
    }
}

/// Gives the namespace the servers' addresses and the ways to the guest's. Runs in it.
fn configure(servers: &[IpAddr], ends: &[End]) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    let mut up = LinkMessage::default();
    up.header.index = LO;
    up.header.flags = LinkFlags::Up;
    up.header.change_mask = LinkFlags::Up;
    netlink.change(RouteNetlinkMessage::SetLink(up), 0)?;
    let mut add = |message| netlink.change(message, NLM_F_CREATE | NLM_F_EXCL);
    for server in servers {
        add(own_address(*server))?;
    }
    for end in ends {
        let index = index_of(&end.name)?;
        tap::set_up(&mut netlink, index, end.mtu)?;
        let mut add = |message| netlink.change(message, NLM_F_CREATE | NLM_F_EXCL);
        for address in &end.addresses {
            add(neighbour(*address, end.mac, index))?;
            add(route(*address, index))?;
        }
    }
    Ok(())
}

fn sockets(server: IpAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let at = SocketAddr::new(server, DNS_PORT);
    let (udp, tcp) = (UdpSocket::bind(at)?, TcpListener::bind(at)?);
    udp.set_nonblocking(true)?;
    tcp.set_nonblocking(true)?;
    Ok((udp, tcp))
}

fn index_of(name: &str) -> io::Result<u32> {
    let name = CString::new(name)?;
    // SAFETY: a string that ends with a NUL and lives through the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

fn family(address: IpAddr) -> (AddressFamily, u8) {
    match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    }
}

fn own_address(address: IpAddr) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    (message.header.family, message.header.prefix_len) = family(address);
    message.header.index = LO;
    message.header.scope = AddressScope::Universe;
    if address.is_ipv6() {
        // It can be bound at once.
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
    ];
    RouteNetlinkMessage::NewAddress(message)
}

/// The guest's card is known, so that nobody has to look for it.
fn neighbour(address: IpAddr, mac: [u8; 6], index: u32) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    (message.header.family, _) = family(address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    let destination = match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    };
    message.attributes = vec![
        NeighbourAttribute::Destination(destination),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    RouteNetlinkMessage::NewNeighbour(message)
}

fn route(address: IpAddr, index: u32) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    (header.address_family, header.destination_prefix_length) = family(address);
    header.table = libc::RT_TABLE_MAIN;
    header.protocol = RouteProtocol::Boot;
    header.kind = RouteType::Unicast;
    let destination = match address {
        IpAddr::V4(address) => {
            header.scope = RouteScope::Link;
            RouteAddress::Inet(address)
        }
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    };
    message.attributes = vec![
        RouteAttribute::Destination(destination),
        RouteAttribute::Oif(index),
    ];
    RouteNetlinkMessage::NewRoute(message)
}
