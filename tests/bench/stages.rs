//! Collects the stages of pods' starts, as `caisson trace` prints them.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use caisson_tests::{command, cri::Pod, node};
use serde_json::{json, Value};

use crate::{table::Series, way::Way};

/// How long `caisson trace` may take.
const LIMIT: Duration = Duration::from_secs(10);
/// The stage that begins when QEMU is executed.
const EXECUTED: &str = "qemu executed";
/// The stage that ends when the guest's agent has answered.
const ANSWERS: &str = "agent answers";

/// When a stage began and ended.
#[derive(Clone, Copy)]
struct Span {
    begin: f64,
    end: f64,
}

/// The stages of one way's starts, in milliseconds from the start of the shim.
#[derive(Default)]
pub struct Stages(BTreeMap<String, Vec<Span>>);

impl Stages {
    /// Adds the stages of a pod's start.
    pub fn add(&mut self, way: &Way, pod: &Pod<'_>) -> Result<()> {
        let mut trace = node::caisson(&way.node)?;
        let said = command::run(trace.args(["trace", pod.id()]), None, LIMIT)?;
        // The first line is a heading.
        for line in said.ok()?.text().lines().skip(1) {
            let (name, span) = stage(line).with_context(|| format!("trace: {line}"))?;
            self.0.entry(name).or_default().push(span);
        }
        Ok(())
    }

    /// Whether no start was added.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Prints the median of each stage, in the order in which they begin.
    pub fn print(&self) {
        let mut stages: Vec<_> = self.0.iter().collect();
        let begin = |spans: &[Span]| median(spans, |span| span.begin);
        stages.sort_by(|(_, one), (_, other)| begin(one).total_cmp(&begin(other)));
        for (name, spans) in stages {
            let took = median(spans, |span| span.end - span.begin);
            println!(
                "    {name:<40} at {:>6.0} ms for {took:>6.1} ms",
                begin(spans)
            );
        }
    }

    /// Returns the times from QEMU's execution to the first answer of the guest's agent, if the
    /// pods' starts have them: a pod that takes a VM of the pool has neither.
    pub fn to_the_agent(&self, name: &'static str) -> Option<Series> {
        let (executed, answers) = (self.0.get(EXECUTED)?, self.0.get(ANSWERS)?);
        let mut series = Series::new(name);
        for (executed, answers) in executed.iter().zip(answers) {
            series.add(Duration::from_secs_f64(
                (answers.end - executed.begin) / 1e3,
            ));
        }
        Some(series)
    }

    /// Returns the medians.
    pub fn json(&self) -> Value {
        let stages = self.0.iter().map(|(name, spans)| {
            let took = median(spans, |span| span.end - span.begin);
            let begin = median(spans, |span| span.begin);
            (name.clone(), json!({ "begin_ms": begin, "took_ms": took }))
        });
        Value::Object(stages.collect())
    }
}

/// Reads a line that has a stage's begin, end, time and name.
fn stage(line: &str) -> Option<(String, Span)> {
    let mut words = line.split_whitespace();
    let mut number = || words.next()?.parse().ok();
    let (begin, end, _took): (f64, f64, f64) = (number()?, number()?, number()?);
    let name: Vec<_> = words.take_while(|word| *word != "of").collect();
    let name = name.join(" ");
    // Each pod's network card has its own name.
    let name = match name.starts_with("attach net-") {
        true => "attach net".to_owned(),
        false => name,
    };
    Some((name, Span { begin, end }))
}

fn median(spans: &[Span], of: impl Fn(&Span) -> f64) -> f64 {
    let mut values: Vec<_> = spans.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
