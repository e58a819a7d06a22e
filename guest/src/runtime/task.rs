//! What the agent asks of a runtime process, and what the process answers.

use std::{os::fd::OwnedFd, path::PathBuf};

use caisson_protocol::agent;
use serde::{Deserialize, Serialize};

use crate::pause::Users;

/// The name of a bundle's spec as the host sent it. libcontainer gets the spec with what the guest
/// fills in under the name `config.json`.
pub const SPEC_FILE: &str = "spec.json";

/// The task.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Makes a container from [`SPEC_FILE`] in `bundle`, up to the point before its program is
    /// executed.
    Create {
        id: String,
        bundle: PathBuf,
        /// libcontainer keeps its state in `state/id`.
        state: PathBuf,
        cgroup: PathBuf,
        /// The pid namespace that the container joins. Otherwise it gets one of its own.
        pid_namespace: Option<PathBuf>,
        /// The user namespace that the container joins.
        user_namespace: Option<PathBuf>,
        disks: Vec<DiskNode>,
        /// Whether the container gets all device nodes of the guest.
        guest_devices: bool,
        descriptors: Vec<Descriptor>,
    },
    /// Makes a pid namespace with [`crate::pause`] as its init. It is in a user namespace of its
    /// own if there are users.
    Pause { users: Option<Users> },
    /// Starts a process in the container with this bundle and init.
    Exec {
        bundle: PathBuf,
        /// The file with the OCI `process` object.
        process: PathBuf,
        init: i32,
        /// The directory of the container's cgroup.
        cgroup: PathBuf,
        descriptors: Vec<Descriptor>,
    },
    /// Applies limits from a file with the OCI `linux.resources` object.
    Update { cgroup: PathBuf, resources: PathBuf },
    /// Shows what is mounted in the guest at a path of an existing container, or hides it again.
    Show {
        init: i32,
        /// Where it is mounted in the guest.
        source: PathBuf,
        target: PathBuf,
        read_only: bool,
        shown: bool,
    },
    /// For tests on the host: mounts a directory, as the process `from` sees it, at `to`.
    Graft {
        from: i32,
        source: PathBuf,
        to: PathBuf,
        read_only: bool,
    },
}

impl Request {
    /// Returns the word on the command line, which helps people who look at processes.
    pub fn verb(&self) -> &'static str {
        match self {
            Request::Create { .. } => "create",
            Request::Pause { .. } => "pause",
            Request::Exec { .. } => "exec",
            Request::Update { .. } => "update",
            Request::Show { .. } => "show",
            Request::Graft { .. } => "graft",
        }
    }
}

/// The result of a task.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// The task is done. `pid` is that of the new process, if there is one.
    Done { pid: Option<i32> },
    /// The task failed. The message has all causes.
    Failed { message: String },
}

/// The node of a disk in a container.
#[derive(Debug, Serialize, Deserialize)]
pub struct DiskNode {
    pub serial: String,
    pub path: PathBuf,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub access: String,
}

impl From<&agent::DiskNode> for DiskNode {
    fn from(disk: &agent::DiskNode) -> DiskNode {
        DiskNode {
            serial: disk.serial.clone(),
            path: PathBuf::from(&disk.path),
            mode: disk.mode,
            uid: disk.uid,
            gid: disk.gid,
            access: disk.access.clone(),
        }
    }
}

/// A file to be opened for reading.
#[derive(Debug, Serialize, Deserialize)]
pub struct Descriptor {
    pub directory: PathBuf,
    /// The path in the directory. Its links can't lead out of the directory.
    pub name: String,
    /// The name of the file in error messages.
    pub origin: String,
}

impl From<&agent::Descriptor> for Descriptor {
    fn from(descriptor: &agent::Descriptor) -> Descriptor {
        Descriptor {
            directory: PathBuf::from(&descriptor.directory),
            name: descriptor.name.clone(),
            origin: descriptor.origin.clone(),
        }
    }
}

/// What a runtime process made.
pub struct Made {
    /// The new process, which is a child of the agent now or will be in a moment.
    pub pid: Option<i32>,
    /// The master of its terminal.
    pub terminal: Option<OwnedFd>,
}

impl Made {
    /// The result of a task that starts no process.
    pub const NOTHING: Made = Made {
        pid: None,
        terminal: None,
    };
}
