//! `make conformance`: Kubernetes' own end-to-end tests, those that every node has to pass (`[NodeConformance]`), with runc and with
//! Caisson as containerd's default runtime, each on a cluster of its own, both at once: two of the tests wait half an hour.
//!
//! What passes with runc has to pass with Caisson, and nothing may fail with runc, but for the exceptions in `exceptions.toml`, each with
//! its reason, which have to fail. Writes `docs/conformance.md` where all of them ran. Arguments: only the tests whose name one of them is
//! part of; `--last`: none, but the last run is looked at again, by exceptions that have changed.

mod report;
mod suite;

use std::{
    collections::BTreeMap,
    os::unix::process::CommandExt,
    process::{Child, Command, ExitCode},
};

use anyhow::{bail, ensure, Context, Result};
use caisson_tests::{exceptions::Exceptions, node::exit_on_signals, Runtime};
use nix::sys::signal::Signal;

use crate::suite::Ended;

/// Of this program, followed by the runtime's handler: the run with that one.
const WITH: &str = "--with";
/// Instead of a run.
const LAST: &str = "--last";

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
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [with, handler, parts @ ..] = &args[..] {
        if with == WITH {
            suite::run(handler, parts)?;
            return Ok(true);
        }
    }
    let exceptions = Exceptions::parse(include_str!("exceptions.toml"))?;
    let names = suite::names()?;
    if let Some(name) = exceptions.unknown(|name| names.contains(name)) {
        bail!("exceptions.toml names `{name}`, which is no test");
    }
    let (runc, caisson) = (Runtime::Runc.handler(), Runtime::Caisson.handler());
    if args != [LAST] {
        for mut process in [start(runc, &args)?, start(caisson, &args)?] {
            let status = process.wait()?;
            ensure!(status.success(), "a run ended with {status}");
        }
    }
    let rows = compare(suite::ended(runc)?, suite::ended(caisson)?, &exceptions)?;
    ensure!(!rows.is_empty(), "no test is called {args:?}");
    print!("{}", report::text(&rows));
    if rows.len() == names.len() {
        report::write(&rows, &suite::node(caisson)?)?;
    }
    Ok(rows.iter().all(|row| row.note.is_ok()))
}

/// Starts this program for one runtime. It ends with this one.
fn start(handler: &str, parts: &[String]) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([WITH, handler]).args(parts);
    // SAFETY: prctl(2) is a system call that touches no memory.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?));
    }
    command
        .spawn()
        .with_context(|| format!("start the run with {handler}"))
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
