//! Tests that the guest has what is in a pod's network namespace: as CNI made it, under the same
//! names, reachable in both directions.

mod anti_spoofing;
mod egress;

use std::time::{Duration, Instant};

use anyhow::Result;
use caisson_oci::Egress;
use caisson_shim::network::{Network, Rules};
use caisson_tests::{
    bridge::{Bridge, Namespace, GATEWAY, GATEWAY6},
    command, proc, Container, ContainerBuilder, Node, Runtime,
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

/// The pod's counters are the interface's own, as for any pod. No VM runs in this test.
#[test]
fn statistics_of_the_network_are_those_of_its_interfaces() -> Result<()> {
    let node = Node::shared();
    let bridge = Bridge::new(node)?;
    let pod = bridge.pod(node, 2)?;
    let before = state(&pod)?;
    let path = pod.path();
    let rules = Rules {
        anti_spoofing: true,
        egress: Egress::Open,
        servers: Vec::new(),
    };
    let open = Network::open(&path, rules);
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
