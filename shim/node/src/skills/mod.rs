//! The node's skill store, `<store_dir>/skills/`: immutable tool bundles, each a squashfs or EROFS
//! file named by its sha256.
//!
//! ```text
//! <sha256>        the file, read-only; locked (flock(2), shared) by each shim whose VM has it
//! <sha256>.json   its manifest, whose modification time is the time of the skill's last use
//! .part-…         a file that is being written or fetched; its writer locks it (exclusive)
//! ```
//!
//! The shim looks skills up here; `caisson skill` packs, adds, fetches, lists, verifies and removes
//! them.

mod disk;
mod error;
#[cfg(test)]
mod fixture;
mod gc;
mod image;
mod manifest;
mod obtain;
mod part;
mod store;

pub use disk::{place, serial};
pub use error::{ManifestError, SkillError};
pub use manifest::{Skill, Verity, VERITY_BLOCK};
pub use obtain::{obtain, Asker};
pub use part::Part;
pub use store::{OpenSkill, SkillStore};
