//! Configures the CNI network of a node: its own bridge with its own IPv4 and IPv6 subnets, so that
//! two runs never conflict.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{ensure, Context, Result};
use serde_json::json;

use crate::{command, paths::names, sweep};

/// The folder of the plugins in Debian's `containernetworking-plugins`.
pub const PLUGINS: &str = "/usr/lib/cni";
/// The folder in which libcni keeps the plugins' results. containerd's configuration can't change
/// it.
const RESULTS: &str = "/var/lib/cni/results";
/// The folder in which host-local keeps a network's addresses, in a subfolder named after the
/// network. The path could be changed, but containerd's own tests look for the addresses here.
const ADDRESSES: &str = "/var/lib/cni/networks";
/// The name of the configuration's file.
const FILE: &str = "10-bridge.conflist";
/// `IFNAMSIZ` without the NUL, netdevice(7).
const NAME_MAX: usize = 15;

/// Returns the folder with the network's configuration.
pub fn conf_dir(dir: &Path) -> PathBuf {
    dir.join("cni")
}

/// Returns the file of the network's configuration.
pub fn conf_file(dir: &Path) -> PathBuf {
    conf_dir(dir).join(FILE)
}

/// Claims a subnet and writes the network's configuration. The bridge's name is the node's tag.
pub fn configure(tag: &str, dir: &Path) -> Result<()> {
    ensure!(
        Path::new(PLUGINS).join("bridge").exists(),
        "apt-get install containernetworking-plugins"
    );
    ensure!(tag.len() <= NAME_MAX, "{tag} is no name for a bridge");
    // A bridge of a run that had another `/tmp` may still be there. Its route would win.
    let number = sweep::claim_number(dir, "subnet", 255, &used_subnets()?)?;
    let conf = json!({
        "cniVersion": "0.4.0",
        "name": tag,
        "plugins": [{
            "type": "bridge",
            "bridge": tag,
            "isGateway": true,
            "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "ranges": [
                    [{ "subnet": format!("10.213.{number}.0/24") }],
                    [{ "subnet": format!("fd00:ca15:{number:x}::/64") }],
                ],
                "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
            },
        }],
    });
    fs::create_dir_all(conf_dir(dir))?;
    fs::write(conf_file(dir), conf.to_string())?;
    Ok(())
}

/// Returns the numbers of the subnets in which an interface of this machine has an address.
fn used_subnets() -> Result<Vec<u32>> {
    let addresses = nix::ifaddrs::getifaddrs().context("list the machine's addresses")?;
    let addresses = addresses.filter_map(|interface| interface.address);
    Ok(addresses
        .filter_map(|address| match address.as_sockaddr_in()?.ip().octets() {
            [10, 213, number, _] => Some(u32::from(number)),
            _ => None,
        })
        .collect())
}

/// Returns the node's side of every existing pod network, and what the plugins remember of it.
pub fn traces(tag: &str) -> Vec<String> {
    let ports = names(&Path::new("/sys/class/net").join(tag).join("brif"));
    let ports = ports.into_iter().map(|port| format!("{tag} port {port}"));
    let results = results(tag).into_iter();
    ports
        .chain(results.map(|path| path.display().to_string()))
        .collect()
}

/// Removes what a node leaves outside of its folder. A missing bridge is no error.
pub fn remove(tag: &str) -> Result<()> {
    for path in results(tag) {
        let _ = fs::remove_file(path);
    }
    let _ = fs::remove_dir_all(Path::new(ADDRESSES).join(tag));
    if !Path::new("/sys/class/net").join(tag).exists() {
        return Ok(());
    }
    let mut ip = Command::new("ip");
    let output = command::run(
        ip.args(["link", "delete", tag]),
        None,
        Duration::from_secs(10),
    )?;
    output.ok().map(drop).context("remove the bridge")
}

/// Returns the result files of a node. A result names its network, which is the tag, or the network
/// namespace, which is below the node's folder.
fn results(tag: &str) -> Vec<PathBuf> {
    let results = Path::new(RESULTS);
    let paths = names(results).into_iter().map(|name| results.join(name));
    paths
        .filter(|path| fs::read_to_string(path).is_ok_and(|text| text.contains(tag)))
        .collect()
}
