//! What a node's shims and the operator's command share: the node's configuration, the state
//! folders of pods and the host's resources in them, and the stores of skills and homes.
//!
//! From the outside in: [`pool`], [`accelerator`], [`homes`] and [`templates`] → [`state`] →
//! [`cgroup`] and [`record`], and beside them [`skills`], [`config`], [`control`], [`counters`] and
//! [`traffic`]; all of them use [`host`].

pub mod accelerator;
pub mod cgroup;
pub mod config;
pub mod control;
pub mod counters;
pub mod homes;
pub mod host;
pub mod oom_score;
pub mod pool;
pub mod record;
pub mod skills;
pub mod state;
pub mod templates;
pub mod traffic;
