//! The tap behind a network card, and the redirects that make it and an interface of the pod one wire.
//!
//! ```text
//!   bridge, host …  ──veth──  eth0 ──ingress: redirect──▶ tap ──QEMU── the guest's eth0
//!                                  ◀──ingress: redirect──
//! ```
//!
//! What arrives at either goes out at the other before the namespace's own IP stack sees it: so that stack never answers for the
//! addresses that the interface keeps.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage},
    tc::{
        TcAction, TcActionAttribute, TcActionGeneric, TcActionMirror, TcActionMirrorOption,
        TcActionOption, TcActionType, TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle,
        TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key, TcU32Selector,
        TcU32SelectorFlags,
    },
    RouteNetlinkMessage,
};

use super::netlink::Netlink;

/// The names of taps begin so; the kernel adds a number.
pub const PREFIX: &str = "caisson";
/// In both directions as many packets as an ordinary card.
const QUEUE: u32 = 1000;
/// The handle of every ingress qdisc (tc(8)).
const INGRESS: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0,
};
/// Every protocol (linux/if_ether.h).
const ETH_P_ALL: u16 = 3;

/// A new tap in the namespace of the calling thread: its queue for the VMM, and its index. It goes when its last descriptor does.
pub fn create() -> io::Result<(OwnedFd, u32)> {
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
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
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

/// Gives a tap its MTU and sets it up, with no address at all: the namespace's kernel must say nothing on it.
pub fn set_up(netlink: &mut Netlink, tap: u32, mtu: u32) -> io::Result<()> {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    let family = AfSpecUnspec::Inet6(vec![mode]);
    let silent = change_link(
        netlink,
        tap,
        LinkAttribute::AfSpecUnspec(vec![family]),
        false,
    );
    match silent {
        // No IPv6 in this kernel.
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
        done => done?,
    }
    change_link(netlink, tap, LinkAttribute::TxQueueLen(QUEUE), false)?;
    change_link(netlink, tap, LinkAttribute::Mtu(mtu), true)
}

fn change_link(
    netlink: &mut Netlink,
    index: u32,
    attribute: LinkAttribute,
    up: bool,
) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(attribute);
    if up {
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
    }
    netlink.change(RouteNetlinkMessage::SetLink(message), 0)
}

/// Sends what arrives at `from` out at `to`. Takes the place of what else is hooked in there, as that of a killed shim.
pub fn redirect(netlink: &mut Netlink, from: u32, to: u32) -> io::Result<()> {
    let add = |netlink: &mut Netlink| {
        let message = RouteNetlinkMessage::NewQueueDiscipline(qdisc(from));
        netlink.change(message, NLM_F_CREATE | NLM_F_EXCL)
    };
    match add(netlink) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
            undo_redirect(netlink, from)?;
            add(netlink)?;
        }
        added => added?,
    }
    let message = RouteNetlinkMessage::NewTrafficFilter(filter(from, to));
    netlink.change(message, NLM_F_CREATE | NLM_F_EXCL)
}

/// Takes away what [`redirect`] made. Nothing to take away, or no such interface, is a success.
pub fn undo_redirect(netlink: &mut Netlink, from: u32) -> io::Result<()> {
    let message = RouteNetlinkMessage::DelQueueDiscipline(qdisc(from));
    match netlink.change(message, 0) {
        Err(error) => match error.raw_os_error() {
            Some(libc::ENODEV | libc::ENOENT | libc::EINVAL) => Ok(()),
            _ => Err(error),
        },
        done => done,
    }
}

fn qdisc(index: u32) -> TcMessage {
    let mut message = TcMessage::with_index(index as i32);
    message.header.handle = INGRESS;
    message.header.parent = TcHandle::INGRESS;
    message
        .attributes
        .push(TcAttribute::Kind("ingress".to_owned()));
    message
}

/// One that matches everything (`matchall` is a module that not every kernel has).
fn filter(from: u32, to: u32) -> TcMessage {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    let mut generic = TcActionGeneric::default();
    generic.action = TcActionType::Stolen;
    let mut mirror = TcMirror::default();
    mirror.generic = generic;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(
            mirror,
        ))]),
    ];
    let mut message = TcMessage::with_index(from as i32);
    message.header.parent = INGRESS;
    // Priority 1 and the protocol (rtnetlink(7), tcm_info).
    message.header.info = (1 << 16) | u32::from(ETH_P_ALL.to_be());
    message.attributes = vec![
        TcAttribute::Kind(TcFilterU32::KIND.to_owned()),
        TcAttribute::Options(vec![
            TcOption::U32(TcFilterU32Option::Selector(selector)),
            TcOption::U32(TcFilterU32Option::Action(vec![action])),
        ]),
    ];
    message
}
