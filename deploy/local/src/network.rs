//! Makes the network of a cluster: a namespace of its own, so that ports are fixed and two clusters
//! never meet, and a veth pair through which the machine reaches it.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::{layout::Layout, process};

/// The subnet of the pods, inside.
pub const POD_SUBNET: &str = "10.244.0.0/24";
/// The subnet of Services, inside.
pub const SERVICE_SUBNET: &str = "10.96.0.0/16";
/// The Service `kubernetes`.
pub const API_SERVICE: &str = "10.96.0.1";
/// The Service `kube-dns`.
pub const DNS_SERVICE: &str = "10.96.0.10";
/// The prefix of the pairs' names on the machine. A name that exists belongs to another cluster.
const PAIR: &str = "caissonlocal";
/// The file with the name of the pair's end on the machine.
const NEAR: &str = "link";

/// Makes the namespace and the pair. Returns the node's address, which the machine can reach too.
pub fn create(layout: &Layout) -> Result<String> {
    let name = layout.mark();
    ip(&["netns", "add", name])?;
    let number = (0..100)
        .find(|number| {
            let near = format!("{PAIR}{number}");
            ip(&[
                "link", "add", &near, "type", "veth", "peer", "name", "node0", "netns", name,
            ])
            .is_ok()
        })
        .with_context(|| format!("no network interface {PAIR}0 to {PAIR}99 could be made"))?;
    let near = format!("{PAIR}{number}");
    fs::write(layout.path(NEAR), &near)?;
    let (machine, node) = (format!("10.215.{number}.1"), format!("10.215.{number}.2"));
    ip(&["addr", "add", &format!("{machine}/30"), "dev", &near])?;
    ip(&["link", "set", &near, "up"])?;
    ip(&[
        "-n",
        name,
        "addr",
        "add",
        &format!("{node}/30"),
        "dev",
        "node0",
    ])?;
    ip(&["-n", name, "link", "set", "lo", "up"])?;
    ip(&["-n", name, "link", "set", "node0", "up"])?;
    // The kernel needs a route to an address before kube-proxy's rules replace the address.
    ip(&["-n", name, "route", "add", "default", "via", &machine])?;
    let sysctl = [
        "net.ipv4.ip_forward=1",
        "net.ipv6.conf.all.forwarding=1",
        // What a pod sends to a Service whose other end is on the same bridge has to pass
        // kube-proxy's rules.
        "net.bridge.bridge-nf-call-iptables=1",
    ];
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", name, "sysctl", "-q", "-w"])
        .args(sysctl);
    process::output(&mut command, "")?;
    Ok(node)
}

/// Removes what [`create`] made, and with the namespace all interfaces in it. It is no error if
/// there is nothing.
pub fn remove(layout: &Layout) -> Result<()> {
    // The interface would disappear with the namespace, but later.
    if let Ok(near) = fs::read_to_string(layout.path(NEAR)) {
        if Path::new("/sys/class/net").join(&near).exists() {
            ip(&["link", "del", &near])?;
        }
    }
    if layout.network_namespace().exists() {
        ip(&["netns", "del", layout.mark()])?;
    }
    Ok(())
}

/// Writes the configuration of the pods' network.
pub fn write_cni(layout: &Layout) -> Result<()> {
    let dir = layout.path("cni");
    fs::create_dir_all(&dir)?;
    let conf = serde_json::json!({
        "cniVersion": "0.4.0",
        "name": layout.mark(),
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                // Anything beyond the node, such as a server on this machine, has no route back to
                // a pod.
                "ipMasq": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": layout.path("cni-addresses"),
                    "ranges": [[{ "subnet": POD_SUBNET }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    fs::write(dir.join("10-bridge.conflist"), conf.to_string())?;
    Ok(())
}

/// Enters the cluster's network; what this thread starts then runs in it.
pub fn enter(namespace: &Path) -> Result<()> {
    let file = fs::File::open(namespace).with_context(|| namespace.display().to_string())?;
    nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("enter {}", namespace.display()))
}

fn ip(args: &[&str]) -> Result<()> {
    process::output(Command::new("ip").args(args), "").map(drop)
}
