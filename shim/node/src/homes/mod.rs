//! Homes: the node's file systems for the home directories of containers' users, at
//! `<store_dir>/homes`.
//!
//! ```text
//! <namespace>/<name>/image  ext4; its holder locks it (flock(2), exclusive), see `image.rs`
//! <namespace>/<name>/pod    the present or last holder
//! .claims/, .making/        homes that pods are about to make; ephemeral homes, see `claims.rs`
//! ```
//!
//! An ephemeral home is a file without a name. The lock belongs to the mount: like the mount, it
//! outlives a shim that is killed, and ends when [`crate::state::remove`] unmounts the home. So no
//! file system is ever mounted twice.
//!
//! The shim mounts homes for pods ([`PodHome`]); `caisson home` lists, archives and removes them.

mod budget;
mod claims;
mod error;
mod image;
mod make;
mod mount_point;
mod pod;
mod store;
mod user;

pub use budget::{Limits, Usage};
pub use error::HomeError;
pub use pod::{Asker, PodHome};
pub use store::{Holder, HomeStore, Stored, StoredHome};
pub use user::of_user;
