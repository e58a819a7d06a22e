//! A containerd shim that runs each pod in a VM: it implements containerd's services and drives the
//! VM.
//!
//! The modules, from the outside in: [`launch`] (start, delete) → [`task`] and [`sandbox`]
//! (containerd's messages) → [`pod`] (containers and their processes) → [`machine`] (VM, agent,
//! shared folder).
//!
//! What the `caisson` command uses as well is in the crate `caisson-node`. The tests drive a
//! [`pod`] over a fake VMM. The fuzz targets use the modules that read messages from others:
//! [`agent`], [`cri`], [`sandbox::spec`] and [`stats`].

pub mod agent;
mod block;
mod bundle;
mod clock;
mod container;
pub mod cri;
pub mod error;
pub mod events;
mod features;
mod frames;
mod guest_text;
mod home_share;
mod hooks;
mod launch;
pub mod limits;
mod logger;
mod machine;
pub mod network;
mod open_files;
mod places;
mod plug;
pub mod pod;
mod pool;
pub mod process;
mod rehearsal;
pub mod sandbox;
mod scratch;
mod share;
mod skill_disk;
mod sources;
mod stand_in;
pub mod stats;
pub mod streams;
mod tally;
mod task;
mod template;
mod trace;
mod turn;
mod vm;

pub use error::{Error, Result};
pub use launch::run;
