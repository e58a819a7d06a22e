//! What the agent asks of the guest's kernel: mounts, devices in sysfs, modules and terminals.

pub mod module_disk;
pub mod module_files;
pub mod modules;
pub mod mounts;
pub mod sysfs;
pub mod tty;
