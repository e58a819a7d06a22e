//! Runs the program with the tests on a cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::{ensure, Context, Result};
use caisson_local::components::MARK;
use caisson_tests::{
    command,
    ginkgo::{self, Ended},
    k8s::{program, Registry, TestCluster, LIMIT},
    paths, proc, Runtime,
};

/// For each image, the tests' name and the image that is served.
const IMAGES: [(&str, &str); 9] = [
    ("registry.k8s.io/e2e-test-images/agnhost:2.53", "agnhost"),
    (
        "registry.k8s.io/e2e-test-images/busybox:1.36.1-1",
        "hub-busybox",
    ),
    ("registry.k8s.io/e2e-test-images/httpd:2.4.38-4", "httpd"),
    ("registry.k8s.io/e2e-test-images/httpd:2.4.39-4", "httpd"),
    ("registry.k8s.io/e2e-test-images/nginx:1.14-4", "httpd"),
    ("registry.k8s.io/e2e-test-images/nginx:1.15-4", "httpd"),
    (
        "registry.k8s.io/e2e-test-images/nonewprivs:1.3",
        "nonewprivs",
    ),
    ("registry.k8s.io/e2e-test-images/nonroot:1.4", "nonroot"),
    ("registry.k8s.io/pause:3.10", "pause"),
];

/// The label of the tests that every node has to pass.
const LABEL: &str = "NodeConformance";
/// How many tests run at once. Most of them spend most of their time waiting.
const AT_ONCE: u32 = 3;
/// How long all of them may take with one runtime.
const ALL: Duration = Duration::from_secs(2 * 3600);

/// Returns the tests' names.
pub fn names() -> Result<BTreeSet<String>> {
    let path = logs()?.join("names.json");
    let report = format!("--ginkgo.json-report={}", path.display());
    let filter = format!("--ginkgo.label-filter={LABEL}");
    e2e(&["--ginkgo.dry-run", &filter, &report])?;
    Ok(ginkgo::read(&path)?.into_keys().collect())
}

/// Returns the results of the last run with this runtime.
pub fn ended(handler: &str) -> Result<BTreeMap<String, Ended>> {
    ginkgo::read(&logs()?.join(report(handler)))
}

/// Returns the description of the node of that run.
pub fn node(handler: &str) -> Result<String> {
    let path = logs()?.join(format!("{handler}.node"));
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// Runs the tests on a cluster where this runtime is containerd's default. Their output is in their
/// log.
pub fn run(handler: &str, parts: &[String]) -> Result<()> {
    let known = e2e(&["--list-images"])?;
    let known: BTreeSet<_> = known.lines().map(str::trim).collect();
    for (name, _) in IMAGES {
        ensure!(known.contains(name), "the tests know no image {name}");
    }
    eprintln!("  {handler}: a cluster and the tests' images ...");
    let nodes = TestCluster::shared();
    let registry = Registry::start(nodes)?;
    registry.stand_in()?;
    for (name, fixture) in IMAGES {
        registry.publish(fixture, name)?;
    }
    make_default(nodes, handler)?;
    let logs = logs()?;
    fs::write(logs.join(format!("{handler}.node")), versions(nodes)?)?;
    let log = logs.join(format!("{handler}.log"));
    eprintln!("  {handler}: the tests: {} ...", log.display());
    let output = fs::File::create(&log)?;
    // If ginkgo can't write a report, that of an earlier run must not be taken for this one's.
    let _ = fs::remove_file(logs.join(report(handler)));
    let cluster = nodes.cluster();
    let mut runner = Command::new(paths::conformance("ginkgo")?);
    runner
        .arg(format!("--procs={AT_ONCE}"))
        .arg(format!("--label-filter={LABEL}"))
        .arg(format!("--timeout={}s", ALL.as_secs()))
        .arg(format!("--output-dir={}", logs.display()))
        .arg(format!("--json-report={}", report(handler)))
        .args(["--no-color", "--silence-skips", "-v"])
        .args(
            parts
                .iter()
                .map(|part| format!("--focus={}", ginkgo::focus(part))),
        )
        .arg(paths::conformance("e2e.test")?)
        .args(["--", "--provider=skeleton", "--num-nodes=1"])
        .arg(format!(
            "--kubeconfig={}",
            cluster.layout().kubeconfig().display()
        ))
        .arg(format!(
            "--kubectl-path={}",
            cluster.programs().kubernetes("kubectl").display()
        ))
        // The processes end with the cluster.
        .env(MARK, cluster.layout().dir())
        .current_dir(&logs)
        .stdout(output.try_clone()?)
        .stderr(output);
    let mut process = runner.spawn().context("start ginkgo")?;
    // The exit code says only whether all have passed.
    let ended = command::wait(&mut process, ALL + LIMIT)?;
    ensure!(ended.is_some(), "not within {ALL:?}: {}", log.display());
    Ok(())
}

fn logs() -> Result<PathBuf> {
    let logs = paths::target().join("log/conformance");
    fs::create_dir_all(&logs)?;
    Ok(logs)
}

fn report(handler: &str) -> String {
    format!("{handler}.json")
}

fn versions(nodes: &TestCluster) -> Result<String> {
    let path = "jsonpath={.items[0].status.nodeInfo.kubeletVersion}, {.items[0].status.nodeInfo.containerRuntimeVersion}, \
                kernel {.items[0].status.nodeInfo.kernelVersion}, accelerator {.items[0].metadata.labels.caisson\\.dev/accelerator}";
    let output = nodes.kubectl(&["get", "nodes", "--output", path])?;
    Ok(output.ok()?.text())
}

/// Makes a runtime the default for pods without a RuntimeClass. With Caisson the tests' pods get
/// its class, for the overhead in it.
fn make_default(nodes: &TestCluster, handler: &str) -> Result<()> {
    let cluster = nodes.cluster();
    let path = cluster.layout().containerd_config();
    let config = fs::read_to_string(&path)?;
    let key = "default_runtime_name";
    let is_key = |line: &&str| line.trim_start().starts_with(key);
    let old = config.lines().find(is_key).context(key)?;
    fs::write(
        &path,
        config.replace(old, &format!("{key} = \"{}\"", handler)),
    )?;
    let before = program(cluster, "containerd")?;
    proc::kill(before, libc::SIGTERM);
    command::poll("containerd with its new configuration", LIMIT, || {
        let now = program(cluster, "containerd").ok()?;
        let answers =
            caisson_local::images::containerd_answers(cluster.layout(), cluster.programs());
        (now != before && answers.is_ok()).then_some(())
    })?;
    let ready = [
        "wait",
        "--for=condition=Ready",
        "node",
        "--all",
        "--timeout=110s",
    ];
    nodes.kubectl(&ready)?.ok()?;
    if handler == Runtime::Runc.handler() {
        return Ok(());
    }
    cluster.apply(include_str!("class.yaml"))
}

/// Runs the tests' program with these arguments. Returns its output.
fn e2e(args: &[&str]) -> Result<String> {
    let mut e2e = Command::new(paths::conformance("e2e.test")?);
    let output = command::run(e2e.args(args), None, LIMIT)?;
    Ok(output.ok()?.text())
}
