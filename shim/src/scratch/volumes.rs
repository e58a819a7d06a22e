//! Plugs in the disks of the pod's emptyDirs.

use std::{collections::HashMap, fs::File};

use caisson_node::host::{error::FileError, folder::descriptor_path};
use caisson_oci::volume::ScratchDisk;
use caisson_protocol::agent::{self as proto, attach_request::Device as GuestDevice};
use caisson_vmm::Device;
use tokio::sync::Mutex;

use super::image;
use crate::plug::Plug;

/// The disks of the pod's emptyDirs, each with its open file by its serial. They stay until the VM
/// ends.
#[derive(Debug, Default)]
pub struct Volumes(Mutex<HashMap<String, File>>);

impl Volumes {
    /// Returns how many there are.
    pub async fn count(&self) -> usize {
        self.0.lock().await.len()
    }

    /// Returns both halves of plugging in an emptyDir's disk, the same ones each time.
    pub async fn plug(&self, disk: &ScratchDisk) -> Result<Plug, FileError> {
        // Containers that start at once wait here for the disk that they share.
        let mut files = self.0.lock().await;
        if !files.contains_key(&disk.serial) {
            let file = image::open(&disk.folder).await?;
            files.insert(disk.serial.clone(), file);
        }
        Ok(Plug {
            vm: Device::Disk {
                serial: disk.serial.clone(),
                // Leads to the file that was checked, whatever its name leads to by now.
                path: descriptor_path(&files[&disk.serial]),
                read_only: false,
            },
            guest: GuestDevice::Disk(proto::Disk {
                serial: disk.serial.clone(),
                fs_type: "ext4".to_owned(),
                root: true,
                discard: true,
                ..Default::default()
            }),
            hold: None,
        })
    }
}
