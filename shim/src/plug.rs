//! A device as the two sides of a pod's VM see it.

use std::{fs::File, path::PathBuf};

use caisson_protocol::agent::{attach_request, detach_request};
use caisson_vmm::{Device, DeviceId};

/// The two halves of a device: what the VM gets, and what the agent then does with it.
pub struct Plug {
    pub vm: Device,
    pub guest: attach_request::Device,
    /// A lock that is held for as long as the VM has the device.
    pub hold: Option<File>,
}

/// A disk or share that was plugged into a running VM and can be unplugged again. Keeps a disk's
/// file locked.
pub struct LateDevice {
    /// The disk's serial or the share's tag, and its place on the host.
    pub place: (String, PathBuf),
    pub device: DeviceId,
    /// What the agent is asked for before the VM loses the device.
    pub guest: detach_request::Device,
    pub hold: Option<File>,
}
