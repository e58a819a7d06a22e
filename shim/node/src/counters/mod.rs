//! Counts what the shims of a node have done since it booted: starts with their stages and
//! failures, VMs that broke down, skills that were asked for. The shims count, and
//! `caisson metrics` prints it.
//!
//! `labels.rs` has what is told apart, `data.rs` the counters, `file.rs` the file.

mod data;
mod file;
mod labels;

pub use data::{Counters, Event, Histogram, BOUNDS};
pub use file::{add, read, FILE, LOCK};
pub use labels::{Origin, Reason, SkillRequest, Stage, Task, VmFailure};
