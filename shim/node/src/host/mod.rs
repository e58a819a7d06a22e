//! What the shim and the operator's command use of the host: files and folders, mounts, processes,
//! sizes and randomness.

pub mod bind;
pub mod chain;
pub mod error;
pub mod file;
pub mod folder;
pub mod id_map;
pub mod mount_table;
pub mod processes;
pub mod program;
pub mod random;
pub mod size;
pub mod sysctls;
