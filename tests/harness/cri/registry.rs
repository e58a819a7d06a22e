//! Serves images to be pulled under their public names. The registry is on loopback, and a
//! `hosts.toml` sends containerd to it in place of every registry that it would look for on the
//! internet.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

use super::CriNode;
use crate::registry::Registry as Server;

/// Returns the folder of containerd's `config_path`.
pub fn hosts_dir(dir: &Path) -> PathBuf {
    dir.join("hosts")
}

/// A running registry. Dropping it ends it.
pub struct Registry<'n> {
    node: &'n CriNode,
    server: Server,
}

impl<'n> Registry<'n> {
    /// Starts a registry without any image and sends the node's containerd to it.
    pub fn start(node: &'n CriNode) -> Result<Self> {
        let dir = node.dir().join("registry");
        fs::create_dir_all(&dir)?;
        let server = Server::start(&dir)?;
        server.stand_in(&hosts_dir(node.dir()))?;
        Ok(Self { node, server })
    }

    /// Returns host and port. Any client can pull from this address without a `hosts.toml`, since
    /// it is on loopback.
    pub fn address(&self) -> &str {
        self.server.address()
    }

    /// Makes an image of [`crate::fixture`] available under a public name such as
    /// `docker.io/library/busybox:1.36`. CRI has the image only when it has pulled it.
    pub fn publish(&self, fixture: &str, name: &str) -> Result<()> {
        let full = self.node.image_in(self.node.tag(), fixture)?;
        self.server.push(self.node.ctr_command(), &full, name)
    }
}
