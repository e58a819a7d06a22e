//! Translates an OCI spec, annotations and the node's configuration into what the VM is, which
//! devices it gets and what spec the guest runs. This crate does no I/O.
//!
//! The shim parses a bundle's spec once, as [`Wishes`]. It looks up what they name, calls
//! [`plan()`] with them and the [`Places`], and does what the [`Plan`] says. The table in [`rules`]
//! refuses or drops what can't be honoured in a VM. Every annotation is listed in [`annotations`],
//! every configuration key in [`config`]; [`policy`] decides which namespace may use what.

pub mod annotations;
pub mod claim;
pub mod claim_annotation;
pub mod config;
pub mod devices;
pub mod egress;
mod error;
pub mod exec;
pub mod guest_devices;
pub mod home;
mod hooks;
pub mod id;
mod mounts;
mod names;
mod places;
pub mod plan;
pub mod pod;
pub mod policy;
pub mod presets;
mod privileged;
pub mod privileges;
mod quantity;
mod role;
pub mod rules;
mod runtime;
pub mod scratch;
pub mod secrets;
pub mod size;
pub mod users;
pub mod volume;
mod wishes;

pub use annotations::Annotations;
pub use config::NodeConfig;
pub use egress::Egress;
pub use error::{Error, Result, Unread};
pub use hooks::Hooks;
pub use oci_spec::runtime as spec;
pub use places::{PidNamespace, Places};
pub use plan::{plan, Plan};
pub use policy::Policy;
pub use role::Role;
pub use size::{Limits, Node, VmSize};
pub use users::IdMap;
pub use volume::Volume;
pub use wishes::{PidWish, Wishes};
