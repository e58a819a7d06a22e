//! Provides what critest needs on a node beyond what the other suites have there: images by their
//! public names, and ports of the machine that lead to a pod.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};
use caisson_tests::{
    command,
    cri::{network, registry::Registry, CriNode},
};
use serde_json::{json, Value};

/// The registry of images that the project itself makes.
const STAGING: &str = "gcr.io/k8s-staging-cri-tools";
/// Those images, and for each the image that is served. Further, critest pulls `test-image-digest`
/// by a digest, which no other image can have.
const OWN_IMAGES: [(&str, &str); 15] = [
    ("hostnet-nginx-amd64:latest", "httpd-12003"),
    ("test-image-1:latest", "marked-1"),
    ("test-image-2:latest", "marked-2"),
    ("test-image-3:latest", "marked-3"),
    ("test-image-latest:latest", "marked-latest"),
    ("test-image-predefined-group:latest", "predefined-group"),
    ("test-image-tag:all", "marked-all"),
    ("test-image-tag:test", "marked-test"),
    ("test-image-tags:1", "marked-same"),
    ("test-image-tags:2", "marked-same"),
    ("test-image-tags:3", "marked-same"),
    ("test-image-user-uid:latest", "user-uid"),
    ("test-image-user-uid-group:latest", "user-uid-group"),
    ("test-image-user-username:latest", "user-name"),
    ("test-image-user-username-group:latest", "user-name-group"),
];
/// The registry of the images of Kubernetes' end-to-end tests, of which critest takes some.
const E2E: &str = "registry.k8s.io/e2e-test-images";
/// Those images, and for each the image that is served.
const E2E_IMAGES: [(&str, &str); 4] = [
    ("busybox:1.29-2", "hub-busybox"),
    ("httpd:2.4.39-4", "httpd"),
    ("nginx:1.14-2", "nginx"),
    ("nonewprivs:1.3", "nonewprivs"),
];

/// How long a change of the machine's rules may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Serves the tests' images.
pub fn publish(registry: &Registry) -> Result<()> {
    for (from, images) in [(STAGING, &OWN_IMAGES[..]), (E2E, &E2E_IMAGES[..])] {
        for (name, fixture) in images {
            registry.publish(fixture, &format!("{from}/{name}"))?;
        }
    }
    Ok(())
}

/// Returns the accelerator of a node's VMs.
pub fn accelerator(node: &CriNode) -> String {
    let probed = fs::read(node.store_dir().join("accelerator.json")).unwrap_or_default();
    let probed: Value = serde_json::from_slice(&probed).unwrap_or_default();
    let found = probed
        .pointer("/result/accelerator")
        .and_then(Value::as_str);
    let configured = || std::env::var("CAISSON_TEST_ACCELERATOR").ok();
    found
        .map(str::to_owned)
        .or_else(configured)
        .unwrap_or_else(|| "unknown".into())
}

/// Ports of the machine that lead to pods, by the plugin `portmap`. Dropping this removes what the
/// plugin leaves in the machine's rules.
pub struct HostPorts {
    /// The programs whose tables had nothing of the plugin's.
    clean: Vec<&'static str>,
}

impl HostPorts {
    const TABLES: [&str; 2] = ["iptables", "ip6tables"];
    /// With this the names of the plugin's chains begin.
    const CHAINS: &str = "CNI-HOSTPORT-";

    /// Adds the plugin to a node's network and restarts its containerd.
    pub fn open(node: &CriNode) -> Result<Self> {
        let mut clean = Vec::new();
        for program in Self::TABLES {
            let rules = nat(program, "-S").context("apt-get install iptables")?;
            if !rules.contains(Self::CHAINS) {
                clean.push(program);
            }
        }
        add_plugin(
            node.dir(),
            json!({ "type": "portmap", "capabilities": { "portMappings": true } }),
        )?;
        node.stop_containerd(false)?;
        node.start_containerd()?;
        Ok(Self { clean })
    }
}

impl Drop for HostPorts {
    fn drop(&mut self) {
        for program in &self.clean {
            if let Err(error) = remove_chains(program) {
                eprintln!("{program}: {error:#}");
            }
        }
    }
}

fn remove_chains(program: &str) -> Result<()> {
    let rules = nat(program, "-S")?;
    let jumps = rules
        .lines()
        .filter(|rule| rule.contains(HostPorts::CHAINS));
    for rule in jumps.filter_map(|rule| rule.strip_prefix("-A ")) {
        nat(program, &format!("-D {rule}"))?;
    }
    let chains = rules.lines().filter_map(|rule| rule.strip_prefix("-N "));
    for chain in chains.filter(|chain| chain.starts_with(HostPorts::CHAINS)) {
        nat(program, &format!("-X {chain}"))?;
    }
    Ok(())
}

/// Runs `iptables` or `ip6tables` on the table of address translation. The arguments are text for a
/// shell, as `-S` prints them.
fn nat(program: &str, args: &str) -> Result<String> {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{program} --wait --table nat {args}")]);
    Ok(command::run(&mut shell, None, LIMIT)?.ok()?.text())
}

/// Adds a plugin to a node's network.
fn add_plugin(dir: &Path, plugin: Value) -> Result<()> {
    let path = network::conf_file(dir);
    let mut conf: Value = serde_json::from_slice(&fs::read(&path)?)?;
    let plugins = conf["plugins"].as_array_mut();
    plugins.context("a network without plugins")?.push(plugin);
    fs::write(&path, conf.to_string()).with_context(|| path.display().to_string())
}
