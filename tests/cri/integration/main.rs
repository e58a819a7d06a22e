//! `make cri`: containerd's own CRI tests, from its Go module, against runc and then against Caisson.
//!
//! Each test runs in a process of its own with an end of time. What passes with runc has to pass with Caisson, and nothing
//! may fail with runc, but for the exceptions in `exceptions.toml`, each with its reason, which have to fail. Arguments: only
//! the tests whose name one of them is part of.

mod suite;
mod surroundings;

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::{bail, ensure, Context, Result};
use caisson_tests::{node::exit_on_signals, Runtime};
use serde::Deserialize;
use suite::{Ended, Outcome, Suite};

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

/// Which tests may fail, each with the reason; `exceptions.toml`.
#[derive(Deserialize)]
struct Exceptions {
    /// With runc already.
    runc: BTreeMap<String, String>,
    /// With Caisson, though they pass with runc.
    caisson: BTreeMap<String, String>,
}

impl Exceptions {
    fn read() -> Result<Self> {
        let exceptions: Self =
            toml::from_str(include_str!("exceptions.toml")).context("exceptions.toml")?;
        let count = exceptions.caisson.len();
        ensure!(
            count <= EXCEPTIONS_MAX,
            "{count} exceptions of Caisson's are more than {EXCEPTIONS_MAX}"
        );
        Ok(exceptions)
    }

    /// What a test's outcomes mean: a note, and an error where they are not as the table says.
    fn judge(
        &self,
        name: &str,
        runc: &Ended,
        caisson: &Ended,
    ) -> std::result::Result<&str, &'static str> {
        let fails_with_runc = runc.outcome == Outcome::Failed;
        let left_out = |part: &String| !runc.skipped.contains(part);
        let worse = runc.outcome == Outcome::Passed
            && (caisson.outcome != Outcome::Passed || caisson.skipped.iter().any(left_out));
        match (fails_with_runc, self.runc.get(name)) {
            (true, Some(reason)) => return Ok(reason),
            (true, None) => return Err("fails with runc: give the reason in exceptions.toml"),
            (false, Some(_)) => return Err("passes with runc: take it out of exceptions.toml"),
            (false, None) => {}
        }
        match (worse, self.caisson.get(name)) {
            (true, Some(reason)) => Ok(reason),
            (true, None) => Err("passes with runc only"),
            (false, Some(_)) => Err("no exception any more: take it out of exceptions.toml"),
            (false, None) => Ok(""),
        }
    }

    /// The names of tests that there are none of.
    fn unknown<'e>(&'e self, names: &'e [String]) -> impl Iterator<Item = &'e String> {
        let all = self.runc.keys().chain(self.caisson.keys());
        all.filter(|name| !names.contains(name))
    }
}

fn run() -> Result<bool> {
    exit_on_signals()?;
    keep_descriptors()?;
    let parts: Vec<String> = std::env::args().skip(1).collect();
    let exceptions = Exceptions::read()?;
    let runc = outcomes(Runtime::Runc, &parts, &exceptions)?;
    let caisson = outcomes(Runtime::Caisson, &parts, &exceptions)?;
    let mut good = true;
    println!("\n{:<60} {:<8} {:<8}", "", "runc", "caisson");
    for (name, with_runc) in &runc {
        let with_caisson = caisson.get(name).context("a test is gone")?;
        let note = match exceptions.judge(name, with_runc, with_caisson) {
            Ok(reason) => reason.to_owned(),
            Err(wrong) => {
                good = false;
                format!("<-- {wrong}")
            }
        };
        let (runc, caisson) = (with_runc.outcome, with_caisson.outcome);
        println!("{name:<60} {runc:<8} {caisson:<8} {note}");
        for part in &with_caisson.skipped {
            println!("  skipped: {part}");
        }
    }
    println!("\nrunc:    {}\ncaisson: {}", count(&runc), count(&caisson));
    Ok(good)
}

/// Keeps what the caller left open here from the shims: a test counts their pipes.
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
    if let Some(name) = exceptions.unknown(&names).next() {
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

fn count(outcomes: &BTreeMap<String, Ended>) -> String {
    let of = |wanted| {
        let all = outcomes.values();
        all.filter(|ended| ended.outcome == wanted).count()
    };
    format!(
        "{} passed, {} failed, {} skipped",
        of(Outcome::Passed),
        of(Outcome::Failed),
        of(Outcome::Skipped)
    )
}
