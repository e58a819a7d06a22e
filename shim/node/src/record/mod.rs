//! The record of a pod: what it is, in its state folder. The pod's shim writes it at every
//! transition. `caisson list` and `caisson gc` read it, also after the shim has died.
//!
//! `data.rs` has what is in it, `states.rs` the states and their transitions, `file.rs` the file.

mod data;
mod file;
mod states;

pub use data::{Claim, Container, Degraded, LateSkill, Machine, Record, VERSION};
pub use file::{read, RecordError, Recorder};
pub use states::{Exit, MachineState, PodState, ProcessState};
