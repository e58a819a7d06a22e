//! Makes taps and tuns: interfaces of a namespace whose other end is a descriptor.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use caisson_node::traffic::netlink::Netlink;
use netlink_packet_route::{
    link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage},
    RouteNetlinkMessage,
};

/// The prefix of their names; the kernel adds a number.
pub const PREFIX: &str = "caisson";
/// The length of the queue: as long as that of an ordinary card.
const QUEUE: u32 = 1000;

/// What the descriptor carries.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Ethernet frames behind a virtio-net header, for a VMM.
    Tap,
    /// IP packets.
    Tun,
}

/// The group of this shim's links, by which all of them go at once.
fn group() -> u32 {
    std::process::id()
}

/// Makes an interface in the namespace of the calling thread. Returns its descriptor and index. It
/// goes with [`remove_all`], or when its last descriptor is closed.
pub fn create(kind: Kind) -> io::Result<(OwnedFd, u32)> {
    let tun = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: `ifreq` is plain data for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let template = format!("{PREFIX}%d");
    for (to, from) in request.ifr_name.iter_mut().zip(template.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = match kind {
        Kind::Tap => libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR,
        Kind::Tun => libc::IFF_TUN | libc::IFF_NO_PI,
    };
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes an ifreq, which lives through the call.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has left the interface's name, with its NUL, in the field.
    let index = unsafe { libc::if_nametoindex(request.ifr_name.as_ptr()) };
    match index {
        0 => Err(io::Error::last_os_error()),
        index => Ok((tun.into(), index)),
    }
}

/// Sets the MTU of an interface and sets it up, without any address: the namespace's kernel must
/// not send anything on it.
pub fn set_up(netlink: &mut Netlink, index: u32, mtu: u32) -> io::Result<()> {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    let family = AfSpecUnspec::Inet6(vec![mode]);
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::AfSpecUnspec(vec![family])];
    match netlink.change(RouteNetlinkMessage::SetLink(message.clone()), 0) {
        // This kernel has no IPv6.
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
        done => done?,
    }
    message.attributes = vec![
        LinkAttribute::Mtu(mtu),
        LinkAttribute::TxQueueLen(QUEUE),
        LinkAttribute::Group(group()),
    ];
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    netlink.change(RouteNetlinkMessage::SetLink(message), 0)
}

/// Removes all interfaces of the namespace that this shim has made and set up. Their descriptors
/// are dead then. The kernel waits for its readers some 20 ms, however many there are; closing the
/// descriptors would take that for each.
pub fn remove_all(netlink: &mut Netlink) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::Group(group())];
    match netlink.change(RouteNetlinkMessage::DelLink(message), 0) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        done => done,
    }
}
