//! A containerd shim that runs each pod in a VM: it implements containerd's services and drives the
//! VM.
//!
//! The modules, from the outside in: [`launch`] (start, delete) → [`task`] and [`sandbox`]
//! (containerd's messages) → [`pod`] (containers and their processes) → [`machine`] (VM, agent,
//! shared folder).
//!
//! [`config`], [`state`], [`skills`] and [`homes`] also serve the `caisson` command. The tests
//! drive a [`pod`] over a fake VMM. The fuzz targets use the modules that read messages from
//! others: [`agent`], [`cri`], [`sandbox::spec`] and [`stats`].

pub mod accelerator;
pub mod agent;
mod block;
mod cgroup;
pub mod config;
mod container;
pub mod control;
pub mod cri;
pub mod error;
pub mod events;
mod features;
mod frames;
mod guest_text;
pub mod homes;
pub mod host;
mod launch;
mod layers;
pub mod limits;
mod logger;
mod machine;
pub mod network;
mod oom_score;
mod plug;
pub mod pod;
pub mod process;
pub mod sandbox;
mod share;
mod skill_disk;
pub mod skills;
mod sources;
mod stand_in;
pub mod state;
pub mod stats;
pub mod streams;
mod task;
pub mod traffic;
mod vm;

pub use config::RUNTIME;
pub use error::{Error, Result};

pub use launch::run;
