//! Images to be pulled under their public names: Debian's `docker-registry` on loopback, to which a `hosts.toml` sends
//! containerd for every registry that it would look for in the internet.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{ensure, Context, Result};

use super::CriNode;
use crate::command;

/// Whose images this registry has. A short name such as `busybox` is docker.io's.
const PUBLIC: [&str; 5] = [
    "docker.io",
    "registry.k8s.io",
    "ghcr.io",
    "quay.io",
    "mcr.microsoft.com",
];
const PROGRAM: &str = "/usr/bin/docker-registry";

/// The folder of containerd's `config_path`.
pub fn hosts_dir(dir: &Path) -> PathBuf {
    dir.join("hosts")
}

/// A running registry. Dropped, it ends.
pub struct Registry<'n> {
    node: &'n CriNode,
    address: String,
    process: Child,
}

impl<'n> Registry<'n> {
    /// Starts a registry without any image and sends the node's containerd to it.
    pub fn start(node: &'n CriNode) -> Result<Self> {
        ensure!(
            Path::new(PROGRAM).exists(),
            "apt-get install docker-registry"
        );
        let dir = node.dir().join("registry");
        fs::create_dir_all(&dir)?;
        let config = dir.join("config.yml");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog:\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
                 http:\n  addr: 127.0.0.1:0\n",
                dir.join("data").display()
            ),
        )?;
        let log = dir.join("log");
        let output = File::create(&log)?;
        let process = Command::new(PROGRAM)
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("start docker-registry")?;
        let mut registry = Self {
            node,
            address: String::new(),
            process,
        };
        registry.address = command::poll("the registry", Duration::from_secs(20), || {
            address(&fs::read_to_string(&log).ok()?)
        })?;
        registry.send_containerd_here()?;
        Ok(registry)
    }

    /// Host and port, by which any client gets the images without a `hosts.toml`, since it is loopback.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Makes an image of [`crate::fixture`] available as, say, `docker.io/library/busybox:1.36`.
    pub fn publish(&self, fixture: &str, name: &str) -> Result<()> {
        let full = self.node.image_in(super::NAMESPACE, fixture)?;
        let (_, path) = name
            .split_once('/')
            .context("no registry in the image's name")?;
        let here = format!("{}/{path}", self.address);
        let mut ctr = self.node.ctr_in(super::NAMESPACE);
        ctr.args(["images", "push", "--plain-http", &here, &full]);
        let output = command::run(&mut ctr, None, Duration::from_secs(120))?;
        output
            .ok()
            .map(drop)
            .with_context(|| format!("push {here}"))
    }

    fn send_containerd_here(&self) -> Result<()> {
        for name in PUBLIC {
            let dir = hosts_dir(self.node.dir()).join(name);
            fs::create_dir_all(&dir)?;
            let here = format!("http://{}", self.address);
            fs::write(
                dir.join("hosts.toml"),
                format!("server = \"{here}\"\n\n[host.\"{here}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"),
            )?;
        }
        Ok(())
    }
}

impl Drop for Registry<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn address(log: &str) -> Option<String> {
    let (_, rest) = log.split_once("listening on ")?;
    let end = rest.find(|c: char| !(c.is_ascii_digit() || ".:".contains(c)))?;
    Some(rest[..end].to_owned())
}

#[cfg(test)]
mod tests {
    #[test]
    fn address_is_what_the_registry_logged() {
        let log = "level=info msg=\"listening on 127.0.0.1:41213\" go.version=go1.19.8\n";
        assert_eq!(super::address(log).as_deref(), Some("127.0.0.1:41213"));
        assert_eq!(super::address("level=info msg=\"starting\""), None);
    }
}
