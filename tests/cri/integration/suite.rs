//! Runs the tests with one runtime: a node, and one process for each test.

use std::{
    fs,
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
    exceptions::Outcome,
    paths::{self, Containerd},
    Node, Output, Runtime,
};

use crate::surroundings::Surroundings;

/// How long one test may take. The longest (the leak tests) take a minute with runc.
const LIMIT: Duration = Duration::from_secs(240);

/// How long a killed containerd stays away. The tests check once a second whether it is gone.
const AWAY: Duration = Duration::from_secs(3);

/// The result of a test.
#[derive(Debug, Clone)]
pub struct Ended {
    pub outcome: Outcome,
    /// The parts of the test that were skipped, which Go counts as passed.
    pub skipped: Vec<String>,
}

impl Ended {
    fn failed() -> Self {
        Self {
            outcome: Outcome::Failed,
            skipped: Vec::new(),
        }
    }
}

/// The tests with one runtime.
pub struct Suite {
    node: &'static CriNode,
    runtime: Runtime,
    program: PathBuf,
    logs: PathBuf,
    surroundings: Surroundings,
    _registry: Registry<'static>,
    _supervisor: Supervisor,
    _root: TestRoot,
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
        let logs = paths::target()
            .join("log/cri-integration")
            .join(runtime.handler());
        fs::create_dir_all(&logs)?;
        let surroundings = Surroundings::make(node, &registry)?;
        Ok(Self {
            node,
            runtime,
            program,
            logs,
            surroundings,
            _registry: registry,
            _supervisor: Supervisor::start(node),
            _root: TestRoot::make()?,
        })
    }

    /// Returns the tests' names.
    pub fn names(&self) -> Result<Vec<String>> {
        let listed = self.program(&["-test.list", "."])?.ok()?;
        let text = listed.text();
        let names = text.lines().filter(|line| line.starts_with("Test"));
        Ok(names.map(str::to_owned).collect())
    }

    /// Runs one test. Its output is in its log.
    pub fn run(&self, name: &str) -> Result<Ended> {
        let pattern = format!("^{name}$");
        let log = self.logs.join(format!("{name}.log"));
        let output = match self.program(&["-test.v", "-test.run", &pattern]) {
            Ok(output) => output,
            Err(error) => {
                fs::write(&log, format!("{error:#}"))?;
                return Ok(Ended::failed());
            }
        };
        fs::write(&log, [output.stdout.as_slice(), &output.stderr].concat())?;
        let text = output.text();
        // A line is, for example, `--- SKIP: TestPods/with_users (0.00s)`.
        let ended: Vec<(&str, &str)> = text
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix("--- ")?.split_once(": "))
            .filter_map(|(what, rest)| Some((what, rest.split_once(' ')?.0)))
            .collect();
        let skipped = ended
            .iter()
            .filter(|(what, part)| *what == "SKIP" && *part != name);
        Ok(Ended {
            outcome: if output.code != 0 || ended.contains(&("FAIL", name)) {
                Outcome::Failed
            } else if ended.contains(&("SKIP", name)) {
                Outcome::Skipped
            } else {
                Outcome::Passed
            },
            skipped: skipped.map(|(_, part)| (*part).to_owned()).collect(),
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
                self.surroundings.image_list.display()
            ))
            .args(args)
            .env("PATH", &self.surroundings.path)
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

/// The root folder that containerd's own runs of the tests use. TestPodUserNS checks there whether
/// mounts can be mapped.
struct TestRoot {
    is_ours: bool,
}

impl TestRoot {
    const PATH: &str = "/var/lib/containerd-test";

    fn make() -> Result<Self> {
        match fs::create_dir(Self::PATH) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(error).context(Self::PATH)
            }
            made => Ok(Self {
                is_ours: made.is_ok(),
            }),
        }
    }
}

impl Drop for TestRoot {
    fn drop(&mut self) {
        if self.is_ours {
            let _ = fs::remove_dir(Self::PATH);
        }
    }
}

/// Restarts containerd when a test has ended it, as systemd does on a node.
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
