//! `make cri`: containerd's own CRI tests, from its Go module, against runc and then against Caisson.
//!
//! Each test runs in a process of its own with an end of time. What passes with runc has to pass with Caisson, but for the
//! exceptions in `exceptions.toml`, each with its reason. An argument: only the tests whose name it is part of.

mod suite;

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::{ensure, Context, Result};
use caisson_tests::{node::exit_on_signals, Runtime};
use suite::{Outcome, Suite};

/// No more than these may fail with Caisson and pass with runc.
const EXCEPTIONS_MAX: usize = 8;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cri-integration: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    exit_on_signals()?;
    let part = std::env::args().nth(1).unwrap_or_default();
    let exceptions = exceptions()?;
    let runc = outcomes(Runtime::Runc, &part)?;
    let caisson = outcomes(Runtime::Caisson, &part)?;
    let mut good = true;
    println!("\n{:<60} {:<8} {:<8}", "", "runc", "caisson");
    for (name, with_runc) in &runc {
        let with_caisson = caisson.get(name).copied().unwrap_or(Outcome::Failed);
        let worse = *with_runc == Outcome::Passed && with_caisson != Outcome::Passed;
        let note = match (worse, exceptions.get(name)) {
            (false, None) => String::new(),
            (true, Some(reason)) => reason.clone(),
            (true, None) => {
                good = false;
                "<-- passes with runc only".into()
            }
            (false, Some(_)) => {
                good = false;
                "<-- no exception any more: take it out of exceptions.toml".into()
            }
        };
        println!("{name:<60} {with_runc:<8} {with_caisson:<8} {note}");
    }
    let count = |outcomes: &BTreeMap<String, Outcome>| {
        let of = |wanted| {
            outcomes
                .values()
                .filter(|&&outcome| outcome == wanted)
                .count()
        };
        format!(
            "{} passed, {} failed, {} skipped",
            of(Outcome::Passed),
            of(Outcome::Failed),
            of(Outcome::Skipped)
        )
    };
    println!("\nrunc:    {}\ncaisson: {}", count(&runc), count(&caisson));
    Ok(good)
}

fn outcomes(runtime: Runtime, part: &str) -> Result<BTreeMap<String, Outcome>> {
    let suite = Suite::start(runtime)?;
    let names = suite.names()?;
    let names = names.into_iter().filter(|name| name.contains(part));
    let mut outcomes = BTreeMap::new();
    for name in names {
        let outcome = suite.run(&name)?;
        println!("{:<8} {name}: {outcome}", runtime.handler());
        outcomes.insert(name, outcome);
    }
    ensure!(!outcomes.is_empty(), "no test is called {part:?}");
    Ok(outcomes)
}

/// Names and reasons.
fn exceptions() -> Result<BTreeMap<String, String>> {
    let exceptions: BTreeMap<String, String> =
        toml::from_str(include_str!("exceptions.toml")).context("exceptions.toml")?;
    ensure!(
        exceptions.len() <= EXCEPTIONS_MAX,
        "{} exceptions are more than {EXCEPTIONS_MAX}",
        exceptions.len()
    );
    Ok(exceptions)
}
