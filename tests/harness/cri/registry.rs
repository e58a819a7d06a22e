//! Images to be pulled under their public names: a registry on loopback, to which a `hosts.toml` sends
//! containerd for every registry that it would look for in the internet.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

use super::CriNode;
use crate::registry::Registry as Server;

/// The folder of containerd's `config_path`.
pub fn hosts_dir(dir: &Path) -> PathBuf {
    dir.join("hosts")
}

/// A running registry. Dropped, it ends.
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

    /// Host and port, by which any client gets the images without a `hosts.toml`, since it is loopback.
    pub fn address(&self) -> &str {
        self.server.address()
    }

    /// Makes an image of [`crate::fixture`] available as, say, `docker.io/library/busybox:1.36`.
    pub fn publish(&self, fixture: &str, name: &str) -> Result<()> {
        let full = self.node.image_in(super::NAMESPACE, fixture)?;
        self.server
            .push(self.node.ctr_in(super::NAMESPACE), &full, name)
    }
}
