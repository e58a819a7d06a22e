//! Tests `caisson.dev/egress`: what a pod may open connections to. The attacker is root in a
//! privileged container of the guest. Only with Caisson; the other side is a pod of runc.

use std::{
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use caisson_tests::{
    command,
    cri::{Container, CriNode, Pod},
    dns::Dns,
    node::{caisson, LIMIT},
    paths, Runtime,
};

const EGRESS: &str = "caisson.dev/egress";
const PORT: u16 = 8080;
const OTHER_PORT: u16 = 8081;
/// The shortest time for which an address of a name is open, and a little.
const SHORTEST_PIN: Duration = Duration::from_secs(75);

#[test]
fn address_that_is_listed_answers_at_its_port_and_at_no_other() -> Result<()> {
    let pod = held(&format!("allow: {}", far().entries(PORT)))?;
    let attacker = attacker(&pod)?;
    for address in far().addresses()? {
        assert_eq!(ask(&attacker, address, PORT)?, "hello", "{address}");
        assert_eq!(ask(&attacker, address, OTHER_PORT)?, "", "{address}");
    }
    assert_ne!(denied(&pod)?, 0);
    Ok(())
}

#[test]
fn net_that_is_listed_without_a_port_has_all_of_its_addresses_and_protocols() -> Result<()> {
    let pod = held("allow: 10.213.0.0/16, fd00:ca15::/32")?;
    let attacker = attacker(&pod)?;
    for address in far().addresses()? {
        assert_eq!(ask(&attacker, address, PORT)?, "hello", "{address}");
        assert_eq!(ask(&attacker, address, OTHER_PORT)?, "hello", "{address}");
        assert!(pings(&attacker, address)?, "{address}");
        // In fragments.
        let ping = format!("ping -s 4000 -c 1 -w 10 {address}");
        attacker.sh(&ping)?;
    }
    Ok(())
}

#[test]
fn pod_that_is_denied_reaches_nobody() -> Result<()> {
    let pod = held("deny")?;
    let attacker = attacker(&pod)?;
    for address in far().addresses()? {
        let before = denied(&pod)?;
        assert_eq!(ask(&attacker, address, PORT)?, "", "{address}");
        assert!(!pings(&attacker, address)?, "{address}");
        assert!(denied(&pod)? > before, "{address}");
    }
    let query = format!("nslookup a.example {}", gateway()?);
    assert_ne!(attacker.exec(["sh", "-c", &query])?.code, 0);
    Ok(())
}

#[test]
fn pod_that_is_denied_answers_who_comes_to_it() -> Result<()> {
    let pod = held("deny")?;
    let server = pod.container("busybox");
    let server = server
        .args(["probe", "echo", &format!("[::]:{PORT}")])
        .start()?;
    server.wait_for_output("listening")?;
    for address in pod.addresses()? {
        let from_far = far().ask(address, PORT)?;
        assert_eq!(from_far, "hello", "{address}");
        TcpStream::connect_timeout(&SocketAddr::new(address, PORT), LIMIT)?;
        let ping = ["ping", "-c", "1", "-w", "10", &address.to_string()];
        assert_eq!(far().server.exec(ping)?.code, 0, "{address}");
    }
    let mut forward = pod.forward(PORT)?;
    forward.write("through the node\n")?;
    forward.wait_for("through the node\n")?;
    Ok(())
}

#[test]
fn peer_of_a_connection_is_not_reached_by_another_one() -> Result<()> {
    let pod = held("deny")?;
    let attacker = attacker(&pod)?;
    let server = pod.container("busybox");
    let server = server
        .args(["probe", "echo", &format!("[::]:{PORT}")])
        .start()?;
    server.wait_for_output("listening")?;
    for (address, own) in far().addresses()?.into_iter().zip(pod.addresses()?) {
        assert_eq!(far().ask(own, PORT)?, "hello", "{address}");
        assert_eq!(ask(&attacker, address, PORT)?, "", "{address}");
    }
    Ok(())
}

#[test]
fn node_itself_is_closed_unless_an_entry_names_it() -> Result<()> {
    let gateway = gateway()?;
    let port = TcpListener::bind((gateway, 0))?.local_addr()?.port();
    let mut server = Command::new(paths::probe()?);
    server.args(["echo", &SocketAddr::new(gateway, port).to_string()]);
    let server = command::spawn(&mut server, None)?;
    server.wait_for_output("listening")?;
    let connects = |egress: &str| {
        let pod = held(egress)?;
        let attacker = attacker(&pod)?;
        anyhow::Ok(ask(&attacker, gateway, port)? == "hello")
    };
    assert!(!connects("allow: 0.0.0.0/0")?);
    assert!(connects(&format!("allow: 0.0.0.0/0, {gateway}:{port}"))?);
    Ok(())
}

#[test]
fn address_of_metadata_is_closed_unless_an_entry_names_it() -> Result<()> {
    let refuses = |egress: &str| {
        let pod = held(egress)?;
        let attacker = attacker(&pod)?;
        let mut refused = Vec::new();
        for address in ["169.254.169.254", "fd00:ec2::254"] {
            let before = denied(&pod)?;
            ask(&attacker, address.parse()?, 80)?;
            refused.push(denied(&pod)? > before);
        }
        anyhow::Ok(refused)
    };
    assert_eq!(refuses("allow: 0.0.0.0/0, ::/0")?, [true, true]);
    let named = "allow: 0.0.0.0/0, ::/0, 169.254.169.254, fd00:ec2::254";
    assert_eq!(refuses(named)?, [false, false]);
    Ok(())
}

/// Each frame is of a kind that a filter could overlook. The last one is genuine.
#[test]
fn frames_that_the_guest_makes_itself_are_dropped_and_counted() -> Result<()> {
    let pod = held(&format!("allow: {}", far().entries(PORT)))?;
    let attacker = attacker(&pod)?;
    let frames = Frames::of(&pod, &attacker)?;
    // With ACK, as if the connection were there.
    let tcp = format!("9000{OTHER_PORT:04x}00000001000000015010ffff00000000");
    let tagged = frames.ipv4("0000", "11", &udp(PORT));
    let dropped = [
        frames.ipv4_from("0a0900fe", "0000", "11", &udp(PORT)),
        frames.ipv4("0000", "11", &udp(OTHER_PORT)),
        frames.ipv4("0000", "11", &udp(53)),
        frames.ipv4("0000", "06", &tcp),
        frames.ipv4("2000", "11", &udp(PORT)),
        frames.ipv4("0001", "11", &udp(PORT)),
        frames.ipv4("0000", "01", "0000000012345678"),
        frames.ipv4("0000", "2f", "0000080000000000"),
        frames.ipv6_from("fd0900000000000000000000000000fe", "11", &udp(PORT)),
        frames.ipv6("11", &udp(OTHER_PORT)),
        frames.ipv6("06", &tcp),
        frames.ipv6("2c", &format!("1100000000000001{}", udp(PORT))),
        frames.ipv6("3a", "8100000012345678"),
        frames.ethernet(&format!("81000005{}", &tagged[24..])),
        frames.ethernet(&format!("88cc{}", "00".repeat(40))),
        // Cut off.
        frames.ethernet("080045"),
        frames.ipv4("0000", "11", "9000"),
    ];
    for frame in &dropped {
        let before = denied(&pod)?;
        send(&attacker, std::slice::from_ref(frame))?;
        assert_eq!(denied(&pod)?, before + 1, "{frame}");
    }
    let before = denied(&pod)?;
    let solicitation = format!("8700000000000000{}", frames.own6);
    let passing = [
        frames.ipv4("0000", "11", &udp(PORT)),
        frames.ipv6("11", &udp(PORT)),
        frames.ipv6("3a", &solicitation),
    ];
    send(&attacker, &passing)?;
    assert_eq!(denied(&pod)?, before);
    Ok(())
}

/// The address is open at every port, but not for DNS, which is the resolver's.
#[test]
fn query_that_hides_in_fragments_is_dropped_and_counted() -> Result<()> {
    let pod = held("allow: 10.213.0.0/16, fd00:ca15::/32")?;
    let attacker = attacker(&pod)?;
    let frames = Frames::of(&pod, &attacker)?;
    let query = udp(53);
    let dropped = [
        frames.ipv4("0000", "11", &query),
        frames.ipv4("2000", "11", &query),
        frames.ipv6("2c", &format!("1100000100000001{query}")),
        frames.ipv6("3c", &format!("1100010400000000{query}")),
        frames.ipv6("2c", &format!("3c000001000000011100010400000000{query}")),
    ];
    for frame in &dropped {
        let before = denied(&pod)?;
        send(&attacker, std::slice::from_ref(frame))?;
        assert_eq!(denied(&pod)?, before + 1, "{frame}");
    }
    let before = denied(&pod)?;
    let other = udp(PORT);
    let passing = [
        frames.ipv4("2000", "11", &other),
        frames.ipv6("2c", &format!("1100000100000001{other}")),
    ];
    send(&attacker, &passing)?;
    assert_eq!(denied(&pod)?, before);
    Ok(())
}

#[test]
fn name_that_is_listed_is_reached_over_both_families_at_its_port() -> Result<()> {
    let addresses = far().addresses()?;
    dns().set("a.example", &addresses);
    let pod = held("allow: a.example:8080")?;
    let attacker = attacker(&pod)?;
    for (address, kind) in addresses.into_iter().zip(["A", "AAAA"]) {
        // Its address alone opens nothing before somebody asks for the name.
        assert_eq!(ask(&attacker, address, PORT)?, "", "{address}");
        let answer = query(&attacker, "a.example", kind)?;
        assert_eq!(answer, format!("NoError {address}"));
        assert_eq!(ask(&attacker, address, PORT)?, "hello", "{address}");
        assert_eq!(ask(&attacker, address, OTHER_PORT)?, "", "{address}");
        assert!(!pings(&attacker, address)?, "{address}");
    }
    Ok(())
}

#[test]
fn name_that_is_not_listed_does_not_exist_and_nobody_is_asked_for_it() -> Result<()> {
    dns().set("b.example", &far().addresses()?);
    let pod = held("allow: a.example, *.c.example")?;
    let attacker = attacker(&pod)?;
    // The last one has a label with a dot in it, which is another name than it looks like.
    for name in ["b.example", "c.example", "xa.example", "x\\.c.example"] {
        assert_eq!(query(&attacker, name, "A")?, "NXDomain", "{name}");
        assert!(!dns().was_asked(name), "{name}");
    }
    for kind in ["TXT", "ANY", "MX"] {
        assert_eq!(query(&attacker, "a.example", kind)?, "NoError");
    }
    Ok(())
}

#[test]
fn alias_of_a_listed_name_is_followed_and_its_target_is_not_a_name_by_itself() -> Result<()> {
    let address = far().pod.ipv4()?;
    dns().alias("web.apps.example", "edge.elsewhere");
    dns().set("edge.elsewhere", &[address]);
    let pod = held("allow: *.apps.example")?;
    let attacker = attacker(&pod)?;
    assert_eq!(query(&attacker, "edge.elsewhere", "A")?, "NXDomain");
    let answer = query(&attacker, "WEB.apps.example", "A")?;
    assert_eq!(answer, format!("NoError {address}"));
    assert_eq!(ask(&attacker, address, OTHER_PORT)?, "hello");
    Ok(())
}

#[test]
fn query_to_another_server_is_dropped_and_counted() -> Result<()> {
    let pod = held("allow: a.example, 10.213.0.0/16")?;
    let attacker = attacker(&pod)?;
    for by in ["query", "query-tcp"] {
        let before = denied(&pod)?;
        let server = SocketAddr::new(far().pod.ipv4()?, 53).to_string();
        let asked = attacker.exec(["probe", by, &server, "a.example", "A"])?;
        assert_ne!(asked.code, 0, "{}", asked.text());
        assert!(denied(&pod)? > before);
    }
    Ok(())
}

#[test]
fn answer_that_is_too_long_for_udp_comes_by_tcp() -> Result<()> {
    let many: Vec<IpAddr> = (1..=100).map(|n| [192, 0, 2, n].into()).collect();
    dns().set("many.example", &many);
    let pod = held("allow: many.example")?;
    let attacker = attacker(&pod)?;
    assert_eq!(query(&attacker, "many.example", "A")?, "truncated");
    let server = SocketAddr::new(gateway()?, 53).to_string();
    let answer = attacker.exec(["probe", "query-tcp", &server, "many.example", "A"])?;
    assert_eq!(answer.ok()?.line().split(' ').count(), 101);
    Ok(())
}

/// A name may be anybody's, so it does not open what only an address can.
#[test]
fn name_with_the_nodes_address_opens_nothing() -> Result<()> {
    let metadata: IpAddr = [169, 254, 169, 254].into();
    dns().set("rebound.example", &[gateway()?, metadata]);
    let pod = held("allow: rebound.example")?;
    let attacker = attacker(&pod)?;
    let answer = query(&attacker, "rebound.example", "A")?;
    assert!(answer.contains("169.254.169.254"), "{answer}");
    for address in [gateway()?, metadata] {
        let before = denied(&pod)?;
        ask(&attacker, address, 80)?;
        assert!(denied(&pod)? > before, "{address}");
    }
    Ok(())
}

#[test]
fn name_that_moves_is_reached_where_it_is_and_its_old_address_closes() -> Result<()> {
    let pod = held("allow: moving.example")?;
    let attacker = attacker(&pod)?;
    let moved = CriNode::shared().pod().runtime(Runtime::Runc).start()?;
    let server = moved.container("busybox");
    let server = server.args(["probe", "echo", &format!("[::]:{PORT}")]);
    let server = server.start()?;
    server.wait_for_output("listening")?;
    for address in [far().pod.ipv4()?, moved.ipv4()?] {
        dns().set("moving.example", &[address]);
        let answer = query(&attacker, "moving.example", "A")?;
        assert_eq!(answer, format!("NoError {address}"));
        assert_eq!(ask(&attacker, address, PORT)?, "hello");
    }
    // A connection that is there stays.
    let line = format!("nc {} {PORT}", moved.ipv4()?);
    let mut session = attacker.exec_streams(["sh", "-c", &line], false)?;
    session.write("before\n")?;
    session.wait_for("before\n")?;
    thread::sleep(SHORTEST_PIN);
    session.write("after\n")?;
    session.wait_for("after\n")?;
    for address in [far().pod.ipv4()?, moved.ipv4()?] {
        assert_eq!(ask(&attacker, address, PORT)?, "", "{address}");
    }
    Ok(())
}

#[test]
fn thousand_names_are_reached_to_the_last() -> Result<()> {
    let address = far().pod.ipv4()?;
    let names: Vec<_> = (0..1000).map(|n| format!("n{n}.example")).collect();
    dns().set("n999.example", &[address]);
    let pod = held(&format!("allow: {}", names.join(", ")))?;
    let attacker = attacker(&pod)?;
    let answer = query(&attacker, "n999.example", "A")?;
    assert_eq!(answer, format!("NoError {address}"));
    assert_eq!(ask(&attacker, address, PORT)?, "hello");
    Ok(())
}

#[test]
fn pod_whose_resolver_is_cut_off_is_closed() -> Result<()> {
    let address = far().pod.ipv4()?;
    dns().set("cut.example", &[address]);
    let pod = held("allow: cut.example")?;
    let attacker = attacker(&pod)?;
    let mut cut = Command::new("nsenter");
    cut.arg(format!("--net={}", pod.network_namespace()?.display()));
    let line = "for i in $(ip -o link | grep -o 'caissonr[0-9]*'); do ip link del $i; done";
    command::run(cut.args(["sh", "-c", line]), None, LIMIT)?.ok()?;
    assert_eq!(query(&attacker, "cut.example", "A")?, "");
    assert_eq!(ask(&attacker, address, PORT)?, "");
    assert!(!dns().was_asked("cut.example"));
    Ok(())
}

/// Prints the throughput of a stream out of the guest with a list and without. Takes the best of
/// five for each, measured in turn.
#[test]
fn traffic_of_a_guest_is_as_fast_with_a_list() -> Result<()> {
    const MIB: u32 = 96;
    let address = SocketAddr::new(far().pod.ipv4()?, 7000);
    let sink = far().pod.container("busybox");
    let sink = sink
        .args(["probe", "swallow", &address.to_string()])
        .start()?;
    sink.wait_for_output("listening")?;
    let pods = [
        held(&format!("allow: {address}, a.example"))?,
        held("open")?,
    ];
    let senders = [attacker(&pods[0])?, attacker(&pods[1])?];
    let mut best = [f64::MAX; 2];
    for _ in 0..5 {
        for (sender, best) in senders.iter().zip(&mut best) {
            let start = Instant::now();
            sender.sh(&format!("probe send {address} {MIB}"))?;
            *best = best.min(start.elapsed().as_secs_f64());
        }
    }
    let [with, without] = best.map(|seconds| f64::from(MIB) / seconds);
    println!("out of the guest: {with:.0} MiB/s with a list, {without:.0} MiB/s without");
    assert!(with > 0.75 * without, "{with} and {without} MiB/s");
    Ok(())
}

#[test]
fn pod_that_is_open_reaches_everybody() -> Result<()> {
    let pod = held("open")?;
    let attacker = attacker(&pod)?;
    for address in far().addresses()? {
        assert_eq!(ask(&attacker, address, OTHER_PORT)?, "hello", "{address}");
    }
    assert_eq!(shown(&pod)?, "open\ndenied: 0");
    Ok(())
}

#[test]
fn value_that_is_malformed_is_refused_with_the_reason() -> Result<()> {
    let error = held("allow: 10.0.0.1/8").err().context("it starts")?;
    let error = format!("{error:#}").replace("\\\"", "\"");
    let text = "annotation caisson.dev/egress: \"10.0.0.1/8\" has bits behind its prefix";
    assert!(error.contains(text), "{error}");
    Ok(())
}

#[test]
fn setting_of_the_node_holds_and_no_pod_widens_it() -> Result<()> {
    let node = CriNode::start_with(|config| {
        config["network"] = serde_json::json!({ "egress": "allow: 10.213.0.0/16:8080" });
    })?;
    node.image("busybox")?;
    let start = |egress| node.pod().annotation(EGRESS, egress).start();
    for (wider, what) in [
        ("open", "open"),
        ("allow: 10.0.0.0/8:8080", "10.0.0.0/8:8080"),
    ] {
        let error = format!("{:#}", start(wider).err().context("it starts")?);
        let text = format!("{what} is more than the node allows");
        assert!(error.contains(&text), "{error}");
    }
    let pod = node.pod().start()?;
    let shown = |pod: &Pod<'_>| {
        let mut command = caisson(&node)?;
        command.args(["egress", pod.id()]);
        anyhow::Ok(command::run(&mut command, None, LIMIT)?.ok()?.text())
    };
    assert!(shown(&pod)?.starts_with("allow: 10.213.0.0/16:8080\n"));
    let narrower = start("deny")?;
    assert!(shown(&narrower)?.starts_with("deny\n"));
    Ok(())
}

/// The other side: a pod of runc with servers at [`PORT`] and [`OTHER_PORT`], which give back what
/// they get.
struct Far {
    pod: &'static Pod<'static>,
    server: Container<'static>,
    _other: Container<'static>,
}

impl Far {
    fn addresses(&self) -> Result<Vec<IpAddr>> {
        self.pod.addresses()
    }

    /// Returns entries for both of its addresses at a port.
    fn entries(&self, port: u16) -> String {
        let addresses = self.addresses().unwrap_or_default().into_iter();
        let entries = addresses.map(|address| SocketAddr::new(address, port).to_string());
        entries.collect::<Vec<_>>().join(", ")
    }

    /// Connects to an address and returns what comes back.
    fn ask(&self, address: IpAddr, port: u16) -> Result<String> {
        ask(&self.server, address, port)
    }
}

fn far() -> &'static Far {
    static FAR: OnceLock<Far> = OnceLock::new();
    let start = || -> Result<Far> {
        let pod = CriNode::shared().shared_pod(Runtime::Runc)?;
        let server = |port| {
            let address = format!("[::]:{port}");
            let server = pod.container("busybox").args(["probe", "echo", &address]);
            let server = server.start()?;
            server.wait_for_output("listening")?;
            anyhow::Ok(server)
        };
        Ok(Far {
            pod,
            server: server(PORT)?,
            _other: server(OTHER_PORT)?,
        })
    };
    FAR.get_or_init(|| start().unwrap_or_else(|error| panic!("no other side: {error:#}")))
}

/// Returns the node's address on the pods' bridge.
fn gateway() -> Result<IpAddr> {
    let IpAddr::V4(address) = far().pod.ipv4()? else {
        unreachable!("it is IPv4");
    };
    let [a, b, c, _] = address.octets();
    Ok([a, b, c, 1].into())
}

/// The server of DNS that pods have, on the node.
fn dns() -> &'static Dns {
    static DNS: OnceLock<Dns> = OnceLock::new();
    let start = || Dns::start(gateway()?);
    DNS.get_or_init(|| start().unwrap_or_else(|error| panic!("no DNS: {error:#}")))
}

/// Asks the pod's server for the records of a name. Returns the response code and addresses, or
/// nothing if nobody answers.
fn query(from: &Container<'_>, name: &str, kind: &str) -> Result<String> {
    let server = SocketAddr::new(gateway()?, 53).to_string();
    let output = from.exec(["probe", "query", &server, name, kind])?;
    Ok(match output.code {
        0 => output.line(),
        _ => String::new(),
    })
}

/// Frames from a pod to the other side, in hexadecimal digits.
struct Frames {
    mac: String,
    own4: String,
    own6: String,
    far4: String,
    far6: String,
}

impl Frames {
    fn of(pod: &Pod<'_>, attacker: &Container<'_>) -> Result<Self> {
        let digits = |address: IpAddr| match address {
            IpAddr::V4(address) => hex::encode(address.octets()),
            IpAddr::V6(address) => hex::encode(address.octets()),
        };
        let mac = attacker.sh("cat /sys/class/net/eth0/address")?;
        Ok(Self {
            mac: mac.replace(':', ""),
            own4: digits(pod.ipv4()?),
            own6: digits(pod.ipv6()?),
            far4: digits(far().pod.ipv4()?),
            far6: digits(far().pod.ipv6()?),
        })
    }

    fn ethernet(&self, rest: &str) -> String {
        format!("ffffffffffff{}{rest}", self.mac)
    }

    fn ipv4(&self, fragment: &str, protocol: &str, payload: &str) -> String {
        self.ipv4_from(&self.own4, fragment, protocol, payload)
    }

    fn ipv4_from(&self, source: &str, fragment: &str, protocol: &str, payload: &str) -> String {
        let (length, far) = (20 + payload.len() / 2, &self.far4);
        self.ethernet(&format!(
            "08004500{length:04x}0000{fragment}40{protocol}0000{source}{far}{payload}"
        ))
    }

    fn ipv6(&self, next: &str, payload: &str) -> String {
        self.ipv6_from(&self.own6, next, payload)
    }

    fn ipv6_from(&self, source: &str, next: &str, payload: &str) -> String {
        let (length, far) = (payload.len() / 2, &self.far6);
        self.ethernet(&format!(
            "86dd60000000{length:04x}{next}ff{source}{far}{payload}"
        ))
    }
}

/// Returns a UDP packet to a port, without data.
fn udp(port: u16) -> String {
    format!("9000{port:04x}00080000")
}

/// Sends frames from the guest.
fn send(attacker: &Container<'_>, frames: &[String]) -> Result<()> {
    let words = ["probe", "send-frames", "eth0"].map(str::to_owned);
    let words = words.into_iter().chain(frames.iter().cloned());
    attacker.exec(words)?.ok().map(drop)
}

/// Starts a pod with an egress, which may hold privileged containers.
fn held(egress: &str) -> Result<Pod<'static>> {
    let server = gateway()?.to_string();
    dns();
    let pod = CriNode::shared().pod().privileged();
    let pod = pod.annotation(EGRESS, egress).configure(|config| {
        config.dns_config.get_or_insert_default().servers = vec![server];
    });
    pod.start()
}

/// Starts root in a privileged container of the guest.
fn attacker<'p>(pod: &'p Pod<'static>) -> Result<Container<'p>> {
    let container = pod.container("busybox").privileged();
    container.args(["sleep", "100000"]).start()
}

/// Connects to an address and returns what comes back to `hello`; nothing if it is not reached.
fn ask(from: &Container<'_>, address: IpAddr, port: u16) -> Result<String> {
    let address = SocketAddr::new(address, port);
    let line = format!("timeout 4 probe ask {address} hello");
    let output = from.exec(["sh", "-c", &line])?;
    Ok(match output.code {
        0 => output.line(),
        _ => String::new(),
    })
}

fn pings(from: &Container<'_>, address: IpAddr) -> Result<bool> {
    let ping = ["ping", "-c", "2", "-w", "4", &address.to_string()];
    Ok(from.exec(ping)?.code == 0)
}

/// Returns how many frames of a pod its egress has dropped.
fn denied(pod: &Pod<'_>) -> Result<u64> {
    let shown = shown(pod)?;
    let number = shown.lines().find_map(|line| line.strip_prefix("denied: "));
    Ok(number.context("no number")?.parse()?)
}

/// Returns what `caisson egress` prints of a pod.
fn shown(pod: &Pod<'_>) -> Result<String> {
    let mut command = caisson(pod.node())?;
    command.args(["egress", pod.id()]);
    Ok(command::run(&mut command, None, LIMIT)?.ok()?.line())
}
