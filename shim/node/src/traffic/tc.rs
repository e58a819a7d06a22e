//! Redirects packets by traffic control (tc(8)): packets at a hook of one interface go on at
//! another, either all of them or those that a program lets pass.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    tc::{
        TcAction, TcActionAttribute, TcActionGeneric, TcActionMirror, TcActionMirrorOption,
        TcActionOption, TcActionType, TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption,
        TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType,
        TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
    },
    RouteNetlinkMessage,
};

use super::netlink::Netlink;

/// The handle of the one qdisc that has the hooks.
const HANDLE: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0,
};

/// Protocols (linux/if_ether.h).
pub const ETH_P_ALL: u16 = 0x0003;
pub const ETH_P_IP: u16 = 0x0800;
pub const ETH_P_IPV6: u16 = 0x86dd;

/// Attributes of the filter `bpf` (linux/pkt_cls.h).
const TCA_BPF_ACT: u16 = 1;
const TCA_BPF_OPS_LEN: u16 = 4;
const TCA_BPF_OPS: u16 = 5;
const TCA_BPF_FD: u16 = 6;
/// The verdict that drops a packet (linux/pkt_cls.h).
const TC_ACT_SHOT: u32 = 2;

/// The packets of an interface that a redirect applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Packets that arrive, before the IP stack.
    Ingress,
    /// Packets that leave.
    Egress,
}

/// The priorities of filters (rtnetlink(7), tcm_info): the lower number decides first. Each kind
/// and protocol needs one of its own.
const FIRST: u32 = 1;
const SECOND: u32 = 2;
const THIRD: u32 = 3;

/// The next hop of a redirected packet.
#[derive(Debug, Clone, Copy)]
pub enum Onward {
    /// Leaves by this interface.
    Out(u32),
    /// Arrives at this interface.
    In(u32),
}

/// A redirect.
pub struct Redirect<'a> {
    pub from: u32,
    pub hook: Hook,
    pub protocol: u16,
    /// The conditions for a packet, all of which must hold: offset from its network header, mask
    /// and value, as big-endian words. An empty list matches every packet.
    pub matches: &'a [(i32, u32, u32)],
    pub to: Onward,
}

/// Gives an interface its hooks, empty. Replaces what is hooked in there, for example by a killed
/// shim.
pub fn hook(netlink: &mut Netlink, index: u32, hook: Hook) -> io::Result<()> {
    let add = |netlink: &mut Netlink| {
        let message = RouteNetlinkMessage::NewQueueDiscipline(qdisc(index, hook));
        netlink.change(message, NLM_F_CREATE | NLM_F_EXCL)
    };
    match add(netlink) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
            unhook(netlink, index, hook)?;
            add(netlink)
        }
        added => added,
    }
}

/// Removes what [`hook`] made, with all redirects. Succeeds if there is nothing to remove or no
/// such interface.
pub fn unhook(netlink: &mut Netlink, index: u32, hook: Hook) -> io::Result<()> {
    let message = RouteNetlinkMessage::DelQueueDiscipline(qdisc(index, hook));
    match netlink.change(message, 0) {
        Err(error) => match error.raw_os_error() {
            Some(libc::ENODEV | libc::ENOENT | libc::EINVAL) => Ok(()),
            _ => Err(error),
        },
        done => done,
    }
}

/// Adds a redirect to an interface that was hooked.
pub fn redirect(netlink: &mut Netlink, redirect: &Redirect<'_>) -> io::Result<()> {
    add(netlink, filter(redirect))
}

/// Redirects packets that arrive at one interface, which was hooked, so that they leave by another
/// if a program returns all ones for them. The rest is dropped.
pub fn redirect_if(
    netlink: &mut Netlink,
    from: u32,
    program: &[libc::sock_filter],
    to: u32,
) -> io::Result<()> {
    let drop = libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: TC_ACT_SHOT,
    };
    let actions = [onward(Onward::Out(to))];
    let mut bytes = vec![0; actions.as_slice().buffer_len()];
    actions.as_slice().emit(&mut bytes);
    let action = DefaultNla::new(TCA_BPF_ACT | NLA_F_NESTED, bytes);
    // The filter that drops comes first, so that at no moment a packet passes both.
    for (priority, program, what) in [
        (
            THIRD,
            &[drop][..],
            TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
        ),
        (SECOND, program, TcFilterBpfOption::Other(action)),
    ] {
        let length = (program.len() as u16).to_ne_bytes().to_vec();
        let ops = [
            TcFilterBpfOption::Other(DefaultNla::new(TCA_BPF_OPS_LEN, length)),
            TcFilterBpfOption::Other(DefaultNla::new(TCA_BPF_OPS, bytes_of(program))),
            what,
        ];
        add(netlink, by_program(from, priority, ops.into()))?;
    }
    Ok(())
}

/// Runs a loaded eBPF program on packets that arrive at an interface, which was hooked, before its
/// redirects. The program's result is a verdict.
pub fn run_first(netlink: &mut Netlink, on: u32, program: BorrowedFd<'_>) -> io::Result<()> {
    let program = program.as_raw_fd().to_ne_bytes().to_vec();
    let options = vec![
        TcFilterBpfOption::Other(DefaultNla::new(TCA_BPF_FD, program)),
        TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
    ];
    add(netlink, by_program(on, FIRST, options))
}

fn add(netlink: &mut Netlink, filter: TcMessage) -> io::Result<()> {
    let message = RouteNetlinkMessage::NewTrafficFilter(filter);
    netlink.change(message, NLM_F_CREATE | NLM_F_EXCL)
}

fn bytes_of(program: &[libc::sock_filter]) -> Vec<u8> {
    let ops = program.iter().flat_map(|op| {
        let [a, b] = op.code.to_ne_bytes();
        let [c, d, e, f] = op.k.to_ne_bytes();
        [a, b, op.jt, op.jf, c, d, e, f]
    });
    ops.collect()
}

fn by_program(index: u32, priority: u32, options: Vec<TcFilterBpfOption>) -> TcMessage {
    let mut message = TcMessage::with_index(index as i32);
    message.header.parent = parent(Hook::Ingress);
    message.header.info = (priority << 16) | u32::from(ETH_P_ALL.to_be());
    message.attributes = vec![
        TcAttribute::Kind(TcFilterBpf::KIND.to_owned()),
        TcAttribute::Options(options.into_iter().map(TcOption::Bpf).collect()),
    ];
    message
}

fn qdisc(index: u32, hook: Hook) -> TcMessage {
    // Ingress alone costs nothing on the way out.
    let kind = match hook {
        Hook::Ingress => "ingress",
        Hook::Egress => "clsact",
    };
    let mut message = TcMessage::with_index(index as i32);
    message.header.handle = HANDLE;
    message.header.parent = TcHandle::INGRESS;
    message.attributes.push(TcAttribute::Kind(kind.to_owned()));
    message
}

/// Makes the filter of a redirect with `u32`, which every kernel has (unlike `matchall` and
/// `flower`).
fn filter(redirect: &Redirect<'_>) -> TcMessage {
    let key = |&(offset, mask, value): &(i32, u32, u32)| {
        let mut key = TcU32Key::default();
        key.off = offset;
        key.mask = mask.to_be();
        key.val = value.to_be();
        key
    };
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.keys = redirect.matches.iter().map(key).collect();
    if selector.keys.is_empty() {
        selector.keys.push(TcU32Key::default());
    }
    selector.nkeys = selector.keys.len() as u8;
    let mut message = TcMessage::with_index(redirect.from as i32);
    message.header.parent = parent(redirect.hook);
    let priority = match redirect.protocol {
        ETH_P_IPV6 => THIRD,
        _ => SECOND,
    };
    message.header.info = (priority << 16) | u32::from(redirect.protocol.to_be());
    message.attributes = vec![
        TcAttribute::Kind(TcFilterU32::KIND.to_owned()),
        TcAttribute::Options(vec![
            TcOption::U32(TcFilterU32Option::Selector(selector)),
            TcOption::U32(TcFilterU32Option::Action(vec![onward(redirect.to)])),
        ]),
    ];
    message
}

fn parent(hook: Hook) -> TcHandle {
    let minor = match hook {
        Hook::Ingress => TcHandle::MIN_INGRESS,
        Hook::Egress => TcHandle::MIN_EGRESS,
    };
    TcHandle {
        major: HANDLE.major,
        minor,
    }
}

fn onward(to: Onward) -> TcAction {
    let mut generic = TcActionGeneric::default();
    generic.action = TcActionType::Stolen;
    let mut mirror = TcMirror::default();
    mirror.generic = generic;
    (mirror.eaction, mirror.ifindex) = match to {
        Onward::Out(index) => (TcMirrorActionType::EgressRedir, index),
        Onward::In(index) => (TcMirrorActionType::IngressRedir, index),
    };
    let options = TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror));
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![options]),
    ];
    action
}
