//! The requests by which a pod gets its containers.

use std::path::PathBuf;

use caisson_oci::spec::Spec;
use containerd_shim::protos::types::mount::Mount;

use crate::streams::Stdio;

/// A request to create a container.
pub struct CreateRequest {
    pub id: String,
    pub bundle: PathBuf,
    /// The mounts that containerd asks for as the root, to be stacked.
    pub rootfs: Vec<Mount>,
    pub stdio: Stdio,
}

/// A request to create a sandbox that is not a task.
pub struct SandboxRequest {
    pub id: String,
    pub bundle: PathBuf,
    /// The spec, as containerd writes it for a pause container.
    pub spec: Spec,
    /// The folder with the [`caisson_oci::pod::FILES`] for the pod's containers.
    pub files: PathBuf,
}
