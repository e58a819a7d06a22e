//! Tests that what a guest sends under addresses that are not its interface's reaches nobody, and
//! what that costs.

use std::time::{Duration, Instant};

use anyhow::Result;
use caisson_tests::{
    bridge::{Bridge, GATEWAY, GATEWAY6},
    paths, Node, Runtime,
};
use rstest::rstest;

use super::container;

/// A guest with CAP_NET_RAW sends frames under its own addresses and under others'. The test checks
/// which ones arrive at the other end of the pod's veth pair.
#[rstest]
#[case::runc(Runtime::Runc, true, EVERYTHING)]
#[case::caisson(Runtime::Caisson, true, "own advertised6 own6")]
#[case::caisson_without_anti_spoofing(Runtime::Caisson, false, EVERYTHING)]
fn frames_that_a_guest_forges_do_not_arrive(
    #[case] runtime: Runtime,
    #[case] anti_spoofing: bool,
    #[case] expected: &str,
) -> Result<()> {
    let own_node;
    let node = match anti_spoofing {
        true => Node::shared(),
        false => {
            own_node = without_anti_spoofing()?;
            &own_node
        }
    };
    let bridge = Bridge::new(node)?;
    let pod = bridge.pod(node, 2)?;
    let container = container(node, runtime, &pod)
        .args(["sleep", "1000"])
        .start()?;
    let mac = pod.sh("cat /sys/class/net/eth0/address")?.ok()?.line();
    let probe = paths::probe()?;
    let listen = format!("{} receive-frames v2 60", probe.display());
    let listener = bridge.host.spawn(&listen)?;
    listener.wait_for_output("listening")?;
    let frames = frames(&mac.replace(':', ""));
    container
        .exec(
            ["probe", "send-frames", "eth0"]
                .into_iter()
                .chain(frames.iter().map(String::as_str)),
        )?
        .ok()?;
    let heard = listener.finish(Duration::from_secs(70))?.ok()?.line();
    assert_eq!(heard, format!("listening\n{expected}"));
    // Traffic that is not forged still passes.
    container.sh(&format!(
        "ping -c 1 -w 10 {GATEWAY} && ping -c 1 -w 10 {GATEWAY6}"
    ))?;
    Ok(())
}

/// An address that the guest gives itself is not an address of its interface.
#[test]
fn address_that_the_guest_took_itself_reaches_nobody() -> Result<()> {
    let node = Node::shared();
    let bridge = Bridge::new(node)?;
    let pod = bridge.pod(node, 2)?;
    let container = container(node, Runtime::Caisson, &pod)
        .flag("--cap-add", "CAP_NET_ADMIN")
        .args(["sleep", "1000"])
        .start()?;
    container.sh("ip addr add 10.9.0.77/24 dev eth0")?;
    let ping = |from: &str| container.exec(["ping", "-c", "2", "-w", "3", "-I", from, GATEWAY]);
    assert_ne!(ping("10.9.0.77")?.code, 0);
    assert_eq!(ping("10.9.0.2")?.code, 0);
    let from_outside = bridge.host.sh("ping -c 2 -w 3 10.9.0.77")?;
    assert_ne!(from_outside.code, 0, "{}", from_outside.text());
    Ok(())
}

#[test]
fn second_address_of_the_interface_is_the_guests_too() -> Result<()> {
    let node = Node::shared();
    let bridge = Bridge::new(node)?;
    let pod = bridge.pod(node, 2)?;
    pod.ip("addr add 10.9.0.88/24 dev eth0")?;
    pod.ip("addr add fd09::88/64 dev eth0 nodad")?;
    let container = container(node, Runtime::Caisson, &pod)
        .args(["sleep", "1000"])
        .start()?;
    for (from, to) in [("10.9.0.88", GATEWAY), ("fd09::88", GATEWAY6)] {
        container.sh(&format!("ping -c 1 -w 10 -I {from} {to}"))?;
    }
    Ok(())
}

/// Prints the throughput of a stream out of the guest with and without anti-spoofing. Takes the
/// best of five for each, measured in turn.
#[test]
fn traffic_of_a_guest_is_as_fast_with_anti_spoofing() -> Result<()> {
    const MIB: u32 = 96;
    let (with, without) = (Node::shared(), without_anti_spoofing()?);
    let mut best = [f64::MAX; 2];
    let mut pods = Vec::new();
    for node in [with, &without] {
        let bridge = Bridge::new(node)?;
        let pod = bridge.pod(node, 2)?;
        let container = container(node, Runtime::Caisson, &pod)
            .args(["sleep", "1000"])
            .start()?;
        pods.push((bridge, pod, container));
    }
    let probe = paths::probe()?;
    for _ in 0..5 {
        for ((bridge, _, container), best) in pods.iter().zip(&mut best) {
            let listen = format!("{} swallow {GATEWAY}:7000", probe.display());
            let _sink = bridge.host.spawn(&listen)?;
            let send = format!(
                "for i in $(seq 50); do probe send {GATEWAY}:7000 {MIB} && exit; sleep 0.1; done; exit 1"
            );
            // Gives the listener time to start.
            std::thread::sleep(Duration::from_millis(300));
            let start = Instant::now();
            container.sh(&send)?;
            *best = best.min(start.elapsed().as_secs_f64());
        }
    }
    let [with, without] = best.map(|seconds| f64::from(MIB) / seconds);
    println!("out of the guest: {with:.0} MiB/s with anti_spoofing, {without:.0} MiB/s without");
    assert!(with > 0.75 * without, "{with} and {without} MiB/s");
    Ok(())
}

fn without_anti_spoofing() -> Result<Node> {
    let node = Node::start_with(|config| {
        config["network"] = serde_json::json!({ "anti_spoofing": false });
    })?;
    node.image("busybox")?;
    Ok(node)
}

/// The words of all frames except the last.
const EVERYTHING: &str =
    "own mac ipv4 arp arpmac vlan lldp advertised6 own6 ipv6 claim6 linklayer6 hidden6 router6 redirect6";

/// Returns frames of a pod with 10.9.0.2, fd09::2 and that hardware address, in hexadecimal digits.
/// Some are genuine and some forged.
fn frames(mac: &str) -> Vec<String> {
    let other = "020000000063";
    let (own4, gateway4, other4) = ("0a090002", "0a090001", "0a090063");
    let v6 = |last: &str| format!("fd09{}{last}", "0".repeat(26));
    let (own6, gateway6, other6) = (v6("02"), v6("01"), v6("63"));
    let word = |word: &str| hex::encode(format!("mark:{word}."));
    let frame = |source: &str, rest: String| format!("ffffffffffff{source}{rest}");
    let ipv4 = |from: &str, name: &str| {
        format!(
            "0800450000300000000040110000{from}{gateway4}00070007001c0000{}",
            word(name)
        )
    };
    let arp = |mac: &str, from: &str, name: &str| {
        format!(
            "08060001080006040002{mac}{from}ffffffffffff{gateway4}{}",
            word(name)
        )
    };
    let ipv6 = |from: &str, next: &str, payload: &str, name: &str| {
        let length = payload.len() / 2;
        format!(
            "86dd60000000{length:04x}{next}ff{from}{other6}{payload}{}",
            word(name)
        )
    };
    let about =
        |kind: &str, target: &str, option: &str| format!("{kind}00000000000000{target}{option}");
    let own_option = format!("0201{mac}");
    let other_option = format!("0201{other}");
    let advertised = about("88", &own6, &own_option);
    let claimed = about("88", &gateway6, &own_option);
    [
        frame(mac, ipv4(own4, "own")),
        frame(other, ipv4(own4, "mac")),
        frame(mac, ipv4(other4, "ipv4")),
        frame(mac, arp(mac, gateway4, "arp")),
        frame(mac, arp(other, own4, "arpmac")),
        frame(mac, format!("81000005{}", ipv4(own4, "vlan"))),
        frame(mac, format!("88cc{}{}", "00".repeat(40), word("lldp"))),
        frame(mac, ipv6(&own6, "3a", &advertised, "advertised6")),
        frame(mac, ipv6(&own6, "11", "0007000700080000", "own6")),
        frame(mac, ipv6(&other6, "11", "0007000700080000", "ipv6")),
        frame(mac, ipv6(&own6, "3a", &claimed, "claim6")),
        frame(
            mac,
            ipv6(
                &own6,
                "3a",
                &about("88", &own6, &other_option),
                "linklayer6",
            ),
        ),
        frame(
            mac,
            ipv6(
                &own6,
                "3c",
                &format!("3a00010400000000{claimed}"),
                "hidden6",
            ),
        ),
        frame(mac, ipv6(&own6, "3a", &about("86", &own6, ""), "router6")),
        frame(mac, ipv6(&own6, "3a", &about("89", &own6, ""), "redirect6")),
        frame(mac, ipv4(own4, "end")),
    ]
    .to_vec()
}
