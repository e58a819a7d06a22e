//! Restricts the frames that a guest may send to those that carry the hardware address and the IP
//! addresses of its interface and claim no others.
//!
//! The rules are a classic BPF program (kernel, networking/filter.rst). Traffic control runs it on
//! each frame that the VM sends, before anything else on the host sees the frame; see
//! [`super::tc`].
//!
//! A frame must meet these conditions:
//!
//! - all frames: the interface's hardware address as source, no VLAN tag
//! - IPv4: one of the interface's addresses as source
//! - ARP: a request or reply whose sender is the interface; a probe (sender 0.0.0.0) asks for its
//!   own address
//! - IPv6: one of the interface's addresses as source; `::` only to look for routers, to check
//!   whether an own address is free, and to join groups
//! - Neighbour Discovery: an own address advertised, the interface's link-layer address; no router
//!   advertisement, no redirect
//! - IPv6 extension headers: a fragment's, IPsec's and that of a report of groups; what is behind
//!   others could be Neighbour Discovery
//!
//! Other protocols are refused.
//!
//! A frame that is too short for what the program reads ends it with 0 (not allowed), as every
//! other refusal does.
//!
//! One case escapes the program. A guest's kernel can lie about where the checksum of a packet is
//! to be filled in (`struct virtio_net_hdr`). The card that sends the packet off the node then
//! writes two bytes there, which may be half of the source address. No filter on the tap sees that
//! field.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::bpf::{
    any, byte, half, is_or_skip, must, must_not, pass, refuse, unless, when, word, Op,
};

/// The maximum length of a program. The kernel refuses longer ones (linux/bpf_common.h,
/// BPF_MAXINSNS).
pub const MAX_LENGTH: usize = 4096;

const ETHERTYPE: u32 = 12;
const ARP: u32 = 0x0806;
const IPV4: u32 = 0x0800;
const IPV6: u32 = 0x86dd;

/// Offsets in an Ethernet frame with an IPv6 packet.
const PAYLOAD_LENGTH: u32 = 18;
const NEXT_HEADER: u32 = 20;
const SOURCE6: u32 = 22;
const ICMP6: u32 = 54;
/// Next headers (RFC 8200, RFC 4443).
const HOP_BY_HOP: u32 = 0;
const ROUTING: u32 = 43;
const ICMPV6: u32 = 58;
const DESTINATION_OPTIONS: u32 = 60;
/// Types of ICMPv6 (RFC 4861, RFC 3810).
const ROUTER_SOLICITATION: u32 = 133;
const ROUTER_ADVERTISEMENT: u32 = 134;
const NEIGHBOUR_SOLICITATION: u32 = 135;
const NEIGHBOUR_ADVERTISEMENT: u32 = 136;
const REDIRECT: u32 = 137;
const LISTENER_REPORT: u32 = 131;
const LISTENER_DONE: u32 = 132;
const LISTENER_REPORT_2: u32 = 143;

/// The offset at which a filter reads whether a frame had a VLAN tag, which the kernel has removed.
const SKF_VLAN_TAG_PRESENT: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_VLAN_TAG_PRESENT) as u32;

/// Makes the program for an interface with these addresses. It may come out longer than
/// [`MAX_LENGTH`].
pub fn program(mac: [u8; 6], addresses: &[IpAddr]) -> Vec<Op> {
    let mut own4 = Vec::new();
    let mut own6 = Vec::new();
    for address in addresses {
        match address {
            IpAddr::V4(address) => own4.push(*address),
            IpAddr::V6(address) => own6.push(*address),
        }
    }
    let mut program = is_mac(6, mac);
    program.extend([
        word(SKF_VLAN_TAG_PRESENT),
        is_or_skip(0, 1, 0),
        refuse(),
        half(ETHERTYPE),
    ]);
    program.extend(when(IPV4, ipv4(&own4)));
    program.extend(when(ARP, arp(mac, &own4)));
    program.extend(when(IPV6, ipv6(mac, &own6)));
    program.push(refuse());
    program
}

fn ipv4(own: &[Ipv4Addr]) -> Vec<Op> {
    let mut block = vec![word(26)];
    block.extend(one_of(own));
    block.push(pass());
    block
}

fn arp(mac: [u8; 6], own: &[Ipv4Addr]) -> Vec<Op> {
    // Ethernet, IPv4, addresses of 6 and 4 bytes, request or reply (RFC 826).
    let mut block = vec![word(14)];
    block.extend(must(0x0001_0800));
    block.push(half(18));
    block.extend(must(0x0604));
    block.push(half(20));
    block.extend(one_of_numbers(&[1, 2]));
    block.extend(is_mac(22, mac));
    let mut probe = vec![word(38)];
    probe.extend(one_of(own));
    probe.push(pass());
    block.push(word(28));
    block.extend(when(0, probe));
    block.extend(one_of(own));
    block.push(pass());
    block
}

fn ipv6(mac: [u8; 6], own: &[Ipv6Addr]) -> Vec<Op> {
    // No address of an interface begins with as many zeros as `::`.
    let mut block = vec![word(SOURCE6)];
    block.extend(when(0, ipv6_from_nobody(mac, own)));
    block.extend(one_of6(SOURCE6, own));
    block.push(byte(NEXT_HEADER));
    block.extend(must_not(ROUTING));
    block.extend(must_not(DESTINATION_OPTIONS));
    block.extend(when(HOP_BY_HOP, report()));

    let mut icmp = vec![byte(ICMP6)];
    icmp.extend(must_not(ROUTER_ADVERTISEMENT));
    icmp.extend(must_not(REDIRECT));
    for (kind, length) in [(ROUTER_SOLICITATION, 8), (NEIGHBOUR_SOLICITATION, 24)] {
        let mut asked = link_layer_option(length, mac);
        asked.push(pass());
        icmp.extend(when(kind, asked));
    }
    let mut advertised = link_layer_option(24, mac);
    advertised.extend(one_of6(ICMP6 + 8, own));
    advertised.push(pass());
    icmp.extend(when(NEIGHBOUR_ADVERTISEMENT, advertised));
    icmp.push(pass());
    block.extend(when(ICMPV6, icmp));
    block.push(pass());
    block
}

/// Handles packets from `::`: reports of groups, router solicitations, and checks whether an own
/// address is free.
fn ipv6_from_nobody(mac: [u8; 6], own: &[Ipv6Addr]) -> Vec<Op> {
    let mut block = one_of6(SOURCE6, &[Ipv6Addr::UNSPECIFIED]);
    block.push(byte(NEXT_HEADER));
    block.extend(when(HOP_BY_HOP, report()));
    block.extend(must(ICMPV6));
    block.push(byte(ICMP6));
    let mut routers = link_layer_option(8, mac);
    routers.push(pass());
    block.extend(when(ROUTER_SOLICITATION, routers));
    block.extend(must(NEIGHBOUR_SOLICITATION));
    block.extend(link_layer_option(24, mac));
    block.extend(one_of6(ICMP6 + 8, own));
    block.push(pass());
    block
}

/// Passes a hop-by-hop header of 8 bytes (which has the router alert) followed by a report of
/// groups.
fn report() -> Vec<Op> {
    let kinds = [LISTENER_REPORT, LISTENER_DONE, LISTENER_REPORT_2];
    let mut block = vec![half(ICMP6)];
    block.extend(must(ICMPV6 << 8));
    block.push(byte(ICMP6 + 8));
    block.extend(one_of_numbers(&kinds));
    block.push(pass());
    block
}

/// Requires that a Neighbour Discovery message of `length` bytes has one option at most: a nonce
/// (RFC 7527) or the interface's link-layer address.
fn link_layer_option(length: u32, mac: [u8; 6]) -> Vec<Op> {
    const NONCE: u32 = 0x0e01;
    const SOURCE_AND_TARGET: [u32; 2] = [0x0101, 0x0201];
    let option = ICMP6 + length;
    let mut address = one_of_numbers(&SOURCE_AND_TARGET);
    address.extend(is_mac(option + 2, mac));
    let mut present = must(length + 8).to_vec();
    present.push(half(option));
    present.extend(unless(NONCE, address));
    let mut block = vec![half(PAYLOAD_LENGTH)];
    block.extend(unless(length, present));
    block
}

fn is_mac(at: u32, mac: [u8; 6]) -> Vec<Op> {
    let [a, b, c, d, e, f] = mac;
    let mut block = vec![word(at)];
    block.extend(must(u32::from_be_bytes([a, b, c, d])));
    block.push(half(at + 4));
    block.extend(must(u16::from_be_bytes([e, f]).into()));
    block
}

/// Goes on if the number that was read is one of these addresses.
fn one_of(addresses: &[Ipv4Addr]) -> Vec<Op> {
    let numbers: Vec<_> = addresses.iter().map(|address| address.to_bits()).collect();
    one_of_numbers(&numbers)
}

fn one_of_numbers(numbers: &[u32]) -> Vec<Op> {
    let tests = numbers.iter().map(|number| vec![is_or_skip(*number, 0, 1)]);
    any(tests.collect())
}

/// Goes on if the address at an offset is one of these.
fn one_of6(at: u32, addresses: &[Ipv6Addr]) -> Vec<Op> {
    let test = |address: &Ipv6Addr| {
        let bits = address.to_bits();
        let mut test = Vec::new();
        for (part, offset) in [96, 64, 32, 0].into_iter().zip([0, 4, 8, 12]) {
            // Skips the rest of this test and the jump after it.
            let rest = (6 - offset / 2 + 1) as u8;
            test.push(word(at + offset));
            test.push(is_or_skip((bits >> part) as u32, 0, rest));
        }
        test
    };
    any(addresses.iter().map(test).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::{fd::AsRawFd, unix::net::UnixDatagram};

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 9];
    const OWN: &str = "10.9.0.7";
    const OWN6: &str = "fd09::7";

    /// The program in the kernel, attached to a datagram socket, which receives what passes.
    struct Guard(UnixDatagram, UnixDatagram);

    impl Guard {
        fn new(addresses: &[&str]) -> Self {
            let addresses: Vec<_> = addresses.iter().map(|a| a.parse().unwrap()).collect();
            let mut program = program(MAC, &addresses);
            let (guest, host) = UnixDatagram::pair().unwrap();
            let filter = libc::sock_fprog {
                len: program.len() as u16,
                filter: program.as_mut_ptr(),
            };
            // SAFETY: a structure of the given size, with a program that lives through the call.
            let attached = unsafe {
                libc::setsockopt(
                    host.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_ATTACH_FILTER,
                    (&raw const filter).cast(),
                    size_of_val(&filter) as u32,
                )
            };
            assert_eq!(attached, 0, "{}", std::io::Error::last_os_error());
            host.set_nonblocking(true).unwrap();
            Self(guest, host)
        }

        fn passes(&self, frame: &[u8]) -> bool {
            // The sender gets an error for a datagram that the filter refuses.
            let _ = self.0.send(frame);
            self.1.recv(&mut [0; 256]).is_ok()
        }
    }

    fn guard() -> Guard {
        Guard::new(&["10.9.0.6", OWN, "fe80::7", OWN6])
    }

    fn frame(source: [u8; 6], ethertype: u16, rest: &[&[u8]]) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend(source);
        frame.extend(ethertype.to_be_bytes());
        frame.extend(rest.concat());
        frame
    }

    fn v4(address: &str) -> [u8; 4] {
        address.parse::<Ipv4Addr>().unwrap().octets()
    }

    fn v6(address: &str) -> [u8; 16] {
        address.parse::<Ipv6Addr>().unwrap().octets()
    }

    fn ipv4_frame(source: [u8; 6], from: &str) -> Vec<u8> {
        let fixed = [0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
        frame(
            source,
            0x0800,
            &[&fixed, &v4(from), &v4("10.9.0.1"), &[0; 8]],
        )
    }

    fn ipv6_frame(from: &str, next: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u16).to_be_bytes();
        let fixed = [0x60, 0, 0, 0, length[0], length[1], next, 255];
        frame(MAC, 0x86dd, &[&fixed, &v6(from), &v6("ff02::1"), payload])
    }

    fn arp_frame(operation: u8, mac: [u8; 6], sender: &str, target: &str) -> Vec<u8> {
        let fixed = [0, 1, 8, 0, 6, 4, 0, operation];
        let body = [&fixed[..], &mac, &v4(sender), &[0; 6], &v4(target)];
        frame(MAC, 0x0806, &body)
    }

    /// A Neighbour Discovery message about `target`, with options.
    fn discovery(kind: u8, from: &str, target: &str, options: &[u8]) -> Vec<u8> {
        let body = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &v6(target), options].concat();
        ipv6_frame(from, 58, &body)
    }

    fn link_layer(kind: u8, mac: [u8; 6]) -> Vec<u8> {
        [&[kind, 1][..], &mac].concat()
    }

    #[track_caller]
    fn check(cases: &[(bool, Vec<u8>)]) {
        let guard = guard();
        for (number, (passes, frame)) in cases.iter().enumerate() {
            assert_eq!(guard.passes(frame), *passes, "frame {number}: {frame:02x?}");
        }
    }

    #[test]
    fn ipv4_frame_passes_with_the_interfaces_addresses_alone() {
        check(&[
            (true, ipv4_frame(MAC, OWN)),
            (true, ipv4_frame(MAC, "10.9.0.6")),
            (false, ipv4_frame(MAC, "10.9.0.8")),
            (false, ipv4_frame(MAC, "0.0.0.0")),
            (false, ipv4_frame(OTHER, OWN)),
            (false, ipv4_frame([2, 0, 0, 0, 1, 7], OWN)),
        ]);
    }

    #[test]
    fn arp_frame_claims_an_address_of_the_interface_or_none() {
        check(&[
            (true, arp_frame(1, MAC, OWN, "10.9.0.1")),
            (true, arp_frame(2, MAC, OWN, "10.9.0.1")),
            (true, arp_frame(1, MAC, "0.0.0.0", OWN)),
            (false, arp_frame(1, MAC, "0.0.0.0", "10.9.0.8")),
            (false, arp_frame(1, MAC, "10.9.0.1", "10.9.0.1")),
            (false, arp_frame(2, MAC, "10.9.0.1", OWN)),
            (false, arp_frame(2, OTHER, OWN, OWN)),
            // Reverse ARP with ARP's protocol number.
            (false, arp_frame(3, MAC, OWN, OWN)),
        ]);
    }

    #[test]
    fn ipv6_frame_passes_with_the_interfaces_addresses_alone() {
        check(&[
            (true, ipv6_frame(OWN6, 6, &[0; 20])),
            (true, ipv6_frame("fe80::7", 17, &[0; 8])),
            (true, ipv6_frame(OWN6, 58, &[128, 0, 0, 0])),
            // A fragment.
            (true, ipv6_frame(OWN6, 44, &[58, 0, 0, 1, 0, 0, 0, 1, 0])),
            (false, ipv6_frame("fd09::8", 6, &[0; 20])),
            (false, ipv6_frame("fd09::1:7", 6, &[0; 20])),
            (false, ipv6_frame("::", 17, &[0; 8])),
            (false, ipv6_frame("fd09::8", 58, &[128, 0, 0, 0])),
            // After these headers, a message of Neighbour Discovery would not be checked.
            (false, ipv6_frame(OWN6, 60, &[58, 0, 1, 4, 0, 0, 0, 0, 136])),
            (false, ipv6_frame(OWN6, 43, &[58, 0, 0, 0, 0, 0, 0, 0, 136])),
            (false, ipv6_frame(OWN6, 0, &[58, 0, 5, 2, 0, 0, 1, 0, 136])),
            (false, ipv6_frame(OWN6, 0, &[58, 1, 5, 2, 0, 0, 1, 0, 143])),
        ]);
    }

    #[test]
    fn neighbour_discovery_claims_addresses_of_the_interface_alone() {
        let mine = link_layer(1, MAC);
        let theirs = link_layer(1, OTHER);
        let behind = [&[14, 1, 0, 0, 0, 0, 0, 0][..], &link_layer(2, OTHER)].concat();
        check(&[
            (true, discovery(136, OWN6, OWN6, &link_layer(2, MAC))),
            (true, discovery(136, OWN6, OWN6, &[])),
            (true, discovery(136, "fe80::7", OWN6, &[])),
            (false, discovery(136, OWN6, "fd09::1", &[])),
            (false, discovery(136, "fd09::1", OWN6, &[])),
            (false, discovery(136, OWN6, OWN6, &link_layer(2, OTHER))),
            (false, discovery(136, OWN6, OWN6, &behind)),
            (true, discovery(135, OWN6, "fd09::1", &mine)),
            (false, discovery(135, OWN6, "fd09::1", &theirs)),
            (false, discovery(135, "fd09::1", "fd09::2", &mine)),
            // The check whether an address is free.
            (true, discovery(135, "::", OWN6, &[14, 1, 1, 2, 3, 4, 5, 6])),
            (true, discovery(135, "::", OWN6, &[])),
            (false, discovery(135, "::", "fd09::1", &[])),
            // The guest may ask for routers, but not act as one.
            (true, ipv6_frame("::", 58, &[133, 0, 0, 0, 0, 0, 0, 0])),
            (
                true,
                ipv6_frame(
                    "fe80::7",
                    58,
                    &[&[133, 0, 0, 0, 0, 0, 0, 0][..], &mine].concat(),
                ),
            ),
            (
                false,
                ipv6_frame(
                    "fe80::7",
                    58,
                    &[&[133, 0, 0, 0, 0, 0, 0, 0][..], &theirs].concat(),
                ),
            ),
            (false, discovery(134, "fe80::7", OWN6, &[])),
            (false, discovery(137, "fe80::7", OWN6, &[])),
            // Groups.
            (true, ipv6_frame("::", 0, &[58, 0, 5, 2, 0, 0, 1, 0, 143])),
            (
                true,
                ipv6_frame("fe80::7", 0, &[58, 0, 5, 2, 0, 0, 1, 0, 143]),
            ),
            (
                false,
                ipv6_frame("fe80::8", 0, &[58, 0, 5, 2, 0, 0, 1, 0, 143]),
            ),
        ]);
    }

    #[test]
    fn frame_that_is_short_or_of_another_protocol_is_refused() {
        let whole = ipv4_frame(MAC, OWN);
        let cut = |length: usize| (false, whole[..length].to_vec());
        check(&[
            cut(1),
            cut(13),
            cut(20),
            cut(29),
            (false, frame(MAC, 0x8100, &[&[0, 1, 8, 0], &whole[14..]])),
            (false, frame(MAC, 0x88cc, &[&[0; 40]])),
            // Spanning tree: a length in place of a protocol.
            (false, frame(MAC, 38, &[&[0x42; 40]])),
        ]);
    }

    #[test]
    fn interface_without_addresses_sends_nothing() {
        let guard = Guard::new(&[]);
        assert!(!guard.passes(&ipv4_frame(MAC, OWN)));
        assert!(!guard.passes(&ipv6_frame(OWN6, 6, &[0; 20])));
    }

    #[test]
    fn program_of_a_hundred_addresses_of_each_kind_is_not_too_long() {
        let v4 = (1..=100).map(|n| IpAddr::from([10, 1, 0, n]));
        let v6 = (1..=100).map(|n| IpAddr::from([0xfd01, 0, 0, 0, 0, 0, 0, n]));
        let addresses: Vec<_> = v4.chain(v6).collect();
        assert!(program(MAC, &addresses).len() <= MAX_LENGTH);
    }

    #[test]
    fn interface_may_have_forty_addresses_of_each_kind() {
        let addresses: Vec<_> = (1..=40)
            .flat_map(|n| [format!("10.1.0.{n}"), format!("fd01::{n}")])
            .collect();
        let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
        let guard = Guard::new(&addresses);
        assert!(guard.passes(&ipv4_frame(MAC, "10.1.0.40")));
        assert!(guard.passes(&ipv6_frame("fd01::40", 6, &[0; 20])));
        assert!(!guard.passes(&ipv4_frame(MAC, "10.1.0.41")));
        assert!(!guard.passes(&ipv6_frame("fd01::41", 6, &[0; 20])));
    }
}
