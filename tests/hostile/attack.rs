//! Runs one hostile pod beside a neighbour, and records the result of each request and the effect
//! on the node.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{ensure, Result};
use caisson_tests::{
    command::poll,
    cri::{Container, CriNode, Pod},
    hostile::{check_log, check_text, initramfs, Neighbour, Peak, MEMORY, SLOWER},
    leftovers::alone,
    proc, Leftovers, Node,
};
use serde_json::json;

/// The time within which a request is answered, with a reason if it fails.
pub const SOON: Duration = Duration::from_secs(10);

/// How long containerd waits for the end of an exec's output when its process has ended
/// (`drain_exec_sync_io_timeout` of the tests' configuration).
const DRAIN: Duration = Duration::from_secs(10);
/// How many seconds an agent has for an answer. This is the default with KVM, and is set here for
/// emulation too.
const ANSWER_SECS: u64 = 8;

/// The hostname of a pod whose agent tells no lie.
const HONEST: &str = "honest";

/// Returns the node. All its guests have the agent that lies if the pod's hostname asks for it.
pub fn node() -> &'static CriNode {
    static NODE: OnceLock<CriNode> = OnceLock::new();
    NODE.get_or_init(|| {
        let hostile = || {
            let initramfs = initramfs()?;
            let node = CriNode::start_with(|config| {
                config["guest"]["initramfs"] = json!(initramfs);
                config["vm"]["answer_timeout_secs"] = json!(ANSWER_SECS);
            })?;
            node.image("busybox")?;
            node.build_template()?;
            anyhow::Ok(node)
        };
        hostile().unwrap_or_else(|error| panic!("no test node: {error:#}"))
    })
}

/// Returns the neighbour, a pod whose agent is honest, beside which the other pods run.
pub fn neighbour() -> &'static Neighbour {
    static NEIGHBOUR: OnceLock<Neighbour> = OnceLock::new();
    NEIGHBOUR.get_or_init(|| {
        let node = node();
        Node::end_at_exit(node);
        Neighbour::start(node).unwrap_or_else(|error| panic!("no neighbour: {error:#}"))
    })
}

/// A request and its result.
#[derive(Debug)]
pub struct Step {
    name: &'static str,
    took: Duration,
    error: Option<String>,
}

impl Step {
    /// Returns whether containerd gave up on the output of an exec.
    fn is_drained(&self) -> bool {
        let error = self.error.as_deref();
        error.is_some_and(|error| error.contains("failed to drain exec process"))
    }
}

/// The requests for one pod, in order.
#[derive(Default)]
pub struct Life {
    steps: Vec<Step>,
}

impl Life {
    /// Makes a request and records its result.
    pub fn step<T>(&mut self, name: &'static str, work: impl FnOnce() -> Result<T>) -> Option<T> {
        let start = Instant::now();
        let result = work();
        let error = result.as_ref().err().map(|error| format!("{error:#}"));
        self.steps.push(Step {
            name,
            took: start.elapsed(),
            error,
        });
        result.ok()
    }

    /// Collects what is wrong with the answers.
    fn faults(&self, boot: Duration, faults: &mut Vec<String>) {
        for step in &self.steps {
            let (name, took) = (step.name, step.took);
            let limit = match name {
                "RunPodSandbox" => SOON + boot,
                // With runc too, a process that was left behind may keep writing into the output of
                // an exec.
                "ExecSync" if step.is_drained() => SOON + 2 * DRAIN,
                _ => SOON,
            };
            if took > limit {
                faults.push(format!("{name} took {took:.1?}"));
            }
            let Some(error) = &step.error else { continue };
            faults.extend(check_text(name, error).err().map(|e| format!("{e:#}")));
            if matches!(name, "StopPodSandbox" | "RemovePodSandbox") {
                faults.push(format!("{name} failed: {error}"));
            }
        }
    }

    fn print(&self) {
        for Step { name, took, error } in &self.steps {
            let error: String = error
                .iter()
                .flat_map(|error| error.chars())
                .take(200)
                .collect();
            println!("  {name}: {took:.2?} {error}");
        }
    }
}

/// Runs the life of a pod with this hostname and checks that it does nothing to its node that no
/// pod may do. `more` is the test's own check on the running pod and its container.
pub fn attack(
    hostname: &str,
    more: impl FnOnce(&mut Life, &Pod<'_>, &Container<'_>) -> Result<()> + Send,
) -> Result<()> {
    let _alone = alone();
    let (node, neighbour) = (node(), neighbour());
    let healthy = healthy()?;
    let before = Leftovers::count(node);
    let peak = Peak::beside(neighbour)?;
    let alone = neighbour.median()?;
    let start = Instant::now();
    let ((life, asked), beside) = neighbour.beside(|| Ok(live(node, hostname, more)))?;
    let took = start.elapsed();
    let mut usual = alone;
    if beside.as_secs_f64() > SLOWER * alone.as_secs_f64() {
        // A pod's start takes the cores of a small machine, whoever's pod it is.
        usual = usual.max(beside_an_honest_pod(took)?);
    }
    let memory = peak.bytes().saturating_sub(healthy.memory);
    let slower = beside.as_secs_f64() / usual.as_secs_f64();
    println!(
        "{hostname}: {:.1} MiB of memory more than a healthy shim's {:.1}; an exec beside it \
         {beside:.0?}, alone {alone:.0?}, at most {usual:.0?} without a lie: {slower:.2}",
        mib(memory),
        mib(healthy.memory),
    );
    life.print();
    let mut faults = Vec::new();
    life.faults(healthy.boot, &mut faults);
    faults.extend(asked.err().map(|error| format!("{error:#}")));
    if memory > MEMORY {
        faults.push(format!("the shim took {:.1} MiB more", mib(memory)));
    }
    if slower > SLOWER {
        faults.push(format!(
            "the neighbour's exec took {slower:.2} times as long"
        ));
    }
    let left = Leftovers::none_since(node, &before);
    faults.extend(left.err().map(|error| format!("{error:#}")));
    faults.extend(check_log(node).err().map(|error| format!("{error:#}")));
    ensure!(faults.is_empty(), "{hostname}:\n{}", faults.join("\n"));
    Ok(())
}

/// Returns the median of the neighbour's execs beside a pod that lives for about `life` and whose
/// agent tells no lie.
fn beside_an_honest_pod(life: Duration) -> Result<Duration> {
    let start = Instant::now();
    let wait = |_: &mut Life, _: &Pod<'_>, _: &Container<'_>| {
        std::thread::sleep(life.saturating_sub(start.elapsed()));
        Ok(())
    };
    let ((_, lived), median) = neighbour().beside(|| Ok(live(node(), HONEST, wait)))?;
    lived?;
    Ok(median)
}

/// Removes a pod. Asks again, as a kubelet does, while containerd is taking in the end of its
/// container: it forgets the task before it notes that the container has ended
/// (core/runtime/v2/shim.go, `delete`; internal/cri/server/events.go, `handleContainerExit`), and
/// refuses to remove the pod between the two.
fn removed(pod: &Pod<'_>) -> Result<()> {
    const ENDING: &str = "container is still running, to stop first";
    poll(
        "containerd to know that the container has ended",
        SOON,
        || match pod.remove() {
            Err(error) if format!("{error:#}").contains(ENDING) => None,
            removed => Some(removed),
        },
    )?
}

/// Makes a kubelet's requests. A request that fails does not prevent the next.
fn live(
    node: &CriNode,
    hostname: &str,
    more: impl FnOnce(&mut Life, &Pod<'_>, &Container<'_>) -> Result<()>,
) -> (Life, Result<()>) {
    let mut life = Life::default();
    let start = || node.pod().hostname(hostname).start();
    let Some(pod) = life.step("RunPodSandbox", start) else {
        return (life, Ok(()));
    };
    let mut asked = Ok(());
    let container = pod.container("busybox").args(["sleep", "1000"]);
    let container = container.env("CAISSON_VICTIM", neighbour().container().id());
    let container = container.create();
    match container {
        Ok(container) => {
            let start = life.step("StartContainer", || container.start());
            if start.is_some() {
                life.step("ExecSync", || {
                    container.exec_within(["true"], Duration::from_secs(3))
                });
                life.step("ContainerStats", || container.stats());
                asked = more(&mut life, &pod, &container);
                life.step("StopContainer", || container.stop(Duration::ZERO));
            }
            life.step("RemoveContainer", || container.remove());
        }
        Err(error) => asked = Err(error),
    }
    life.step("StopPodSandbox", || pod.stop());
    life.step("RemovePodSandbox", || removed(&pod));
    (life, asked)
}

/// The boot time and memory of a pod whose agent does not lie.
struct Healthy {
    boot: Duration,
    memory: u64,
}

fn healthy() -> Result<&'static Healthy> {
    static HEALTHY: OnceLock<Healthy> = OnceLock::new();
    if let Some(healthy) = HEALTHY.get() {
        return Ok(healthy);
    }
    // Runs after the neighbour's start, so that the image and what is remembered of the node exist.
    neighbour();
    let start = Instant::now();
    let pod = node().pod().start()?;
    let boot = start.elapsed();
    let container = pod.container("busybox").args(["sleep", "1000"]).start()?;
    container.exec(["true"])?.ok()?;
    container.stats()?;
    let memory = proc::peak_rss(pod.shim()?)?;
    Ok(HEALTHY.get_or_init(|| Healthy { boot, memory }))
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
