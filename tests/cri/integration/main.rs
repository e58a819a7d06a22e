//! `make cri` runs containerd's own CRI tests, from its Go module, against runc and then against
//! Caisson.
//!
//! Each test runs in its own process with a time limit. What passes with runc has to pass with
//! Caisson, and nothing may fail with runc. Exceptions are listed in `exceptions.toml`, each with
//! its reason, and they have to fail. With arguments, only the tests run whose name contains one of
//! them.

mod suite;
mod surroundings;

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::{bail, ensure, Context, Result};
use caisson_tests::{
    exceptions::{self, Exceptions, Outcome},
    node::exit_on_signals,
    Runtime,
};
use suite::{Ended, Suite};

/// The maximum number of tests that may pass with runc and fail with Caisson.
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

/// Reads the list of tests that may fail, with the reasons.
fn read_exceptions() -> Result<Exceptions> {
    let exceptions = Exceptions::parse(include_str!("exceptions.toml"))?;
    let count = exceptions.of_caisson();
    ensure!(
        count <= EXCEPTIONS_MAX,
        "{count} exceptions of Caisson's are more than {EXCEPTIONS_MAX}"
    );
    Ok(exceptions)
}

/// Returns the outcome with Caisson. Skipping a part that runs with runc counts as a failure.
fn with_caisson(runc: &Ended, caisson: &Ended) -> Outcome {
    let left_out = |part: &String| !runc.skipped.contains(part);
    if caisson.skipped.iter().any(left_out) {
        Outcome::Failed
    } else {
        caisson.outcome
    }
}

fn run() -> Result<bool> {
    exit_on_signals()?;
    keep_descriptors()?;
    let parts: Vec<String> = std::env::args().skip(1).collect();
    let exceptions = read_exceptions()?;
    let runc = outcomes(Runtime::Runc, &parts, &exceptions)?;
    let caisson = outcomes(Runtime::Caisson, &parts, &exceptions)?;
    let mut good = true;
    println!("\n{:<60} {:<8} {:<8}", "", "runc", "caisson");
    for (name, runc) in &runc {
        let caisson = caisson.get(name).context("a test is gone")?;
        let note = match exceptions.judge(name, runc.outcome, with_caisson(runc, caisson)) {
            Ok(reason) => reason.to_owned(),
            Err(wrong) => {
                good = false;
                format!("<-- {wrong}")
            }
        };
        println!(
            "{name:<60} {:<8} {:<8} {note}",
            runc.outcome, caisson.outcome
        );
        for part in &caisson.skipped {
            println!("  skipped: {part}");
        }
    }
    let count =
        |all: &BTreeMap<_, Ended>| exceptions::count(all.values().map(|ended| ended.outcome));
    println!("\nrunc:    {}\ncaisson: {}", count(&runc), count(&caisson));
    Ok(good)
}

/// Keeps the descriptors that the caller left open here from the shims, since a test counts the
/// shims' pipes.
fn keep_descriptors() -> Result<()> {
    // SAFETY: changes a flag of descriptors only, none is closed.
    let result =
        unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) };
    ensure!(
        result == 0,
        "close_range: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}

fn outcomes(
    runtime: Runtime,
    parts: &[String],
    exceptions: &Exceptions,
) -> Result<BTreeMap<String, Ended>> {
    let suite = Suite::start(runtime)?;
    let names = suite.names()?;
    let is_test = |name: &str| names.iter().any(|test| test == name);
    if let Some(name) = exceptions.unknown(is_test) {
        bail!("exceptions.toml names {name}, which is no test");
    }
    let wanted = |name: &&String| parts.is_empty() || parts.iter().any(|part| name.contains(part));
    let mut outcomes = BTreeMap::new();
    for name in names.iter().filter(wanted) {
        let ended = suite.run(name)?;
        println!("{:<8} {name}: {}", runtime.handler(), ended.outcome);
        outcomes.insert(name.clone(), ended);
    }
    ensure!(!outcomes.is_empty(), "no test is called {parts:?}");
    Ok(outcomes)
}
