//! Tests that the guest has what is in a pod's network namespace: as CNI made it, under the same
//! names, reachable in both directions.

use std::time::{Duration, Instant};

use anyhow::Result;
use caisson_tests::{
    bridge::{Bridge, Namespace, GATEWAY, GATEWAY6},
    command, paths, proc, Container, ContainerBuilder, Node, Runtime,
};
use rstest::rstest;

/// Prints an interface as it is in a namespace, without numbers that only the kernel assigns.
const SHOW: &str =
    "ip addr show dev $i | grep -E 'link/|inet' | sed 's/ flags.*//; s/ tentative//; s/ *$//'; \
    cat /sys/class/net/$i/mtu; ip neigh show dev $i nud permanent; \
    for t in main 100; do ip route show dev $i table $t; ip -6 route show dev $i table $t; done";

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn interfaces_in_the_container_are_those_of_the_namespace(#[case] runtime: Runtime) -> Result<()> {
    let node = Node::shared();
    let bridge = Bridge::new(node)?;
    let pod = Namespace::new(node)?;
    // The order differs from that of the names, since the guest's kernel numbers its cards in the
    // order they come.
    bridge.connect(&pod, "net1", "p1", 9000)?;
    bridge.connect(&pod, "eth0", "p0", 1400)?;
    for words in [
        "addr add 10.9.0.7/24 dev eth0 brd +",
        "addr add 10.9.0.8/24 dev eth0",
        "addr add fd09::7/64 dev eth0 nodad",
        "addr add 10.8.0.5 peer 10.8.0.6/32 dev net1",
        "addr add fd08::5/128 dev net1 nodad noprefixroute",
        "neigh add 10.9.0.99 lladdr 02:00:00:00:00:63 dev eth0 nud permanent",
        "neigh add fd09::99 lladdr 02:00:00:00:00:63 dev eth0 nud permanent",
        // Calico adds such a route.
        "route add 169.254.1.1 dev net1 scope link",
        "route add 10.50.0.0/16 via 169.254.1.1 dev net1 metric 77 mtu 1300 src 10.8.0.5",
        "route add 10.51.0.0/16 via 192.0.2.1 dev eth0 onlink",
        "route add 10.52.0.0/16 dev eth0 table 100",
        "route add default via 10.9.0.1",
        "-6 route add fd50::/32 via fd09::9 dev eth0 metric 77",
        "-6 route add default via fd09::1",
    ] {
        pod.ip(words)?;
    }
    let container = container(node, runtime, &pod)
        .args(["sleep", "1000"])
        .start()?;
    for interface in ["eth0", "net1"] {
        let line = format!("i={interface}; {SHOW}");
        let host = pod.sh(&line)?.ok()?.text();
        assert!(host.contains("10.5"), "{host}");
        assert_eq!(container.sh(&line)?, host.trim(), "{interface}");
    }
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn container_reaches_the_bridge_and_is_reached_from_it(#[case] runtime: Runtime) -> Result<()> {
    let node = Node::shared();
    let bridge = Bridge::new(node)?;
    let pod = bridge.pod(node, 2)?;
    let container = server(node, runtime, &pod)?;
    container.sh(&format!(
        "ping -c 2 -w 10 {GATEWAY} && ping -c 2 -w 10 {GATEWAY6}"
    ))?;
    for address in ["10.9.0.2", "[fd09::2]"] {
        let page = bridge
            .host
            .sh(&format!("wget -q -O - http://{address}:8080/page"))?;
        assert_eq!(page.ok()?.line(), "a page", "{address}");
        let closed = bridge
            .host
            .sh(&format!("wget -O - http://{address}:8081/"))?;
        assert!(closed.errors().contains("refused"), "{}", closed.errors());
    }
    Ok(())
}

#[test]
fn packets_of_full_size_pass_both_ways() -> Result<()> {
    let node = Node::shared();
    let bridge = Bridge::new(node)?;
    let pod = Namespace::new(node)?;
    bridge.connect(&pod, "eth0", "p0", 9000)?;
    bridge.host.ip("link set br0 mtu 9000")?;
    pod.ip("addr add 10.9.0.2/24 dev eth0")?;
    let container = container(node, Runtime::Caisson, &pod)
        .args(["sleep", "1000"])
        .start()?;
    // The packet also has 8 bytes of ICMP and 20 of IP.
    container.sh(&format!("ping -c 1 -w 10 -s 8972 {GATEWAY}"))?;
    bridge.host.sh("ping -c 1 -w 10 -s 8972 10.9.0.2")?.ok()?;
    let parts = bridge.host.sh("grep ^Ip: /proc/net/snmp | tail -1")?.line();
    // The field is ReasmReqds, as proc(5) has it: no packet came in fragments.
    assert_eq!(parts.split(' ').nth(14), Some("0"), "{parts}");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn file_of_64_mib_arrives_unchanged_both_ways(#[case] runtime: Runtime) -> Result<()> {
    let node = Node::shared();
    let bridge = Bridge::new(node)?;
    let pod = bridge.pod(node, 2)?;
    let container = server(node, runtime, &pod)?;
    container.sh("dd if=/dev/urandom of=/www/file bs=1M count=64 2>/dev/null")?;
    let sum = container.sh("md5sum < /www/file")?;
    let start = Instant::now();
    let copy = node.dir().join("copy");
    let get = format!(
        "mkdir -p {0} && wget -q -O {0}/file http://10.9.0.2:8080/file",
        copy.display()
    );
    bridge.host.sh(&get)?.ok()?;
    let there = start.elapsed();
    let got = bridge
        .host
        .sh(&format!("md5sum < {}/file", copy.display()))?;
    assert_eq!(got.line(), sum);
    let _server = bridge
        .host
        .spawn(&format!("httpd -f -p 8000 -h {}", copy.display()))?;
    let start = Instant::now();
    let back = container.sh(&format!(
        "for i in 1 2 3; do wget -q -O /www/back http://{GATEWAY}:8000/file && break; sleep 1; done; md5sum < /www/back"
    ))?;
    println!(
        "{runtime}: 64 MiB out of the container in {there:?}, into it and summed in {:?}",
        start.elapsed()
    );
    assert_eq!(back, sum);
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn macvlan_interface_works_as_a_veth_does(#[case] runtime: Runtime) -> Result<()> {
    let node = Node::shared();
    let bridge = Bridge::new(node)?;
    let host = &bridge.host;
    host.ip("link add parent type veth peer name p9")?;
    host.ip("link set p9 master br0")?;
    host.ip("link set p9 up")?;
    host.ip("link set parent up")?;
    let pod = Namespace::new(node)?;
    let name = pod.name();
    host.ip(&format!(
        "link add link parent name eth0 netns {name} type macvlan mode bridge"
    ))?;
    pod.ip("addr add 10.9.0.2/24 dev eth0")?;
    pod.ip("link set eth0 up")?;
    let container = server(node, runtime, &pod)?;
    container.sh(&format!("ping -c 2 -w 10 {GATEWAY}"))?;
    let page = host.sh("wget -q -O - http://10.9.0.2:8080/page")?;
    assert_eq!(page.ok()?.line(), "a page");
    Ok(())
}

#[test]
fn namespace_itself_does_not_answer_for_the_guest() -> Result<()> {
    let node = Node::shared();
    let bridge = Bridge::new(node)?;
    let pod = bridge.pod(node, 2)?;
    let container = server(node, Runtime::Caisson, &pod)?;
    let ping = "ping -c 2 -w 5 10.9.0.2 && ping -c 2 -w 5 fd09::2";
    bridge.host.sh(ping)?.ok()?;
    let qemu = container.vmm()?;
    proc::kill(qemu, libc::SIGSTOP);
    let silent = ["10.9.0.2", "fd09::2"].map(|to| bridge.host.sh(&format!("ping -c 2 -w 3 {to}")));
    proc::kill(qemu, libc::SIGCONT);
    for ping in silent {
        let ping = ping?;
        assert_ne!(ping.code, 0, "somebody else answered: {}", ping.text());
    }
    bridge.host.sh(ping)?.ok()?;
    Ok(())
}

#[test]
fn namespace_without_interfaces_gives_a_container_without_any() -> Result<()> {
    let node = Node::shared();
    let pod = Namespace::new(node)?;
    let names = container(node, Runtime::Caisson, &pod)
        .args(["ls", "/sys/class/net"])
        .run()?;
    assert_eq!(names.ok()?.line(), "lo");
    Ok(())
}

#[test]
fn namespace_that_cannot_be_is_refused_by_its_path() -> Result<()> {
    let node = Node::shared();
    let own = format!("/proc/{}/ns/net", std::process::id());
    for (path, reason) in [
        ("/run/netns/no-such", "No such file"),
        (own.as_str(), "the host's network namespace"),
    ] {
        let container = node
            .container("busybox")
            .flag("--with-ns", format!("network:{path}"));
        let output = container.args(["true"]).run()?;
        let errors = output.errors();
        assert_ne!(output.code, 0, "{path}");
        assert!(errors.contains(path) && errors.contains(reason), "{errors}");
    }
    Ok(())
}

#[test]
fn namespace_after_the_container_is_as_it_was() -> Result<()> {
    let node = Node::shared();
    let bridge = Bridge::new(node)?;
    let pod = bridge.pod(node, 2)?;
    let before = state(&pod)?;
    let ping = format!("ping -c 1 -w 10 {GATEWAY}");
    container(node, Runtime::Caisson, &pod)
        .sh(&ping)
        .run()?
        .ok()?;
    assert_eq!(state(&pod)?, before);
    Ok(())
}

#[test]
fn namespace_after_qemu_was_killed_is_as_it_was() -> Result<()> {
    let node = Node::shared();
    let bridge = Bridge::new(node)?;
    let pod = bridge.pod(node, 2)?;
    let before = state(&pod)?;
    let container = container(node, Runtime::Caisson, &pod)
        .args(["sleep", "1000"])
        .start()?;
    assert_ne!(state(&pod)?, before);
    proc::kill(container.vmm()?, libc::SIGKILL);
    container.wait_within(Duration::from_secs(10))?;
    container.delete()?;
    assert_eq!(state(&pod)?, before);
    Ok(())
}

/// Only the redirect into nothing stays, which goes away with the interface.
#[test]
fn namespace_after_the_shim_was_killed_serves_another_container() -> Result<()> {
    let node = Node::shared();
    let bridge = Bridge::new(node)?;
    let pod = bridge.pod(node, 2)?;
    let first = container(node, Runtime::Caisson, &pod)
        .args(["sleep", "1000"])
        .start()?;
    proc::kill(first.shim()?, libc::SIGKILL);
    command::poll("no tap", Duration::from_secs(10), || {
        (!pod.ip("link show").ok()?.contains("caisson")).then_some(())
    })?;
    drop(first);
    let ping = format!("ping -c 2 -w 10 {GATEWAY}");
    container(node, Runtime::Caisson, &pod)
        .sh(&ping)
        .run()?
        .ok()?;
    Ok(())
}

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

/// The pod's counters are the interface's own, as for any pod. No VM runs in this test.
#[test]
fn statistics_of_the_network_are_those_of_its_interfaces() -> Result<()> {
    let node = Node::shared();
    let bridge = Bridge::new(node)?;
    let pod = bridge.pod(node, 2)?;
    let before = state(&pod)?;
    let path = pod.path();
    let open = caisson_shim::network::Network::open(&path, true);
    let network = node.runtime().block_on(open)?;
    let received = || -> Result<u64> {
        let statistics = network.statistics()?;
        let names: Vec<_> = statistics.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["eth0"]);
        Ok(statistics[0].rx_bytes)
    };
    let first = received()?;
    bridge
        .host
        .ip("neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev br0")?;
    bridge.host.sh("ping -c 3 -w 3 -s 1000 10.9.0.2")?;
    assert!(received()? >= first + 3000);
    drop(network);
    assert_eq!(state(&pod)?, before);
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

/// Builds a container in a pod's namespace.
fn container<'n>(node: &'n Node, runtime: Runtime, pod: &Namespace) -> ContainerBuilder<'n> {
    let container = node.container("busybox").runtime(runtime);
    container.flag("--with-ns", pod.flag())
}

/// Starts a container that serves `/www` with a `page` on port 8080 of every address.
fn server<'n>(node: &'n Node, runtime: Runtime, pod: &Namespace) -> Result<Container<'n>> {
    let container = container(node, runtime, pod)
        .sh("mkdir /www && echo a page > /www/page && exec httpd -f -p 8080 -h /www")
        .start()?;
    let listens = "for i in $(seq 50); do wget -q -O - http://127.0.0.1:8080/page && exit; sleep 0.1; done; exit 1";
    container.sh(listens)?;
    Ok(container)
}

/// Returns what a namespace contains, without its counters.
fn state(pod: &Namespace) -> Result<String> {
    let links = pod.ip("-d addr show")?;
    let hooks = pod.sh("tc qdisc show; cat /proc/sys/net/ipv4/conf/lo/route_localnet")?;
    // A new address is tentative for a while.
    Ok(links.replace(" tentative", "") + &hooks.ok()?.text())
}
