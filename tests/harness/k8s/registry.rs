//! A registry beside the cluster, for images that have to be pulled.

use std::fs;

use anyhow::Result;
use caisson_local::{components::MARK, images};

use super::TestCluster;
use crate::registry;

/// A running registry, which the node and its pods reach by its address. Dropping it ends it; it
/// also ends with the cluster.
pub struct Registry<'c> {
    cluster: &'c TestCluster,
    server: registry::Registry,
}

impl<'c> Registry<'c> {
    /// Starts an empty registry.
    pub fn start(cluster: &'c TestCluster) -> Result<Self> {
        let layout = cluster.cluster().layout();
        let dir = layout.path("registry");
        fs::create_dir_all(&dir)?;
        let address = cluster.machine_address()?;
        let server = registry::Registry::start_marked(&address, &dir, (MARK, layout.dir()))?;
        Ok(Self { cluster, server })
    }

    /// Sends the node's containerd here for public image names.
    pub fn stand_in(&self) -> Result<()> {
        let hosts = self.cluster.cluster().layout().path("hosts");
        self.server.stand_in(&hosts)
    }

    /// Returns host and port. The registry speaks HTTP without TLS.
    pub fn address(&self) -> &str {
        self.server.address()
    }

    /// Makes an image of [`crate::fixture`] available under a public name such as
    /// `docker.io/library/busybox:1.36`. The node itself has the image only under its own name.
    pub fn publish(&self, fixture: &str, name: &str) -> Result<()> {
        let full = self.cluster.image(fixture)?;
        let cluster = self.cluster.cluster();
        let ctr = images::ctr(cluster.layout(), cluster.programs());
        self.server.push(ctr, &full, name)
    }
}
