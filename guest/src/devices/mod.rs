//! The guest's half of plugging in a device: waits until the kernel has it, then makes it usable.
//! There is a file for each kind of device.
//!
//! Every wait ends after [`crate::kernel::sysfs::DEADLINE`]. Functions that attach or detach block.

pub mod disk;
pub mod network;
mod overlay;
pub mod share;
pub mod size;
pub mod target;
mod verity;
pub mod wanted;
