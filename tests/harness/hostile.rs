//! Measures what a hostile pod must not do to its node: slow a neighbour down, take up the shim's
//! memory, or write control characters into the log.

use std::{
    path::PathBuf,
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        Arc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{ensure, Context, Result};

use crate::{
    cri::{Container, CriNode},
    paths, proc, Node, Runtime,
};

/// How many more bytes of memory a shim may take than that of a pod that is not hostile.
pub const MEMORY: u64 = 32 << 20;
/// The factor by which an exec of a neighbour may take longer.
pub const SLOWER: f64 = 1.5;
/// The number of execs for a median.
const EXECS: usize = 7;
/// A shim's name in /proc/PID/status, which holds only the first 15 bytes (proc(5)).
const SHIM_NAME: &str = "containerd-shim";
/// The pause between two looks at the memory of shims.
const LOOK: Duration = Duration::from_millis(20);
/// The pause between two searches for shims.
const LOOK_FOR_SHIMS: Duration = Duration::from_millis(200);

/// Returns the initramfs with the lying agent.
pub fn initramfs() -> Result<PathBuf> {
    let path = paths::target().join("cache/hostile/initramfs.cpio");
    ensure!(
        path.exists(),
        "no {}: cargo xtask image --hostile",
        path.display()
    );
    Ok(path)
}

/// A pod that shares the node with hostile pods.
pub struct Neighbour {
    container: Container<'static>,
}

impl Neighbour {
    /// Starts the node's neighbour, which stays until the process exits.
    pub fn start(node: &'static CriNode) -> Result<Self> {
        let pod = node.shared_pod(Runtime::Caisson)?;
        let container = pod.container("busybox").args(["sleep", "100000"]).start()?;
        Ok(Self { container })
    }

    /// Returns its container.
    pub fn container(&self) -> &Container<'static> {
        &self.container
    }

    /// Returns the pid of its shim.
    pub fn shim(&self) -> Result<u32> {
        self.container.pod().shim()
    }

    /// Measures how long an exec takes.
    pub fn exec(&self) -> Result<Duration> {
        let start = Instant::now();
        let output = self.container.exec(["true"])?;
        output.ok().context("the neighbour's exec")?;
        Ok(start.elapsed())
    }

    /// Returns the median duration of several execs.
    pub fn median(&self) -> Result<Duration> {
        (0..EXECS)
            .map(|_| self.exec())
            .collect::<Result<_>>()
            .map(median)
    }

    /// Runs `attack` beside execs of the neighbour. Returns the attack's result and the median of
    /// the execs. If the attack ends early, execs after it count too.
    pub fn beside<T: Send>(
        &self,
        attack: impl FnOnce() -> Result<T> + Send,
    ) -> Result<(T, Duration)> {
        std::thread::scope(|scope| {
            let attack = scope.spawn(attack);
            let mut times = Vec::new();
            while times.len() < EXECS || !attack.is_finished() {
                times.push(self.exec()?);
            }
            let result = attack.join();
            let result = result.map_err(|_| anyhow::anyhow!("the attack panicked"))??;
            Ok((result, median(times)))
        })
    }
}

/// Returns the median.
pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// The most memory that any shim of the node has had while this was looking, apart from the
/// neighbour's. It takes each shim's peak since the shim's start, and includes shims that are gone.
pub struct Peak {
    bytes: Arc<AtomicU64>,
    end: Arc<AtomicBool>,
    looking: Option<JoinHandle<()>>,
}

impl Peak {
    /// Starts looking.
    pub fn beside(neighbour: &Neighbour) -> Result<Self> {
        let tag = neighbour.container.pod().node().tag().to_owned();
        let without = neighbour.shim()?;
        let (bytes, end) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (found, stop) = (bytes.clone(), end.clone());
        let looking = std::thread::spawn(move || {
            let (mut shims, mut looked) = (Vec::new(), None::<Instant>);
            while !stop.load(Ordering::Relaxed) {
                if looked.is_none_or(|at| at.elapsed() > LOOK_FOR_SHIMS) {
                    looked = Some(Instant::now());
                    shims = shims_of(&tag);
                }
                for &shim in shims.iter().filter(|&&shim| shim != without) {
                    found.fetch_max(peak_of_shim(shim).unwrap_or(0), Ordering::Relaxed);
                }
                std::thread::sleep(LOOK);
            }
        });
        Ok(Self {
            bytes,
            end,
            looking: Some(looking),
        })
    }

    /// Returns the peak in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// Returns the peak memory of a shim. Fails for a process that was a shim's child when it was found
/// and has become QEMU since.
fn peak_of_shim(pid: u32) -> Result<u64> {
    let peak = proc::peak_rss(pid)?;
    // The name is read last: a process that is still a shim was one before.
    let status = proc::status(pid)?;
    let is_shim = status.get("Name").is_some_and(|name| name == SHIM_NAME);
    ensure!(is_shim, "{pid} is no shim");
    Ok(peak)
}

fn shims_of(tag: &str) -> Vec<u32> {
    let mut shims = proc::all();
    shims.retain(|process| {
        process.command.contains("containerd-shim-caisson") && process.command.contains(tag)
    });
    shims.iter().map(|process| process.pid).collect()
}

impl Drop for Peak {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(looking) = self.looking.take() {
            let _ = looking.join();
        }
    }
}

/// Fails if a text has a control character other than newlines and tabs.
pub fn check_text(what: &str, text: &str) -> Result<()> {
    let is_bad = |c: &char| c.is_control() && !matches!(c, '\n' | '\t');
    let Some(at) = text.chars().position(|c| is_bad(&c)) else {
        return Ok(());
    };
    let around: String = text.chars().skip(at.saturating_sub(80)).take(120).collect();
    anyhow::bail!("{what} has control characters: {around:?}")
}

/// Fails if the node's log has a control character, or a line that a guest has forged.
pub fn check_log(node: &Node) -> Result<()> {
    let log = node.log();
    check_text("the log", &log)?;
    let forged = log
        .lines()
        .find(|line| line.starts_with("level=error msg=\"forged"));
    ensure!(forged.is_none(), "the guest wrote a line: {forged:?}");
    Ok(())
}
