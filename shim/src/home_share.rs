//! Plugs a pod's home into its VM, as a share of its own.

use std::path::{Path, PathBuf};

use caisson_node::homes::{self, PodHome};
use caisson_oci::{home::Home, NodeConfig, Wishes};
use caisson_protocol::{
    agent::{attach_request::Device as GuestDevice, Share},
    path::SHARES,
};
use caisson_vmm::{Device, Exclusive};

use crate::{error::Result, plug::Plug};

/// The tag of the home's virtiofs device.
pub const TAG: &str = "home";

/// The pod that a container's home belongs to.
#[derive(Clone, Copy)]
pub struct PodsHome<'a> {
    /// The pod's id.
    pub pod: &'a str,
    /// containerd's namespace.
    pub namespace: &'a str,
    pub home: &'a PodHome,
}

impl PodsHome<'_> {
    /// Mounts the home on the host, if no container has it yet, for the container with these wishes
    /// and this id. Returns the two halves of its share.
    pub async fn plug(
        self,
        config: &NodeConfig,
        home: &Home,
        wishes: &Wishes,
        container: &str,
    ) -> Result<Plug> {
        let process = wishes.process()?;
        let (namespace, name) = wishes
            .pod()?
            .unwrap_or_else(|| (self.namespace.to_owned(), container.to_owned()));
        let asker = homes::Asker {
            id: self.pod.to_owned(),
            namespace,
            name,
            uid: process.user().uid(),
            gid: process.user().gid(),
        };
        let (path, user_namespace) = self.home.obtain(config, asker, home.clone()).await?;
        Ok(Plug {
            vm: Device::SharedDir {
                tag: TAG.to_owned(),
                path,
                read_only: false,
                exclusive: Exclusive::Everything,
                user_namespace: Some(user_namespace),
            },
            guest: GuestDevice::Share(Share {
                tag: TAG.to_owned(),
                ..Default::default()
            }),
            hold: None,
        })
    }
}

/// Returns the path of the home in the container with these wishes, whose root the host has at
/// `root`.
pub async fn target(home: &Home, wishes: &Wishes, root: &Path) -> Result<PathBuf> {
    match &home.path {
        Some(path) => Ok(path.clone()),
        None => Ok(homes::of_user(wishes.process()?, root).await?),
    }
}

/// Returns the place of the home in the guest.
pub fn place() -> PathBuf {
    Path::new(SHARES).join(TAG)
}
