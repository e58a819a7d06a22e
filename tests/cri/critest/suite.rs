//! Runs the program with the tests on a node of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{ensure, Context, Result};
use caisson_tests::{
    command,
    cri::{registry::Registry, CriNode},
    ginkgo::{self, Ended},
    node::LIMIT,
    paths::{self, Containerd},
    Node, Runtime,
};
use nix::sys::signal::Signal;

use crate::surroundings::{self, HostPorts};

/// How long all tests may take with one runtime.
const ALL: Duration = Duration::from_secs(3600);

/// Returns the tests' names.
pub fn names() -> Result<BTreeSet<String>> {
    let path = logs()?.join("names.json");
    let mut critest = Command::new(paths::critest()?);
    critest.args(["--ginkgo.dry-run", &json_report(&path)]);
    command::run(&mut critest, None, LIMIT)?.ok()?;
    Ok(ginkgo::read(&path)?.into_keys().collect())
}

/// Returns the results of the last run with this runtime.
pub fn ended(runtime: Runtime) -> Result<BTreeMap<String, Ended>> {
    ginkgo::read(&report(runtime)?)
}

/// Returns the description of the node of that run.
pub fn node(runtime: Runtime) -> Result<String> {
    let path = description(runtime)?;
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// Runs the tests with this runtime. Their output is in their log.
pub fn run(runtime: Runtime, parts: &[String]) -> Result<()> {
    let handler = runtime.handler();
    eprintln!("  {handler}: a node and the tests' images ...");
    let node: &'static CriNode = Box::leak(Box::new(CriNode::start_version(Containerd::V2)?));
    Node::end_at_exit(node);
    let registry = Registry::start(node)?;
    let ports = HostPorts::open(node)?;
    surroundings::publish(&registry)?;
    let result = run_on(node, runtime, parts);
    drop((ports, registry));
    node.remove();
    result
}

fn run_on(node: &CriNode, runtime: Runtime, parts: &[String]) -> Result<()> {
    let handler = runtime.handler();
    let log = logs()?.join(format!("{handler}.log"));
    eprintln!("  {handler}: the tests: {} ...", log.display());
    let output = fs::File::create(&log)?;
    let report = report(runtime)?;
    // If critest can't write a report, that of an earlier run must not be taken for this one's.
    let _ = fs::remove_file(&report);
    let socket = format!("unix://{}", node.socket().display());
    let mut critest = Command::new(paths::critest()?);
    critest
        .arg(format!("--runtime-endpoint={socket}"))
        .arg(format!("--image-endpoint={socket}"))
        .arg(format!("--runtime-handler={handler}"))
        .arg(format!("--ginkgo.timeout={}s", ALL.as_secs()))
        .args(["--ginkgo.no-color", "--ginkgo.seed=1"])
        .arg(json_report(&report))
        .args(
            parts
                .iter()
                .map(|part| format!("--ginkgo.focus={}", ginkgo::focus(part))),
        )
        .env("TMPDIR", node.dir())
        .current_dir(node.dir())
        .stdout(output.try_clone()?)
        .stderr(output);
    // SAFETY: prctl(2) is a system call that touches no memory.
    unsafe {
        critest.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
    }
    let mut process = critest.spawn().context("start critest")?;
    // The exit code says only whether all have passed.
    let ended = command::wait(&mut process, ALL + LIMIT)?;
    fs::write(description(runtime)?, describe(node)?)?;
    ensure!(ended.is_some(), "not within {ALL:?}: {}", log.display());
    Ok(())
}

fn describe(node: &CriNode) -> Result<String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(format!(
        "containerd {}, kernel {}, accelerator {}",
        node.containerd_version()?,
        kernel.trim(),
        surroundings::accelerator(node)
    ))
}

fn logs() -> Result<PathBuf> {
    let logs = paths::target().join("log/critest");
    fs::create_dir_all(&logs)?;
    Ok(logs)
}

fn report(runtime: Runtime) -> Result<PathBuf> {
    Ok(logs()?.join(format!("{}.json", runtime.handler())))
}

fn description(runtime: Runtime) -> Result<PathBuf> {
    Ok(logs()?.join(format!("{}.node", runtime.handler())))
}

fn json_report(path: &Path) -> String {
    format!("--ginkgo.json-report={}", path.display())
}
