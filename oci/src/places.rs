//! Tells the plan where the things of one container are in the guest, and what the shim found on
//! the host.

use std::{collections::HashMap, path::PathBuf};

use crate::volume::{Found, Volume};

/// The places in the guest of what the shim plugs in for a container, and what the shim found on
/// the host.
#[derive(Debug, Clone)]
pub struct Places {
    /// The container's root.
    pub rootfs: PathBuf,
    /// The folder of the pod's virtiofs shares.
    pub shares: PathBuf,
    /// The folder of the volumes, each at `volumes/<name>`.
    pub volumes: PathBuf,
    /// The folder of the pod's memory, each at `memory/<name>`.
    pub memory: PathBuf,
    /// The folder of the VM's disks, each at `disks/<serial>`.
    pub disks: PathBuf,
    /// The folder of the parts of volumes, each at `parts/<name>`.
    pub parts: PathBuf,
    /// The volumes that containers of the pod have mounted.
    pub mounted: Vec<Volume>,
    /// What the shim found on the host at the sources of the bind mounts.
    pub found: HashMap<PathBuf, Found>,
    /// The skills, in the order of the annotation, each as its mount point in the container and its
    /// place in the guest.
    pub skills: Vec<(PathBuf, PathBuf)>,
    /// The home, as its mount point in the container and its place in the guest.
    pub home: Option<(PathBuf, PathBuf)>,
    /// The pid namespace that the container is to be in.
    pub pid_namespace: PidNamespace,
}

/// The pid namespace of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PidNamespace {
    /// One of its own.
    Own,
    /// The one that containers of the pod share.
    Pod,
    /// The one that the container with this id is in.
    Of(String),
}
