//! `make conformance` runs those of Kubernetes' own end-to-end tests that every node has to pass
//! (`[NodeConformance]`), with runc and with Caisson as containerd's default runtime. Each runtime
//! has its own cluster. Both run at the same time, since two of the tests wait half an hour.
//!
//! What passes with runc has to pass with Caisson, and nothing may fail with runc. Exceptions are
//! listed in `exceptions.toml`, each with its reason, and they have to fail. If all tests ran and
//! ended as they have to, the program writes a section of `docs/conformance.md`. With arguments,
//! only the tests run whose name contains one of them. With `--last`, none run, and the last run is
//! judged again with the current exceptions.

mod suite;

use std::{
    os::unix::process::CommandExt,
    process::{Child, Command, ExitCode},
};

use anyhow::{bail, ensure, Context, Result};
use caisson_tests::{
    comparison::Comparison, exceptions::Exceptions, node::exit_on_signals, Runtime,
};
use nix::sys::signal::Signal;

/// The section's heading in `docs/conformance.md`.
const HEADING: &str = "Kubernetes' end-to-end tests for nodes";
/// An argument that, followed by a runtime's handler, makes this program run the tests with it.
const WITH: &str = "--with";
/// An argument that judges the last run in place of a new one.
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
    let comparison = Comparison::new(suite::ended(runc)?, suite::ended(caisson)?, &exceptions)?;
    print!("{}", comparison.text());
    if comparison.has_all(&names) && comparison.is_good() {
        comparison.write(HEADING, &introduction(&suite::node(caisson)?))?;
    }
    Ok(comparison.is_good())
}

fn introduction(node: &str) -> String {
    format!(
        "`make conformance` runs the tests of `k8s.io/kubernetes/test/e2e` that every node has to pass\n\
         (`[NodeConformance]`), with runc and with Caisson as containerd's default runtime, each on a cluster\n\
         of one node: {node}.\n\
         With Caisson the tests' pods get its RuntimeClass too (`tests/k8s/conformance/class.yaml`), so that\n\
         the memory that a VM takes is counted. The exceptions are named in\n\
         `tests/k8s/conformance/exceptions.toml`. Seconds are those of a test with its pods, three tests at\n\
         once.\n"
    )
}

/// Starts this program for one runtime. The process ends with this one.
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
