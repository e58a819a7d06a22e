//! Stands in for a node's network: a bridge in a network namespace of its own, and pod namespaces
//! connected to it as CNI's `bridge` plugin leaves them. Everything here is named after the test's
//! node and removed when dropped.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    command::{self, Output, Running},
    Node,
};

/// The longest time that a command in a namespace may take.
const LIMIT: Duration = Duration::from_secs(60);
/// The bridge's IPv4 address.
pub const GATEWAY: &str = "10.9.0.1";
/// The bridge's IPv6 address.
pub const GATEWAY6: &str = "fd09::1";

static NUMBER: AtomicU32 = AtomicU32::new(1);

/// A named network namespace (ip-netns(8)).
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Creates a namespace with `lo` up.
    pub fn new(node: &Node) -> Result<Self> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}", node.tag());
        run(Command::new("ip").args(["netns", "add", &name]))?.ok()?;
        let namespace = Self { name };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Returns its name in the list of `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the path of its file.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Returns the value of `ctr run --with-ns`.
    pub fn flag(&self) -> String {
        format!("network:{}", self.path().display())
    }

    /// Runs `ip` inside the namespace. `words` is split at spaces, so no argument may contain
    /// any.
    pub fn ip(&self, words: &str) -> Result<String> {
        let mut ip = Command::new("ip");
        ip.args(["-n", &self.name]).args(words.split(' '));
        Ok(run(&mut ip)?
            .ok()
            .with_context(|| format!("ip {words}"))?
            .text())
    }

    /// Runs a shell line inside the namespace and waits for its end.
    pub fn sh(&self, line: &str) -> Result<Output> {
        run(&mut self.command(line))
    }

    /// Starts a shell line inside the namespace, which keeps running beside the test.
    pub fn spawn(&self, line: &str) -> Result<Running> {
        command::spawn(&mut self.command(line), None)
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("ip");
        // The applets are then the same as in the images.
        let shell = ["netns", "exec", &self.name, "busybox", "sh", "-c", line];
        command.args(shell);
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = run(Command::new("ip").args(["netns", "del", &self.name]));
    }
}

/// The bridge `br0`, with the addresses [`GATEWAY`] and [`GATEWAY6`].
pub struct Bridge {
    /// The namespace of the bridge, which stands for the host's own.
    pub host: Namespace,
}

impl Bridge {
    pub fn new(node: &Node) -> Result<Self> {
        let host = Namespace::new(node)?;
        host.ip("link add br0 type bridge")?;
        host.ip(&format!("addr add {GATEWAY}/24 dev br0"))?;
        host.ip(&format!("addr add {GATEWAY6}/64 dev br0 nodad"))?;
        host.ip("link set br0 up")?;
        Ok(Self { host })
    }

    /// Creates a pod's namespace whose `eth0` has 10.9.0.`number` and fd09::`number`, with default
    /// routes.
    pub fn pod(&self, node: &Node, number: u8) -> Result<Namespace> {
        let pod = Namespace::new(node)?;
        self.connect(&pod, "eth0", &format!("v{number}"), 1500)?;
        pod.ip(&format!("addr add 10.9.0.{number}/24 dev eth0"))?;
        pod.ip(&format!("addr add fd09::{number}/64 dev eth0 nodad"))?;
        pod.ip(&format!("route add default via {GATEWAY}"))?;
        pod.ip(&format!("-6 route add default via {GATEWAY6}"))?;
        Ok(pod)
    }

    /// Adds a veth pair with both ends up: `name` in the pod, `port` at the bridge.
    pub fn connect(&self, pod: &Namespace, name: &str, port: &str, mtu: u32) -> Result<()> {
        let host = self.host.name();
        pod.ip(&format!(
            "link add {name} mtu {mtu} type veth peer name {port} mtu {mtu} netns {host}"
        ))?;
        self.host.ip(&format!("link set {port} master br0"))?;
        self.host.ip(&format!("link set {port} up"))?;
        pod.ip(&format!("link set {name} up"))?;
        Ok(())
    }
}

fn run(command: &mut Command) -> Result<Output> {
    command::run(command, None, LIMIT)
}
