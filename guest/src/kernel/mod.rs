//! What the agent asks of the guest's kernel: memory, mounts, devices in sysfs, modules,
//! terminals and parameters.

pub mod memory;
pub mod module_disk;
pub mod module_files;
pub mod modules;
pub mod mounts;
pub mod sysctls;
pub mod sysfs;
pub mod tty;
pub mod watch;
