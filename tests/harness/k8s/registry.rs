//! A registry beside the cluster, for images that have to be pulled.

use anyhow::Result;
use caisson_local::{components::MARK, images};
use tempfile::TempDir;

use super::TestCluster;
use crate::registry::{self, Options};

/// A running registry, which the node and its pods reach by its address. Dropping it ends it; it
/// also ends with the cluster.
pub struct Registry<'c> {
    cluster: &'c TestCluster,
    server: registry::Registry,
    _dir: TempDir,
}

impl<'c> Registry<'c> {
    /// Starts an empty registry that anybody may use.
    pub fn start(cluster: &'c TestCluster) -> Result<Self> {
        Self::start_with(cluster, false)
    }

    /// Starts an empty registry that answers only who shows [`registry::LOGIN`].
    pub fn start_private(cluster: &'c TestCluster) -> Result<Self> {
        Self::start_with(cluster, true)
    }

    fn start_with(cluster: &'c TestCluster, private: bool) -> Result<Self> {
        let layout = cluster.cluster().layout();
        let dir = tempfile::Builder::new()
            .prefix("registry-")
            .tempdir_in(layout.dir())?;
        let options = Options {
            address: &cluster.machine_address()?,
            mark: Some((MARK, layout.dir())),
            private,
        };
        Ok(Self {
            cluster,
            server: registry::Registry::start_with(dir.path(), &options)?,
            _dir: dir,
        })
    }

    /// Sends the node's containerd here for public image names.
    pub fn stand_in(&self) -> Result<()> {
        let hosts = self.cluster.cluster().layout().path("hosts");
        self.server.stand_in(&hosts)
    }

    /// Lets the node's containerd pull from here by the registry's own name, [`Self::address`].
    pub fn serve_itself(&self) -> Result<()> {
        let hosts = self.cluster.cluster().layout().path("hosts");
        self.server.serve_itself(&hosts)
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
