//! Logs how long the stages of a start take.

use std::time::Instant;

/// Logs the duration of a stage.
pub(crate) fn log_stage(stage: &str, started: Instant) {
    let ms = started.elapsed().as_secs_f64() * 1000.0;
    log::debug!(stage = stage, ms = ms; "VM");
}
