//! A real registry, Debian's `docker-registry`, on loopback by default.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{ensure, Context, Result};

use crate::{command, node::LIMIT};

const PROGRAM: &str = "/usr/bin/docker-registry";
/// The registries that this one stands in for. A short name such as `busybox` is docker.io's.
const PUBLIC: [&str; 6] = [
    "docker.io",
    "gcr.io",
    "registry.k8s.io",
    "ghcr.io",
    "quay.io",
    "mcr.microsoft.com",
];

/// A running registry. Dropping it ends it.
pub struct Registry {
    address: String,
    process: Child,
}

impl Registry {
    /// Starts an empty registry that keeps its data in `dir`.
    pub fn start(dir: &Path) -> Result<Self> {
        Self::start_as(Command::new(PROGRAM), "127.0.0.1", dir)
    }

    /// Starts a registry at this IPv4 address of the machine, with `name=value` in its process's
    /// environment.
    pub fn start_marked(address: &str, dir: &Path, (name, value): (&str, &Path)) -> Result<Self> {
        let mut program = Command::new(PROGRAM);
        program.env(name, value);
        Self::start_as(program, address, dir)
    }

    fn start_as(mut program: Command, address: &str, dir: &Path) -> Result<Self> {
        ensure!(
            Path::new(PROGRAM).exists(),
            "apt-get install docker-registry"
        );
        let config = dir.join("config.yml");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog:\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
                 http:\n  addr: {address}:0\n",
                dir.join("data").display()
            ),
        )?;
        let log = dir.join("log");
        let output = File::create(&log)?;
        let process = program
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("start docker-registry")?;
        let mut registry = Self {
            address: String::new(),
            process,
        };
        registry.address = command::poll("the registry", LIMIT, || {
            logged_address(&fs::read_to_string(&log).ok()?)
        })?;
        Ok(registry)
    }

    /// Returns host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Writes into `hosts`, the folder of containerd's `config_path`, that containerd is to use
    /// this registry in place of every registry that it would look for on the internet.
    pub fn stand_in(&self, hosts: &Path) -> Result<()> {
        let here = format!("http://{}", self.address);
        for name in PUBLIC {
            let dir = hosts.join(name);
            fs::create_dir_all(&dir)?;
            fs::write(
                dir.join("hosts.toml"),
                format!("server = \"{here}\"\n\n[host.\"{here}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"),
            )?;
        }
        Ok(())
    }

    /// Makes an image that a containerd has as `full` available under a public name such as
    /// `docker.io/library/busybox:1.36`. `ctr` is a command for that containerd and the image's
    /// namespace, without further arguments.
    pub fn push(&self, mut ctr: Command, full: &str, name: &str) -> Result<()> {
        let (_, path) = name
            .split_once('/')
            .context("no registry in the image's name")?;
        let here = format!("{}/{path}", self.address);
        ctr.args(["images", "push", "--plain-http", &here, full]);
        let output = command::run(&mut ctr, None, LIMIT)?;
        output
            .ok()
            .map(drop)
            .with_context(|| format!("push {here}"))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn logged_address(log: &str) -> Option<String> {
    let (_, rest) = log.split_once("listening on ")?;
    let end = rest.find(|c: char| !(c.is_ascii_digit() || ".:".contains(c)))?;
    Some(rest[..end].to_owned())
}

#[cfg(test)]
mod tests {
    #[test]
    fn address_is_what_the_registry_logged() {
        let log = "level=info msg=\"listening on 127.0.0.1:41213\" go.version=go1.19.8\n";
        assert_eq!(
            super::logged_address(log).as_deref(),
            Some("127.0.0.1:41213")
        );
        assert_eq!(super::logged_address("level=info msg=\"starting\""), None);
    }
}
