//! Runs the demo's containerd: Debian's, with all of its files below one temporary folder.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{bail, ensure, Context, Result};
use nix::{
    mount::{umount2, MntFlags},
    sys::signal::{kill, SigSet, Signal},
    unistd::{geteuid, Pid},
};
use tempfile::TempDir;

use crate::{dirs::Dirs, files};

const NAMESPACE: &str = "demo";
/// How long containerd may take to answer, or to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// How many lines of its log a failure shows.
const TAIL: usize = 15;

/// A containerd and its folder, until [`Node::remove`].
pub struct Node {
    dir: PathBuf,
    dist: PathBuf,
    /// The result of the KVM probe, which the tests keep there too: probing takes seconds.
    remembered: PathBuf,
    containerd: Mutex<Option<Child>>,
    folder: Mutex<Option<TempDir>>,
}

impl Node {
    /// Makes the folder and the configuration files in it.
    pub fn new(dirs: &Dirs) -> Result<Self> {
        ensure!(
            geteuid().is_root(),
            "the demo needs root: it makes mounts and VMs"
        );
        let folder = tempfile::Builder::new()
            .prefix("caisson-demo-")
            .tempdir()
            .context("make a temporary folder")?;
        let node = Self {
            dir: folder.path().to_owned(),
            dist: dirs.dist.clone(),
            remembered: dirs.target.join("accelerator.json"),
            containerd: Mutex::default(),
            folder: Mutex::new(Some(folder)),
        };
        let dir = node.dir.display();
        let caisson = format!("state_dir = \"{dir}/state\"\nstore_dir = \"{dir}/store\"\n");
        files::write(&node.config(), caisson.as_bytes(), 0o600)?;
        // Both containerd 1.6 and 2.x read version 2 of the format.
        let containerd = format!(
            "version = 2\nroot = \"{dir}/root\"\nstate = \"{dir}/run\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.cri.v1.runtime\"]\n\
             [grpc]\naddress = \"{dir}/containerd.sock\"\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{dir}/opt\"\n"
        );
        files::write(
            &node.dir.join("containerd.toml"),
            containerd.as_bytes(),
            0o600,
        )?;
        if let Ok(remembered) = fs::read(&node.remembered) {
            files::write(&node.dir.join("store/accelerator.json"), &remembered, 0o600)?;
        }
        Ok(node)
    }

    /// Starts containerd and waits until it answers.
    pub fn start(&self) -> Result<()> {
        let log = File::create(self.log()).context("make containerd's log")?;
        let mut containerd = self.command("containerd");
        containerd
            .arg("--config")
            .arg(self.dir.join("containerd.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share containerd's log")?)
            .stderr(log)
            // The demo handles Ctrl-C itself: it ends containerd after its containers have ended.
            .process_group(0);
        let child = containerd.spawn().context("start containerd")?;
        *self
            .containerd
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(child);
        let started = Instant::now();
        while self.ctr(&["version"]).is_err() {
            if started.elapsed() > PATIENCE {
                bail!(
                    "containerd does not answer; its log:\n{}",
                    self.end_of_log()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Returns the folder that everything is in.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Runs `ctr` and returns what it printed.
    pub fn ctr(&self, arguments: &[&str]) -> Result<String> {
        let mut ctr = self.command("ctr");
        ctr.arg("--address").arg(self.dir.join("containerd.sock"));
        output(ctr.args(["--namespace", NAMESPACE]).args(arguments))
    }

    /// Runs `caisson` and returns what it printed.
    pub fn caisson(&self, arguments: &[&str]) -> Result<String> {
        output(self.command(self.dist.join("bin/caisson")).args(arguments))
    }

    /// Returns the last lines that containerd and its shims logged.
    pub fn end_of_log(&self) -> String {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }

    /// Ends what runs and removes the folder. A second caller waits until the first is done.
    pub fn remove(&self) -> Result<()> {
        let mut folder = self.folder.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(folder) = folder.take() else {
            return Ok(());
        };
        let _ = fs::copy(self.dir.join("store/accelerator.json"), &self.remembered);
        self.end_containers();
        let child = self
            .containerd
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(mut child) = child {
            let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
            let started = Instant::now();
            while child.try_wait().context("wait for containerd")?.is_none() {
                if started.elapsed() > PATIENCE {
                    child.kill().context("kill containerd")?;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        self.unmount();
        folder
            .close()
            .with_context(|| format!("remove {}", self.dir.display()))
    }

    /// Ends what an interrupted demo leaves running. A failure here only keeps the folder from
    /// being removed.
    fn end_containers(&self) {
        for id in ["first", "second"] {
            let _ = self.ctr(&["task", "delete", "--force", id]);
            let _ = self.ctr(&["container", "delete", id]);
        }
    }

    fn unmount(&self) {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        let ours: Vec<_> = places
            .filter(|place| Path::new(place).starts_with(&self.dir))
            .collect();
        // Unmount in the reverse order of mounting.
        for place in ours.into_iter().rev() {
            let _ = umount2(place, MntFlags::MNT_DETACH);
        }
    }

    fn config(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    fn log(&self) -> PathBuf {
        self.dir.join("containerd.log")
    }

    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let bin = self.dist.join("bin");
        let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/sbin:/usr/bin:/sbin:/bin".into());
        command
            .env("PATH", format!("{}:{path}", bin.display()))
            .env("CAISSON_CONFIG", self.config())
            .env("TMPDIR", &self.dir);
        command
    }
}

/// Makes SIGINT and SIGTERM remove the node and end the process. It has to be called before any
/// thread is started.
pub fn exit_on_signals(node: Arc<Node>) -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().context("block signals")?;
    std::thread::spawn(move || {
        let Ok(signal) = signals.wait() else { return };
        eprintln!("\ndemo: removing everything");
        if let Err(error) = node.remove() {
            eprintln!("demo: {error:#}");
        }
        std::process::exit(128 + signal as i32);
    });
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {program}"))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{program}: {}: {}", output.status, errors.trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
