//! The two eBPF programs of an egress filter.
//!
//! [`outward`] runs on each frame that the guest sends and drops what the guest may not send.
//! [`inward`] runs on each frame for the guest and remembers who has opened what, so that the guest
//! may answer. Neither lets anything pass by itself: what passes goes on to the next filter.
//!
//! What the guest sends passes if one of these holds:
//!
//! - It is ARP, or a part of Neighbour Discovery or a report of groups that no router forwards.
//! - It belongs to a connection that is there. A TCP packet that opens one never does.
//! - An entry of the list names where it goes, by address or by a name that was resolved. An
//!   entry without a port is needed for fragments, for ICMP and for protocols without ports.
//!
//! A query of DNS is led to the shim's resolver. The rest is dropped and counted.

use std::os::fd::{AsFd, BorrowedFd};

use crate::traffic::ebpf::{
    Assembler, Helper, Insn,
    Register::{R0, R1, R10, R2, R3, R4, R5, R6, R7, R8, R9},
    Size,
};

use super::maps::Maps;

/// Where queries of DNS go.
#[derive(Debug, Clone, Copy)]
pub struct Resolver {
    /// The interface that they leave by.
    pub interface: u32,
    /// The hardware address at its other end.
    pub mac: [u8; 6],
}

/// Verdicts (linux/pkt_cls.h): the next filter decides, drop, do what `bpf_redirect` was told.
const NEXT: i32 = -1;
const DROP: i32 = 2;

/// Where things lie on the stack, before its end. A flow as the key of [`Maps::flows`]:
const FLOW: i16 = -24;
const FLOW_ADDRESS: i16 = FLOW;
const REMOTE_PORT: i16 = FLOW + 16;
const LOCAL_PORT: i16 = FLOW + 18;
const PROTOCOL: i16 = FLOW + 20;
/// A destination as the key of [`Maps::nets`], whose parts are those of the other maps:
const NET: i16 = -48;
const PORT: i16 = NET + 4;
const ADDRESS: i16 = NET + 8;
const SOURCE: i16 = -64;
const HEADER: i16 = -104;
const ETHERNET: i16 = -120;
const TRANSPORT: i16 = -136;
const VALUE: i16 = -144;

/// Bits of a key of [`Maps::nets`] that belong to port and address.
pub const NET_BITS: u32 = 32 + 128;

/// Offset of `vlan_present` in `struct __sk_buff` (linux/bpf.h).
const VLAN_PRESENT: i16 = 20;

const ETHERNET_LENGTH: i32 = 14;
const ARP: u16 = 0x0806;
/// Reverse ARP, by which QEMU announces a machine that comes from a template.
const RARP: u16 = 0x8035;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// Protocols.
const ICMP: i32 = 1;
const TCP: i32 = 6;
const UDP: i32 = 17;
const ICMPV6: i32 = 58;
/// Headers of IPv6 in front of a protocol's (RFC 8200).
const HOP_BY_HOP: i32 = 0;
const ROUTING: i32 = 43;
const FRAGMENT: i32 = 44;
const DESTINATION_OPTIONS: i32 = 60;
/// Types of ICMP and ICMPv6.
const ECHO: i32 = 8;
const ECHO_REPLY: i32 = 0;
const ECHO6: i32 = 128;
const ECHO_REPLY6: i32 = 129;
const ROUTER_SOLICITATION: i32 = 133;
const NEIGHBOUR_SOLICITATION: i32 = 135;
const NEIGHBOUR_ADVERTISEMENT: i32 = 136;
/// TCP's flags: SYN and ACK.
const SYN: i32 = 0x02;
const SYN_ACK: i32 = 0x12;

/// How long a flow is remembered after the last packet for the guest, in seconds: as long as
/// conntrack does (kernel, networking/nf_conntrack-sysctl.rst: the timeouts of established TCP, of
/// UDP streams and of ICMP).
const TCP_SECONDS: u64 = 5 * 24 * 60 * 60;
const UDP_SECONDS: u64 = 120;
const ICMP_SECONDS: u64 = 30;

/// The number that a load of two bytes of a frame gives for a value.
fn wire(value: u16) -> i32 {
    u16::from_ne_bytes(value.to_be_bytes()).into()
}

/// Makes the program for what the guest sends. With `own_addresses` it drops frames from an address
/// that is not in [`Maps::own`].
pub fn outward(maps: &Maps, own_addresses: bool, resolver: Option<Resolver>) -> Vec<Insn> {
    let mut a = Assembler::default();
    begin(&mut a, "drop", "drop");
    a.load(Size::Half, R7, R10, ETHERNET + 12);
    a.jump_if_equal(R7, wire(ARP), "next");
    a.jump_if_equal(R7, wire(IPV4), "ipv4");
    // It is not the guest's, so it does not count.
    a.jump_if_equal(R7, wire(RARP), "not counted");
    a.jump_if_not_equal(R7, wire(IPV6), "drop");

    ipv6_header(&mut a, "drop");
    copy_address(&mut a, HEADER + 8, SOURCE);
    copy_address(&mut a, HEADER + 24, ADDRESS);
    neighbours(&mut a, maps);
    a.jump("addresses");

    a.label("ipv4");
    ipv4_header(&mut a, "drop");
    map_address(&mut a, HEADER + 12, SOURCE);
    map_address(&mut a, HEADER + 16, ADDRESS);

    a.label("addresses");
    if own_addresses {
        look_up(&mut a, maps.own.as_fd(), SOURCE);
        a.jump_if_equal(R0, 0, "drop");
    }
    copy_address(&mut a, ADDRESS, FLOW_ADDRESS);
    a.store(Size::Word, R10, PROTOCOL, R9);
    a.store_value(Size::Word, R10, REMOTE_PORT, 0);
    a.store_value(Size::Word, R10, PORT, 0);
    fragments(&mut a);
    a.label("whole");
    a.jump_if_equal(R9, TCP, "tcp");
    a.jump_if_equal(R9, UDP, "udp");
    a.jump_if_equal(R9, ICMP, "icmp");
    a.jump_if_equal(R9, ICMPV6, "icmpv6");
    a.jump("any port");

    // The answer to an echo that came in; other messages of ICMP open something.
    a.label("icmp");
    transport(&mut a, 8, "drop");
    a.jump_if_equal(R1, ECHO_REPLY, "echo reply");
    a.jump("any port");
    a.label("icmpv6");
    transport(&mut a, 8, "drop");
    a.jump_if_not_equal(R1, ECHO_REPLY6, "any port");
    a.label("echo reply");
    a.load(Size::Half, R1, R10, TRANSPORT + 4);
    a.store(Size::Half, R10, REMOTE_PORT, R1);
    jump_if_known(&mut a, maps, "known echo", "any port");
    a.label("known echo");
    a.end(NEXT);

    a.label("udp");
    transport(&mut a, 8, "drop");
    a.jump("ports");
    a.label("tcp");
    transport(&mut a, 14, "drop");
    a.label("ports");
    a.load(Size::Half, R1, R10, TRANSPORT);
    a.store(Size::Half, R10, LOCAL_PORT, R1);
    a.load(Size::Half, R1, R10, TRANSPORT + 2);
    a.store(Size::Half, R10, REMOTE_PORT, R1);
    a.store(Size::Half, R10, PORT, R1);
    a.jump_if_not_equal(R9, TCP, "may be known");
    a.load(Size::Byte, R1, R10, TRANSPORT + 13);
    a.and(R1, SYN_ACK);
    a.jump_if_equal(R1, SYN, "new");
    a.label("may be known");
    jump_if_known(&mut a, maps, "known", "new");
    a.label("known");
    a.end(NEXT);

    a.label("new");
    a.load(Size::Half, R1, R10, PORT);
    a.jump_if_not_equal(R1, wire(caisson_oci::egress::DNS_PORT), "no query");
    match resolver {
        Some(resolver) => resolve(&mut a, maps, resolver),
        None => a.jump("drop"),
    }
    a.label("no query");
    allowed(&mut a, maps, "one port", "with port", "open");
    a.label("with port");
    a.store_value(Size::Half, R10, PORT, 0);
    allowed(&mut a, maps, "every port", "drop", "open");
    // It stays open when the name's address is forgotten.
    a.label("open");
    remember(&mut a, maps, "remembered");
    a.label("remembered");
    a.end(NEXT);

    a.label("any port");
    a.store_value(Size::Word, R10, PORT, 0);
    allowed(&mut a, maps, "no port", "drop", "next");

    a.label("drop");
    a.store_value(Size::Word, R10, VALUE, 0);
    look_up(&mut a, maps.denied.as_fd(), VALUE);
    a.jump_if_equal(R0, 0, "not counted");
    a.set(R1, 1);
    a.add_to_memory(R0, 0, R1);
    a.label("not counted");
    a.end(DROP);

    a.label("next");
    a.end(NEXT);
    a.finish()
}

/// Makes the program for what comes to the guest.
pub fn inward(maps: &Maps) -> Vec<Insn> {
    let mut a = Assembler::default();
    begin(&mut a, "next", "next");
    a.load(Size::Half, R7, R10, ETHERNET + 12);
    a.jump_if_equal(R7, wire(IPV4), "ipv4");
    a.jump_if_not_equal(R7, wire(IPV6), "next");
    ipv6_header(&mut a, "next");
    copy_address(&mut a, HEADER + 8, FLOW_ADDRESS);
    a.jump("addresses");

    a.label("ipv4");
    ipv4_header(&mut a, "next");
    map_address(&mut a, HEADER + 12, FLOW_ADDRESS);
    // The first fragment has the ports.
    a.load(Size::Half, R1, R10, HEADER + 6);
    a.and(R1, wire(0x1fff));
    a.jump_if_not_equal(R1, 0, "next");

    a.label("addresses");
    a.store(Size::Word, R10, PROTOCOL, R9);
    a.store_value(Size::Word, R10, REMOTE_PORT, 0);
    a.jump_if_equal(R9, TCP, "ports");
    a.jump_if_equal(R9, UDP, "ports");
    a.jump_if_equal(R9, ICMP, "icmp");
    a.jump_if_not_equal(R9, ICMPV6, "next");
    transport(&mut a, 8, "next");
    a.jump_if_not_equal(R1, ECHO6, "next");
    a.jump("echo");
    a.label("icmp");
    transport(&mut a, 8, "next");
    a.jump_if_not_equal(R1, ECHO, "next");
    a.label("echo");
    a.load(Size::Half, R1, R10, TRANSPORT + 4);
    a.store(Size::Half, R10, REMOTE_PORT, R1);
    a.jump("remember");

    a.label("ports");
    transport(&mut a, 8, "next");
    a.load(Size::Half, R1, R10, TRANSPORT);
    a.store(Size::Half, R10, REMOTE_PORT, R1);
    a.load(Size::Half, R1, R10, TRANSPORT + 2);
    a.store(Size::Half, R10, LOCAL_PORT, R1);

    a.label("remember");
    remember(&mut a, maps, "next");
    a.label("next");
    a.end(NEXT);
    a.finish()
}

/// Reads the Ethernet header. `R6` has the frame from here on.
fn begin(a: &mut Assembler, tagged: &str, short: &str) {
    a.copy(R6, R1);
    a.load(Size::Word, R1, R6, VLAN_PRESENT);
    a.jump_if_not_equal(R1, 0, tagged);
    a.set(R2, 0);
    read(a, ETHERNET, ETHERNET_LENGTH, short);
}

/// Reads so many bytes of the frame from the offset in `R2`.
fn read(a: &mut Assembler, to: i16, length: i32, short: &str) {
    a.copy(R1, R6);
    a.stack(R3, to);
    a.set(R4, length);
    a.call(Helper::LoadBytes);
    a.jump_if_not_equal(R0, 0, short);
}

/// Reads the header of IPv4. `R8` gets the offset of what is behind it, `R9` its protocol.
fn ipv4_header(a: &mut Assembler, bad: &str) {
    a.set(R2, ETHERNET_LENGTH);
    read(a, HEADER, 20, bad);
    a.load(Size::Byte, R8, R10, HEADER);
    a.copy(R1, R8);
    a.shift_right(R1, 4);
    a.jump_if_not_equal(R1, 4, bad);
    a.and(R8, 0x0f);
    // Fewer than five words are no header.
    a.set(R1, 5);
    a.jump_if_greater(R1, R8, bad);
    a.shift_left(R8, 2);
    a.add(R8, ETHERNET_LENGTH);
    a.load(Size::Byte, R9, R10, HEADER + 9);
}

/// As [`ipv4_header`]. An extension header is a protocol without ports.
fn ipv6_header(a: &mut Assembler, bad: &str) {
    a.set(R2, ETHERNET_LENGTH);
    read(a, HEADER, 40, bad);
    a.load(Size::Byte, R1, R10, HEADER);
    a.shift_right(R1, 4);
    a.jump_if_not_equal(R1, 6, bad);
    a.set(R8, ETHERNET_LENGTH + 40);
    a.load(Size::Byte, R9, R10, HEADER + 6);
}

/// Reads what is behind the header of IP. `R1` gets its first byte.
fn transport(a: &mut Assembler, length: i32, bad: &str) {
    a.copy(R2, R8);
    read(a, TRANSPORT, length, bad);
    a.load(Size::Byte, R1, R10, TRANSPORT);
}

fn copy_address(a: &mut Assembler, from: i16, to: i16) {
    for part in [0, 8] {
        a.load(Size::Double, R1, R10, from + part);
        a.store(Size::Double, R10, to + part, R1);
    }
}

/// Copies an address of IPv4 in the form of IPv6 (RFC 4291, 2.5.5.2).
fn map_address(a: &mut Assembler, from: i16, to: i16) {
    a.store_value(Size::Double, R10, to, 0);
    a.store_value(Size::Half, R10, to + 8, 0);
    a.store_value(Size::Half, R10, to + 10, -1);
    a.load(Size::Word, R1, R10, from);
    a.store(Size::Word, R10, to + 12, R1);
}

/// Lets pass what IPv6 needs on the link. Only destinations on the link count: a router would
/// forward the rest, whatever it is.
fn neighbours(a: &mut Assembler, maps: &Maps) {
    // ff02::/16
    a.load(Size::Half, R1, R10, ADDRESS);
    a.jump_if_not_equal(R9, HOP_BY_HOP, "no report");
    a.jump_if_equal(R1, wire(0xff02), "next");
    a.jump("no neighbour");
    a.label("no report");
    a.jump_if_not_equal(R9, ICMPV6, "no neighbour");
    transport(a, 8, "drop");
    a.jump_if_equal(R1, NEIGHBOUR_SOLICITATION, "neighbour");
    a.jump_if_equal(R1, NEIGHBOUR_ADVERTISEMENT, "neighbour");
    a.jump_if_not_equal(R1, ROUTER_SOLICITATION, "no neighbour");
    a.label("neighbour");
    a.store_value(Size::Word, R10, PORT, 0);
    a.store_value(Size::Word, R10, NET, NET_BITS as i32);
    look_up(a, maps.links.as_fd(), NET);
    a.jump_if_not_equal(R0, 0, "next");
    a.label("no neighbour");
}

/// Goes to `whole` unless the packet is a fragment or has a header in front of the protocol's. Such
/// packets have no ports that could be relied on, so they need an entry without one. But a query of
/// DNS does not hide in them.
fn fragments(a: &mut Assembler) {
    a.jump_if_equal(R7, wire(IPV6), "ipv6 fragments");
    a.load(Size::Half, R1, R10, HEADER + 6);
    a.and(R1, wire(0x3fff));
    a.jump_if_equal(R1, 0, "whole");
    a.and(R1, wire(0x1fff));
    a.jump_if_not_equal(R1, 0, "any port");
    a.jump("first fragment");

    a.label("ipv6 fragments");
    for header in [HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS] {
        a.jump_if_equal(R9, header, "drop");
    }
    a.jump_if_not_equal(R9, FRAGMENT, "whole");
    // R1 gets the protocol, R8 the place of what is behind the fragment's header.
    transport(a, 8, "drop");
    a.copy(R9, R1);
    a.add(R8, 8);
    a.load(Size::Half, R1, R10, TRANSPORT + 2);
    a.and(R1, wire(0xfff8));
    a.jump_if_not_equal(R1, 0, "any port");
    for header in [HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS, FRAGMENT] {
        a.jump_if_equal(R9, header, "drop");
    }

    a.label("first fragment");
    a.jump_if_equal(R9, UDP, "ports of a fragment");
    a.jump_if_not_equal(R9, TCP, "any port");
    a.label("ports of a fragment");
    transport(a, 4, "drop");
    a.load(Size::Half, R1, R10, TRANSPORT + 2);
    a.jump_if_equal(R1, wire(caisson_oci::egress::DNS_PORT), "drop");
    a.jump("any port");
}

/// Looks up the key on the stack. `R0` gets the address of the value, or 0.
fn look_up(a: &mut Assembler, map: BorrowedFd<'_>, key: i16) {
    a.map(R1, map);
    a.stack(R2, key);
    a.call(Helper::MapLookup);
}

/// Goes to `known` if the flow on the stack is remembered, or else to `new`.
fn jump_if_known(a: &mut Assembler, maps: &Maps, known: &str, new: &str) {
    look_up(a, maps.flows.as_fd(), FLOW);
    a.jump_if_equal(R0, 0, new);
    jump_if_later(a, known);
    a.jump(new);
}

/// Jumps if the time at the address in `R0` is yet to come.
fn jump_if_later(a: &mut Assembler, to: &str) {
    a.load(Size::Double, R8, R0, 0);
    a.call(Helper::TimeNs);
    a.jump_if_greater(R8, R0, to);
}

/// Remembers the flow on the stack until some time from now, then goes to `done`.
fn remember(a: &mut Assembler, maps: &Maps, done: &str) {
    a.call(Helper::TimeNs);
    for (protocol, seconds, next) in [(TCP, TCP_SECONDS, "not tcp"), (UDP, UDP_SECONDS, "not udp")]
    {
        a.jump_if_not_equal(R9, protocol, next);
        add_seconds(a, seconds);
        a.jump("until");
        a.label(next);
    }
    add_seconds(a, ICMP_SECONDS);
    a.label("until");
    a.store(Size::Double, R10, VALUE, R0);
    look_up(a, maps.flows.as_fd(), FLOW);
    a.jump_if_equal(R0, 0, "not yet");
    // Cheaper than to replace it.
    a.load(Size::Double, R1, R10, VALUE);
    a.store(Size::Double, R0, 0, R1);
    a.jump(done);
    a.label("not yet");
    a.map(R1, maps.flows.as_fd());
    a.stack(R2, FLOW);
    a.stack(R3, VALUE);
    a.set(R4, 0);
    a.call(Helper::MapUpdate);
}

/// Adds a time to `R0`. Some are longer than an immediate holds in nanoseconds.
fn add_seconds(a: &mut Assembler, seconds: u64) {
    // 2^30 nanoseconds are 7 % more than a second.
    a.set(R1, seconds as i32);
    a.shift_left(R1, 30);
    a.add_register(R0, R1);
}

/// Goes to `yes` if an entry opens the destination on the stack, or else to `no`. `step` makes the
/// labels unique.
fn allowed(a: &mut Assembler, maps: &Maps, step: &str, no: &str, yes: &str) {
    let label = |name: &str| format!("{name}, {step}");
    // What is closed to lists needs an entry that names it.
    look_up(a, maps.closed.as_fd(), ADDRESS);
    a.copy(R8, R0);
    a.store_value(Size::Word, R10, NET, NET_BITS as i32);
    look_up(a, maps.nets.as_fd(), NET);
    a.jump_if_equal(R0, 0, &label("not in a net"));
    a.load(Size::Word, R1, R0, 0);
    a.jump_if_not_equal(R1, 0, yes);
    a.jump_if_equal(R8, 0, yes);
    a.label(&label("not in a net"));
    a.jump_if_not_equal(R8, 0, no);
    look_up(a, maps.pins.as_fd(), PORT);
    a.jump_if_equal(R0, 0, no);
    jump_if_later(a, yes);
    a.jump(no);
}

/// Leads a query to the resolver if it is for one of the pod's servers.
fn resolve(a: &mut Assembler, maps: &Maps, resolver: Resolver) {
    look_up(a, maps.servers.as_fd(), ADDRESS);
    a.jump_if_equal(R0, 0, "drop");
    // The frame is for a router otherwise.
    let [b0, b1, b2, b3, b4, b5] = resolver.mac;
    a.store_value(Size::Word, R10, VALUE, i32::from_ne_bytes([b0, b1, b2, b3]));
    a.store_value(
        Size::Word,
        R10,
        VALUE + 4,
        i32::from_ne_bytes([b4, b5, 0, 0]),
    );
    a.copy(R1, R6);
    a.set(R2, 0);
    a.stack(R3, VALUE);
    a.set(R4, 6);
    a.set(R5, 0);
    a.call(Helper::StoreBytes);
    a.jump_if_not_equal(R0, 0, "drop");
    a.set(R1, resolver.interface as i32);
    a.set(R2, 0);
    a.call(Helper::Redirect);
    a.exit();
}
