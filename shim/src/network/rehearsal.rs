//! A network card like a pod's, for the VM that rehearses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use caisson_node::traffic::netlink::Netlink;
use caisson_protocol::agent as proto;
use caisson_vmm::Device;
use proto::attach_request::Device as GuestDevice;

use super::{
    error::NetworkError,
    interface::bytes,
    namespace::Namespace,
    tap::{self, Kind},
};
use crate::plug::Plug;

const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
const MTU: u16 = 1500;
/// An address, the length of its prefix, and the router (RFC 5737 and RFC 3849, for documentation).
const ADDRESSES: [(IpAddr, u32, IpAddr); 2] = [
    (
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)),
        24,
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    ),
    (
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2)),
        64,
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    ),
];

/// Makes a card with the addresses and routes that CNI gives a pod. It leads to a network namespace
/// of its own, in which nothing else is and which goes with the card.
pub async fn card() -> Result<Plug, NetworkError> {
    let namespace = Namespace::empty().await?;
    let make = || {
        let failed = |step| {
            move |source| NetworkError::Card {
                interface: "of the rehearsal".to_owned(),
                step,
                source,
            }
        };
        let (queue, index) = tap::create(Kind::Tap).map_err(failed("make a tap"))?;
        let mut netlink = Netlink::open().map_err(|source| NetworkError::Read { source })?;
        tap::set_up(&mut netlink, index, MTU.into()).map_err(failed("set up the tap"))?;
        Ok(queue)
    };
    let tap = namespace.run(make).await?;
    let addresses = ADDRESSES.map(|(address, prefix_length, _)| proto::Address {
        address: bytes(address),
        prefix_length,
        ..Default::default()
    });
    let routes = ADDRESSES.map(|(_, _, router)| proto::Route {
        destination: match router {
            IpAddr::V4(_) => bytes(Ipv4Addr::UNSPECIFIED.into()),
            IpAddr::V6(_) => bytes(Ipv6Addr::UNSPECIFIED.into()),
        },
        gateway: bytes(router),
        table: libc::RT_TABLE_MAIN.into(),
        type_: libc::RTN_UNICAST.into(),
        scope: libc::RT_SCOPE_UNIVERSE.into(),
        protocol: libc::RTPROT_BOOT.into(),
        ..Default::default()
    });
    Ok(Plug {
        vm: Device::Network {
            tap,
            vhost: None,
            mac: MAC,
            mtu: MTU,
        },
        guest: GuestDevice::Network(proto::Network {
            mac: MAC.map(|byte| format!("{byte:02x}")).join(":"),
            name: "eth0".to_owned(),
            mtu: MTU.into(),
            addresses: addresses.into(),
            routes: routes.into(),
            ..Default::default()
        }),
        hold: None,
    })
}
