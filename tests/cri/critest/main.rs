//! Runs critest, the tests of CRI by the project that also has crictl, with runc and then with
//! Caisson. It is a part of `make cri`.
//!
//! What passes with runc has to pass with Caisson, and nothing may fail with runc. Exceptions are
//! listed in `exceptions.toml`, each with its reason, and they have to fail. If all tests ran and
//! ended as they have to, the program writes a section of `docs/conformance.md`. With arguments,
//! only the tests run whose name contains one of them. With `--last`, none run, and the last run is
//! judged again with the current exceptions.

mod suite;
mod surroundings;

use std::process::ExitCode;

use anyhow::{bail, Result};
use caisson_tests::{
    comparison::Comparison, exceptions::Exceptions, node::exit_on_signals, Runtime,
};

/// The section's heading in `docs/conformance.md`.
const HEADING: &str = "critest";
/// An argument that judges the last run in place of a new one.
const LAST: &str = "--last";

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("critest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    exit_on_signals()?;
    let args: Vec<String> = std::env::args().skip(1).collect();
    let exceptions = Exceptions::parse(include_str!("exceptions.toml"))?;
    let names = suite::names()?;
    if let Some(name) = exceptions.unknown(|name| names.contains(name)) {
        bail!("exceptions.toml names `{name}`, which is no test");
    }
    if args != [LAST] {
        // One after the other, since both take the same ports of the machine.
        suite::run(Runtime::Runc, &args)?;
        suite::run(Runtime::Caisson, &args)?;
    }
    let runc = suite::ended(Runtime::Runc)?;
    let caisson = suite::ended(Runtime::Caisson)?;
    let comparison = Comparison::new(runc, caisson, &exceptions)?;
    print!("{}", comparison.text());
    if comparison.has_all(&names) && comparison.is_good() {
        comparison.write(HEADING, &introduction(&suite::node(Runtime::Caisson)?))?;
    }
    Ok(comparison.is_good())
}

fn introduction(node: &str) -> String {
    format!(
        "`make cri` runs the tests of CRI that the project of crictl has (`sigs.k8s.io/cri-tools/cmd/critest`),\n\
         with runc's runtime handler and with Caisson's, each on a containerd of its own: {node}.\n\
         The exceptions are named in `tests/cri/critest/exceptions.toml`. Seconds are those of a test with its\n\
         pods, one test after the other.\n"
    )
}
