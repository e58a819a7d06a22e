//! A registry beside the cluster, for images that have to be pulled.

use std::fs;

use anyhow::Result;
use caisson_local::{components::MARK, images};

use super::TestCluster;
use crate::registry;

/// The node and its pods reach it by its address. Dropped, it ends; it ends with the cluster anyway.
pub struct Registry<'c> {
    cluster: &'c TestCluster,
    server: registry::Registry,
}

impl<'c> Registry<'c> {
    /// Starts a registry with nothing in it.
    pub fn start(cluster: &'c TestCluster) -> Result<Self> {
        let layout = cluster.cluster().layout();
        let dir = layout.path("registry");
        fs::create_dir_all(&dir)?;
        let address = cluster.machine_address()?;
        let server = registry::Registry::start_marked(&address, &dir, (MARK, layout.dir()))?;
        Ok(Self { cluster, server })
    }

    /// Sends the node's containerd here for public names.
    pub fn stand_in(&self) -> Result<()> {
        let hosts = self.cluster.cluster().layout().path("hosts");
        self.server.stand_in(&hosts)
    }

    /// Host and port; it speaks HTTP without TLS.
    pub fn address(&self) -> &str {
        self.server.address()
    }

    /// Makes an image of [`crate::fixture`] available under a public name such as `docker.io/library/busybox:1.36`. The node has it under
    /// its own name only.
    pub fn publish(&self, fixture: &str, name: &str) -> Result<()> {
        let full = self.cluster.image(fixture)?;
        let cluster = self.cluster.cluster();
        let ctr = images::ctr(cluster.layout(), cluster.programs());
        self.server.push(ctr, &full, name)
    }
}
