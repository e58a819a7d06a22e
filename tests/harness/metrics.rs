//! Reads and checks metrics in Prometheus' text format.

use std::process::Command;

use anyhow::{ensure, Context, Result};

use crate::{
    command::{self, Stdin},
    node::LIMIT,
};

/// Returns the value of a series, which is named with its labels as they are printed.
pub fn value(text: &str, series: &str) -> Result<f64> {
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    let value = value.with_context(|| format!("no {series} in:\n{text}"))?;
    Ok(value.parse()?)
}

/// Fails with what `promtool check metrics` has against a text.
pub fn check(text: &str) -> Result<()> {
    let stdin = Stdin::from(text.as_bytes().to_vec());
    let mut promtool = Command::new("promtool");
    let output = command::run(promtool.args(["check", "metrics"]), Some(stdin), LIMIT)
        .context("promtool: packaging/setup test")?;
    let said = output.text() + &output.errors();
    ensure!(output.code == 0 && said.is_empty(), "promtool: {said}");
    Ok(())
}
