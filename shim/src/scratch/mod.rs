//! Keeps what a pod writes on disks of its VM, instead of in folders that it shares with the host:
//! the root of a container, and an emptyDir.
//!
//! A disk is an ext4 file system in a sparse file of the host, [`image`]. The file lies in the very
//! folder that would otherwise be shared: the upper layer of a container's snapshot, or the
//! emptyDir. So containerd and the kubelet count what the disk takes, and remove it when they
//! remove the folder. The host makes the file system, and never mounts or reads it afterwards.

mod image;
pub mod root;
mod volumes;

pub use image::is_there;
pub use volumes::Volumes;
