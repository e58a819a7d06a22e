//! Collects the stages of pods' starts, as `caisson trace` prints them.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use caisson_tests::{command, cri::Pod, node};
use serde_json::{json, Value};

use crate::{
    table::{millis, quantile, Series},
    way::Way,
};

/// How long `caisson trace` may take.
const LIMIT: Duration = Duration::from_secs(10);
/// The stage that begins when QEMU is executed.
const EXECUTED: &str = "qemu executed";
/// The stage that ends when the guest's agent has answered.
const ANSWERS: &str = "agent answers";

/// When a stage began and ended, from the start of the shim.
#[derive(Clone, Copy)]
struct Span {
    begin: Duration,
    end: Duration,
}

/// The medians of a stage.
struct Medians<'a> {
    name: &'a str,
    begin: Duration,
    took: Duration,
}

/// The stages of one way's starts.
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

    /// Returns the medians of each stage, in the order in which they begin.
    fn medians(&self) -> Vec<Medians<'_>> {
        let median = |spans: &[Span], of: fn(&Span) -> Duration| {
            quantile(spans.iter().map(of).collect(), 0.5)
        };
        let stages = self.0.iter().map(|(name, spans)| Medians {
            name,
            begin: median(spans, |span| span.begin),
            took: median(spans, |span| span.end.saturating_sub(span.begin)),
        });
        let mut stages: Vec<_> = stages.collect();
        stages.sort_by_key(|stage| stage.begin);
        stages
    }

    /// Prints the medians.
    pub fn print(&self) {
        for Medians { name, begin, took } in self.medians() {
            let (begin, took) = (millis(begin), millis(took));
            println!("    {name:<40} at {begin:>6.0} ms for {took:>6.1} ms");
        }
    }

    /// Returns the times from QEMU's execution to the first answer of the guest's agent, if the
    /// pods' starts have them: a pod that takes a VM of the pool has neither.
    pub fn to_the_agent(&self, name: &'static str) -> Option<Series> {
        let (executed, answers) = (self.0.get(EXECUTED)?, self.0.get(ANSWERS)?);
        let mut series = Series::new(name);
        for (executed, answers) in executed.iter().zip(answers) {
            series.add(answers.end.saturating_sub(executed.begin));
        }
        Some(series)
    }

    /// Returns the medians.
    pub fn json(&self) -> Value {
        let stages = self.medians().into_iter().map(|stage| {
            let figures = json!({ "begin_ms": millis(stage.begin), "took_ms": millis(stage.took) });
            (stage.name.to_owned(), figures)
        });
        Value::Object(stages.collect())
    }
}

/// Reads a line that has a stage's begin, end, time and name.
fn stage(line: &str) -> Option<(String, Span)> {
    let mut words = line.split_whitespace();
    let mut time = || {
        let ms: f64 = words.next()?.parse().ok()?;
        Duration::try_from_secs_f64(ms / 1e3).ok()
    };
    let (begin, end, _took) = (time()?, time()?, time()?);
    let name: Vec<_> = words.take_while(|word| *word != "of").collect();
    let name = name.join(" ");
    // Each pod's network card has its own name.
    let name = match name.starts_with("attach net-") {
        true => "attach net".to_owned(),
        false => name,
    };
    Some((name, Span { begin, end }))
}
