//! One runtime's run of the tests: a node, the images that they ask for, one process a test.

use std::{
    fmt, fs,
    path::PathBuf,
    process::Command,
    sync::{
        atomic::{AtomicBool, Ordering},
        Arc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{ensure, Context, Result};
use caisson_tests::{
    command,
    cri::{registry::Registry, CriNode},
    fixture,
    paths::{self, Containerd},
    Node, Output, Runtime,
};

/// How long one test may take; the longest (the leak tests) take a minute with runc.
const LIMIT: Duration = Duration::from_secs(240);

/// How long a killed containerd stays away: the tests look once a second whether it is gone.
const AWAY: Duration = Duration::from_secs(3);

/// The images that the tests name, and what is served for them.
const IMAGES: [(&str, &str); 8] = [
    ("ghcr.io/containerd/busybox:1.36", "hub-busybox"),
    ("ghcr.io/containerd/alpine:3.14.0", "busybox"),
    ("ghcr.io/containerd/nginx:1.27.0", "busybox"),
    ("registry.k8s.io/pause:3.10", "pause"),
    // The node's own sandbox image, since some tests remove every image.
    ("localhost/pause:test", "pause"),
    (
        "registry.k8s.io/e2e-test-images/resource-consumer:1.10",
        "resource-consumer",
    ),
    ("ghcr.io/containerd/volume-copy-up:2.2", "volume-copy-up"),
    (
        "ghcr.io/containerd/volume-ownership:2.1",
        "volume-ownership",
    ),
];

const IMAGE_LIST: &str = "image-list.toml";

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed,
    Skipped,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::Skipped => "skipped",
        })
    }
}

/// The tests with one runtime.
pub struct Suite {
    node: &'static CriNode,
    runtime: Runtime,
    program: PathBuf,
    logs: PathBuf,
    _registry: Registry<'static>,
    _supervisor: Supervisor,
}

impl Suite {
    pub fn start(runtime: Runtime) -> Result<Self> {
        let program = Containerd::V2.checked_bin()?.join("integration.test");
        ensure!(
            program.exists(),
            "no {}: cargo xtask test-tools --integration",
            program.display()
        );
        let node: &'static CriNode = Box::leak(Box::new(CriNode::start_version(Containerd::V2)?));
        Node::end_at_exit(node);
        let registry = Registry::start(node)?;
        for (name, fixture) in IMAGES {
            registry.publish(fixture, name)?;
        }
        let logs = paths::target()
            .join("log/cri-integration")
            .join(runtime.handler());
        fs::create_dir_all(&logs)?;
        // The tests' pause image has to be the one that containerd is configured with and so pins.
        let pause = fixture::full_name("pause");
        fs::write(
            node.dir().join(IMAGE_LIST),
            format!("Pause = \"{pause}\"\n"),
        )?;
        Ok(Self {
            node,
            runtime,
            program,
            logs,
            _registry: registry,
            _supervisor: Supervisor::start(node),
        })
    }

    /// The tests' names.
    pub fn names(&self) -> Result<Vec<String>> {
        let listed = self.program(&["-test.list", "."])?.ok()?;
        let text = listed.text();
        let names = text.lines().filter(|line| line.starts_with("Test"));
        Ok(names.map(str::to_owned).collect())
    }

    /// Runs one test; what it said is in its log.
    pub fn run(&self, name: &str) -> Result<Outcome> {
        let pattern = format!("^{name}$");
        let log = self.logs.join(format!("{name}.log"));
        let output = match self.program(&["-test.v", "-test.run", &pattern]) {
            Ok(output) => output,
            Err(error) => {
                fs::write(&log, format!("{error:#}"))?;
                return Ok(Outcome::Failed);
            }
        };
        fs::write(&log, [output.stdout.as_slice(), &output.stderr].concat())?;
        let text = output.text();
        let said = |what: &str| {
            text.lines()
                .any(|line| line.starts_with(&format!("--- {what}: {name} ")))
        };
        Ok(if output.code != 0 || said("FAIL") {
            Outcome::Failed
        } else if said("SKIP") {
            Outcome::Skipped
        } else {
            Outcome::Passed
        })
    }

    fn program(&self, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.program);
        command
            .arg(format!(
                "--cri-endpoint=unix://{}",
                self.node.socket().display()
            ))
            .arg(format!("--runtime-handler={}", self.runtime.handler()))
            .arg(format!("--containerd-bin={}", self.node.tag()))
            .arg(format!(
                "--image-list={}",
                self.node.dir().join(IMAGE_LIST).display()
            ))
            .args(args)
            .env("PATH", self.node.path())
            .env("TMPDIR", self.node.dir())
            .current_dir(self.node.dir());
        command::run(&mut command, None, LIMIT)
    }
}

impl Drop for Suite {
    fn drop(&mut self) {
        self.node.remove();
    }
}

/// Starts containerd again when a test has ended it, as systemd does on a node.
struct Supervisor {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Supervisor {
    fn start(node: &'static CriNode) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let ended = end.clone();
        let thread = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                if let Err(error) = node.revive(AWAY).context("start containerd again") {
                    eprintln!("{error:#}");
                }
                thread::sleep(Duration::from_millis(500));
            }
        });
        Self {
            end,
            thread: Some(thread),
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
