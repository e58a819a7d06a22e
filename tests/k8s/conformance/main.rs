//! `make conformance`: Kubernetes' own end-to-end tests, those that every node has to pass (`[NodeConformance]`), with runc and then with
//! Caisson as containerd's default runtime, on one cluster.
//!
//! What passes with runc has to pass with Caisson, and nothing may fail with runc, but for the exceptions in `exceptions.toml`, each with
//! its reason, which have to fail. Writes `docs/conformance.md` where all of them ran. Arguments: only the tests whose name one of them is
//! part of.

mod report;
mod suite;

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::{bail, ensure, Context, Result};
use caisson_tests::{exceptions::Exceptions, node::exit_on_signals, Runtime};

use crate::suite::{Ended, Suite};

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("conformance: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A test's ends with runc and with Caisson, and what they mean.
struct Row {
    name: String,
    runc: Ended,
    caisson: Ended,
    note: std::result::Result<String, &'static str>,
}

fn run() -> Result<bool> {
    exit_on_signals()?;
    let parts: Vec<String> = std::env::args().skip(1).collect();
    let exceptions = Exceptions::parse(include_str!("exceptions.toml"))?;
    let suite = Suite::start()?;
    let names = suite.names()?;
    if let Some(name) = exceptions.unknown(|name| names.contains(name)) {
        bail!("exceptions.toml names `{name}`, which is no test");
    }
    let runc = suite.run(Runtime::Runc, &parts)?;
    let caisson = suite.run(Runtime::Caisson, &parts)?;
    let rows = compare(runc, caisson, &exceptions)?;
    ensure!(!rows.is_empty(), "no test is called {parts:?}");
    print!("{}", report::text(&rows));
    if parts.is_empty() {
        report::write(&rows, &suite.versions()?)?;
    }
    Ok(rows.iter().all(|row| row.note.is_ok()))
}

fn compare(
    runc: BTreeMap<String, Ended>,
    mut caisson: BTreeMap<String, Ended>,
    exceptions: &Exceptions,
) -> Result<Vec<Row>> {
    let rows = runc.into_iter().map(|(name, runc)| {
        let caisson = caisson
            .remove(&name)
            .with_context(|| format!("{name} did not run with Caisson"))?;
        let note = exceptions.judge(&name, runc.outcome, caisson.outcome);
        let note = note.map(str::to_owned);
        Ok(Row {
            name,
            runc,
            caisson,
            note,
        })
    });
    rows.collect()
}
