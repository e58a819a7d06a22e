//! Keeps the stages of the pod's start, which `caisson trace` prints and the node's counters have.
//!
//! A stage that is over is a record of the log with the keys `stage` and `ms`, at whatever level.
//! So the VMM's stages are among them, although the VMM knows nothing of this.

use std::{
    sync::{
        atomic::{AtomicUsize, Ordering},
        Mutex, OnceLock, PoisonError,
    },
    time::Instant,
};

use caisson_node::control::Stage;
use log::{kv::Key, Record};

/// The most stages that are kept: a pod may start many containers one after the other.
const MAX_STAGES: usize = 256;

static BEGIN: OnceLock<Instant> = OnceLock::new();
static STAGES: Mutex<Vec<Stage>> = Mutex::new(Vec::new());
/// How many of the stages have been taken by [`take_new`].
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// Says that the shim begins now.
pub fn begin() {
    BEGIN.get_or_init(Instant::now);
}

/// Keeps a record of the log if it is a stage's.
pub fn note(record: &Record) {
    let Some(begin) = BEGIN.get() else { return };
    let end = begin.elapsed().as_secs_f64() * 1000.0;
    let Some(stage) = stage(record, end) else {
        return;
    };
    let mut stages = STAGES.lock().unwrap_or_else(PoisonError::into_inner);
    if stages.len() < MAX_STAGES {
        stages.push(stage);
    }
}

/// Returns the stages so far, in the order of their ends.
pub fn stages() -> Vec<Stage> {
    STAGES
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}

/// Returns the stages that have ended since the last call.
pub fn take_new() -> Vec<Stage> {
    let mut stages = stages();
    let taken = TAKEN.swap(stages.len(), Ordering::Relaxed);
    stages.split_off(taken.min(stages.len()))
}

fn stage(record: &Record, end: f64) -> Option<Stage> {
    let values = record.key_values();
    let text = |key| Some(values.get(Key::from_str(key))?.to_string());
    let ms: f64 = text("ms")?.parse().ok()?;
    Some(Stage {
        name: text("stage")?,
        of: text("pod"),
        begin: (end - ms).max(0.0),
        end,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_with_a_stage_and_its_time_is_a_stage() {
        let values = [("stage", "vmm"), ("pod", "one"), ("ms", "2.5")];
        let record = Record::builder().key_values(&values).build();
        let expected = Stage {
            name: "vmm".to_owned(),
            of: Some("one".to_owned()),
            begin: 7.5,
            end: 10.0,
        };
        assert_eq!(stage(&record, 10.0), Some(expected));
    }

    #[test]
    fn record_of_something_else_is_no_stage() {
        let values = [("device", "disk"), ("ms", "2")];
        let record = Record::builder().key_values(&values).build();
        assert_eq!(stage(&record, 10.0), None);
    }
}
