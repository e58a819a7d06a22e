//! A real registry on loopback: Debian's `docker-registry`.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{ensure, Context, Result};

use crate::command;

const PROGRAM: &str = "/usr/bin/docker-registry";

/// A running registry. Dropped, it ends.
pub struct Registry {
    address: String,
    process: Child,
}

impl Registry {
    /// Starts a registry with nothing in it, which keeps all that it has in `dir`.
    pub fn start(dir: &Path) -> Result<Self> {
        ensure!(
            Path::new(PROGRAM).exists(),
            "apt-get install docker-registry"
        );
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
            address: String::new(),
            process,
        };
        registry.address = command::poll("the registry", Duration::from_secs(20), || {
            address(&fs::read_to_string(&log).ok()?)
        })?;
        Ok(registry)
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Registry {
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
