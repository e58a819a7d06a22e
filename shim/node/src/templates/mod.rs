//! Keeps the templates of this node's bare VMs, from which pods start instead of booting.
//!
//! A template is a folder of the store, named by a digest of everything that its VM depends on:
//!
//! ```text
//! <store_dir>/templates/<key>/machine       what caisson_vmm::Vmm::make_template wrote
//! <store_dir>/templates/<key>/translations  what an emulator made of the guest's instructions
//! <store_dir>/templates/<key>/about.json    when it was made, sizes and sha256 of the two
//! <store_dir>/templates/<key>.new           the folder to come
//! <store_dir>/templates/.<key>              locked by the one process that makes the template
//! ```
//!
//! Three quarters of the time that an emulator needs for a start go into translating instructions
//! that run for the first time. So a first VM starts from the template for a rehearsal, in which it
//! does what a pod asks for, and the emulator writes down its translations. They hold nothing of a
//! pod either.
//!
//! If a template or its translations can't be made, `about.json` says why, and it is not tried
//! again for a day.
//!
//! It holds nothing of a pod: its guest has done nothing but boot. A template whose files do not
//! fit together is not used, and one that no VM starts from is [discarded](discard). Nothing hashes
//! a template when a pod starts; `caisson template list` does.

mod about;
mod error;
mod machine;
mod make;
mod store;

pub use about::{About, Content};
pub use error::TemplateError;
pub use machine::{bare, SIZE};
pub use make::make;
pub use store::{discard, find, is_whole, list, remove, remove_all, Found, Template};

/// The last word of the command line by which the shim makes the template, as `start` and `delete`
/// are of containerd's.
pub const ACTION: &str = "template";
