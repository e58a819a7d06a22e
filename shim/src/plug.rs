//! A device as the two sides of a pod's VM see it.

use std::{fs::File, path::PathBuf};

use caisson_protocol::agent::attach_request::Device as GuestDevice;
use caisson_vmm::{Device, DeviceId};

/// The two halves of a device: what the VM gets, and what the agent then does with it.
pub struct Plug {
    pub vm: Device,
    pub guest: GuestDevice,
    /// A lock that is held for as long as the VM has the device.
    pub hold: Option<File>,
}

/// A disk that was plugged into a running VM and can be unplugged again. Keeps the disk's file
/// locked.
pub struct LateDisk {
    /// The disk's serial and its file.
    pub place: (String, PathBuf),
    pub device: DeviceId,
    pub hold: Option<File>,
}
