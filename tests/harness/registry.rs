//! A real registry, Debian's `docker-registry`, on loopback by default.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{ensure, Context, Result};
use serde_json::json;

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

/// The user and the password that a private registry asks for.
pub const LOGIN: (&str, &str) = ("reader", "open-sesame");
/// [`LOGIN`] as a file of `htpasswd -B`, the one kind of hash that the registry takes.
const HTPASSWD: &str = "reader:$2b$04$xFY/TLOJbVpuSubNzqtWeObtXChS/PeNvU54U86P.WjiY6kP0kRY6\n";

/// A running registry. Dropping it ends it.
pub struct Registry {
    address: String,
    process: Child,
    private: bool,
}

/// What a registry is started with beside its folder.
pub struct Options<'o> {
    /// The IPv4 address of the machine at which it listens.
    pub address: &'o str,
    /// A variable of its process's environment, as name and value.
    pub mark: Option<(&'o str, &'o Path)>,
    /// Whether it answers only who shows [`LOGIN`].
    pub private: bool,
}

impl Registry {
    /// Starts an empty registry on loopback that keeps its data in `dir`.
    pub fn start(dir: &Path) -> Result<Self> {
        let options = Options {
            address: "127.0.0.1",
            mark: None,
            private: false,
        };
        Self::start_with(dir, &options)
    }

    /// Starts an empty registry that keeps its data in `dir`.
    pub fn start_with(dir: &Path, options: &Options<'_>) -> Result<Self> {
        ensure!(
            Path::new(PROGRAM).exists(),
            "apt-get install docker-registry"
        );
        let mut settings = json!({
            "version": 0.1,
            "log": { "accesslog": { "disabled": true } },
            "storage": { "filesystem": { "rootdirectory": dir.join("data") } },
            "http": { "addr": format!("{}:0", options.address) },
        });
        if options.private {
            let users = dir.join("htpasswd");
            fs::write(&users, HTPASSWD)?;
            settings["auth"] = json!({ "htpasswd": { "realm": "tests", "path": users } });
        }
        // JSON is YAML.
        let config = dir.join("config.yml");
        fs::write(&config, settings.to_string())?;
        let log = dir.join("log");
        let output = File::create(&log)?;
        let process = Command::new(PROGRAM)
            .envs(options.mark)
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
            private: options.private,
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
        PUBLIC.iter().try_for_each(|name| self.serve(hosts, name))
    }

    /// Writes into `hosts` that containerd is to use this registry under its own name, without TLS.
    pub fn serve_itself(&self, hosts: &Path) -> Result<()> {
        self.serve(hosts, &self.address)
    }

    fn serve(&self, hosts: &Path, name: &str) -> Result<()> {
        let here = format!("http://{}", self.address);
        let dir = hosts.join(name);
        fs::create_dir_all(&dir)?;
        fs::write(
            dir.join("hosts.toml"),
            format!("server = \"{here}\"\n\n[host.\"{here}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"),
        )?;
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
        ctr.args(["images", "push", "--plain-http"]);
        if self.private {
            ctr.args(["--user", &format!("{}:{}", LOGIN.0, LOGIN.1)]);
        }
        ctr.args([&here, full]);
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
