//! A test node: its own containerd, with everything below one temporary folder.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::{symlink, DirBuilderExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        atomic::{AtomicBool, AtomicU32, Ordering},
        Mutex, OnceLock,
    },
    time::Duration,
};

use anyhow::{ensure, Context, Result};
use caisson_node::config::program_of;
use containerd_client::Client;
use serde_json::Value;

use crate::{
    command::{self, Output},
    config,
    container::ContainerBuilder,
    cri::network,
    fixture, gvisor, leftovers,
    paths::{self, Containerd, Start},
    sweep,
};

/// How long `ctr` may take if a test does not set a limit. It ends what hangs, on the slowest
/// machine too; no test measures by it.
pub const LIMIT: Duration = Duration::from_secs(240);
/// The same for work with gigabytes or with many thousand files.
pub const LONG: Duration = Duration::from_secs(900);

/// A running containerd, its folder and its namespace. Dropping it stops containerd and removes
/// everything that belongs to the node.
pub struct Node {
    /// Part of every id, path and name that this node makes, so that leftovers can be found.
    tag: String,
    dir: PathBuf,
    version: Containerd,
    containerd: Mutex<Option<Child>>,
    ids: AtomicU32,
    /// The imported images: containerd's namespace and the image's name.
    images: Mutex<Vec<(String, String)>>,
    runtime: tokio::runtime::Runtime,
    /// Held as long as this process lives. If a folder's lock can be taken, the folder belongs to a
    /// dead run.
    _lock: nix::fcntl::Flock<File>,
}

static SHARED: OnceLock<Mutex<Option<&'static Node>>> = OnceLock::new();

impl Node {
    /// Returns the one node of this test binary. The first test that asks starts it, and it is
    /// removed when the process exits.
    ///
    /// Panics if the node can't be started, since no test can go on without it.
    pub fn shared() -> &'static Node {
        let slot = SHARED.get_or_init(|| Mutex::new(None));
        let mut slot = slot.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(node) = *slot {
            return node;
        }
        let node = match Node::start() {
            Ok(node) => node,
            Err(error) => panic!("no test node: {error:#}"),
        };
        let node: &'static Node = Box::leak(Box::new(node));
        remove_at_exit();
        *slot = Some(node);
        node
    }

    /// Keeps a node until the process exits, in whatever way. This includes SIGINT and SIGTERM if
    /// [`exit_on_signals`] was called.
    pub fn keep(node: Node) -> &'static Node {
        let node: &'static Node = Box::leak(Box::new(node));
        Self::end_at_exit(node);
        node
    }

    /// Removes a node that is never dropped when the process exits.
    pub fn end_at_exit(node: &'static Node) {
        let slot = SHARED.get_or_init(|| Mutex::new(None));
        *slot.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(node);
        remove_at_exit();
    }

    /// Starts a node of the containerd version that the environment names.
    pub fn start() -> Result<Self> {
        Self::start_with(|_| {})
    }

    /// Starts a node whose Caisson configuration was changed by `edit`.
    pub fn start_with(edit: impl FnOnce(&mut Value)) -> Result<Self> {
        Self::start_version(Containerd::from_environment()?, edit)
    }

    /// Starts a node of a given containerd version.
    pub fn start_version(version: Containerd, edit: impl FnOnce(&mut Value)) -> Result<Self> {
        Self::start_configured(version, edit, |_, dir, _| Ok(config::containerd(dir)))
    }

    /// Starts a node whose containerd serves CRI, with a network of its own.
    pub fn start_cri(version: Containerd, edit: impl FnOnce(&mut Value)) -> Result<Self> {
        Self::start_configured(version, edit, |tag, dir, presets| {
            network::configure(tag, dir)?;
            Ok(config::containerd_with_cri(dir, version, presets))
        })
    }

    fn start_configured(
        version: Containerd,
        edit: impl FnOnce(&mut Value),
        containerd: impl FnOnce(&str, &Path, &[String]) -> Result<String>,
    ) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "tests under containerd need root"
        );
        version.checked_bin()?;
        let (tag, dir, lock) = sweep::claim_folder()?;
        let start = Start::from_environment()?;
        let plain = config::caisson(&dir, start);
        let mut caisson = plain.clone();
        edit(&mut caisson);
        let presets = config::presets(&caisson);
        // Created as `caisson` does. The shim creates the state folder itself.
        fs::DirBuilder::new()
            .mode(0o700)
            .create(dir.join("store"))?;
        for folder in ["store/skills", "store/homes", "shelf", "logs"] {
            fs::create_dir_all(dir.join(folder))?;
        }
        fs::write(
            dir.join("containerd.toml"),
            containerd(&tag, &dir, &presets)?,
        )?;
        gvisor::configure(&dir)?;
        let programs = config::programs(&dir);
        fs::create_dir(&programs)?;
        let shim = paths::dist().join("bin").join(config::SHIM);
        symlink(&shim, programs.join(config::SHIM))?;
        for preset in &presets {
            symlink(&shim, programs.join(program_of(preset)))?;
        }
        // A program that searches for containerd's process by this name finds only this node's.
        symlink(version.bin().join("containerd"), dir.join(&tag))?;
        fs::write(dir.join("config.toml"), toml::to_string(&caisson)?)?;
        // What a probe VM found out about KVM, which takes seconds, also holds for the next node.
        let _ = fs::copy(paths::accelerator(), dir.join("store/accelerator.json"));
        let node = Self {
            tag,
            dir,
            version,
            containerd: Mutex::new(None),
            ids: AtomicU32::new(1),
            images: Mutex::default(),
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()?,
            _lock: lock,
        };
        if start != Start::Cold {
            fs::create_dir_all(paths::templates())?;
            symlink(paths::templates(), node.store_dir().join("templates"))?;
            // A node that a test has changed makes its own, if it can, when its first pod has
            // started.
            if caisson == plain {
                node.build_template()?;
            }
        }
        node.start_containerd()?;
        Ok(node)
    }

    /// Makes the template of this node's VMs, unless there is one or its VMs boot. A node without
    /// one makes it beside its first pods, which takes a core for seconds.
    pub fn build_template(&self) -> Result<()> {
        if Start::from_environment()? == Start::Cold {
            return Ok(());
        }
        let mut build = self::caisson(self)?;
        command::run(build.args(["template", "build"]), None, LIMIT)?.ok()?;
        Ok(())
    }

    /// Begins building a container that runs an image of [`fixture`].
    pub fn container(&self, image: &str) -> ContainerBuilder<'_> {
        ContainerBuilder::new(self, image)
    }

    /// Imports an image of [`fixture`] if this node does not have it. Returns its full name.
    pub fn image(&self, name: &str) -> Result<String> {
        self.image_in(&self.tag, name)
    }

    /// Like [`Node::image`], in another of containerd's namespaces.
    pub fn image_in(&self, namespace: &str, name: &str) -> Result<String> {
        let full = fixture::full_name(name);
        let key = (namespace.to_owned(), full.clone());
        let mut imported = self.images.lock().unwrap_or_else(|p| p.into_inner());
        if !imported.contains(&key) {
            let archive = fixture::archive(name, &self.dir)?;
            let mut ctr = self.ctr_in(namespace);
            ctr.args(["images", "import"]).arg(&archive);
            command::run(&mut ctr, None, LIMIT)?.ok()?;
            if archive.starts_with(&self.dir) {
                fs::remove_file(archive)?;
            }
            imported.push(key);
        }
        Ok(full)
    }

    /// Runs `ctr` against this node.
    pub fn ctr<I, S>(&self, args: I) -> Result<Output>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        command::run(self.ctr_command().args(args), None, LIMIT)
    }

    /// Returns a `ctr` command with this node's address and namespace, without further arguments.
    pub fn ctr_command(&self) -> Command {
        self.ctr_in(&self.tag)
    }

    /// Like [`Node::ctr_command`], in another namespace.
    pub fn ctr_in(&self, namespace: &str) -> Command {
        // `ctr` gets the highest priority. When containerd's client learns of a process's end, it
        // drops the output that it has not read yet (`Delete` of 1.6 to 2.4). On a busy machine, a
        // test would lose output.
        let mut ctr = Command::new("nice");
        ctr.args(["-n", "-20"])
            .arg(self.version.bin().join("ctr"))
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", namespace]);
        ctr.env("PATH", self.path())
            .env("CONTAINERD_ADDRESS", self.socket());
        ctr
    }

    /// Returns an id that no other container of this machine has.
    pub fn next_id(&self) -> String {
        format!(
            "{}-{:04}",
            self.tag,
            self.ids.fetch_add(1, Ordering::Relaxed)
        )
    }

    /// Returns the ids given out so far.
    pub fn ids(&self) -> Vec<String> {
        (1..self.ids.load(Ordering::Relaxed))
            .map(|n| format!("{}-{n:04}", self.tag))
            .collect()
    }

    /// Remembers a shim whose id containerd made, so that its leftovers are found, also by the next
    /// run.
    pub fn add_shim(&self, namespace: &str, id: &str) -> Result<()> {
        leftovers::add_shim(&self.dir, namespace, id)
    }

    /// Returns the folder of the whole node.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the version that containerd reports.
    pub fn containerd_version(&self) -> Result<String> {
        use containerd_client::tonic::Request;
        self.call(|client| async move {
            Ok(client
                .version()
                .version(Request::new(()))
                .await?
                .into_inner()
                .version)
        })
    }

    /// Returns which containerd this node runs.
    pub fn version(&self) -> Containerd {
        self.version
    }

    /// Returns the path of containerd's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("c.sock")
    }

    /// Returns the tag, which is the containerd namespace and part of every name.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Returns Caisson's state folder, which has one entry for each running pod.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Returns the folder of Caisson's stores.
    pub fn store_dir(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// Returns the path of Caisson's configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    /// Returns what containerd and its shims logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("logs/containerd.log")).unwrap_or_default()
    }

    /// Returns the folder that comes first in this node's search for programs. The shim is in it.
    pub fn programs(&self) -> PathBuf {
        config::programs(&self.dir)
    }

    /// Returns containerd's `PATH`, in which it finds shims and runc.
    pub fn path(&self) -> String {
        let system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let dist = paths::dist().join("bin");
        format!(
            "{}:{}:{}:{}:{system}",
            self.programs().display(),
            dist.display(),
            self.version.bin().display(),
            gvisor::bin().display()
        )
    }

    /// Runs a future to its end on this node's runtime, with a client of containerd's API.
    pub fn call<T, F>(&self, work: impl FnOnce(Client) -> F) -> Result<T>
    where
        F: std::future::Future<Output = Result<T>>,
    {
        self.runtime.block_on(async {
            let client = Client::from_path(self.socket())
                .await
                .context("connect containerd")?;
            work(client).await
        })
    }

    /// Returns the runtime of this node's calls.
    pub fn runtime(&self) -> &tokio::runtime::Runtime {
        &self.runtime
    }

    /// Stops containerd with SIGTERM, or with SIGKILL if `hard`. Tasks keep running.
    pub fn stop_containerd(&self, hard: bool) -> Result<()> {
        let Some(mut child) = self.slot().take() else {
            return Ok(());
        };
        let signal = if hard { libc::SIGKILL } else { libc::SIGTERM };
        // SAFETY: kill on the pid of a child that was not yet waited for.
        unsafe { libc::kill(child.id() as i32, signal) };
        if command::wait(&mut child, Duration::from_secs(20))?.is_none() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// If containerd has ended without [`Node::stop_containerd`], starts it again after that time.
    pub fn revive(&self, after: Duration) -> Result<()> {
        let ended = match self.slot().as_mut() {
            Some(child) => child.try_wait()?.is_some(),
            None => false,
        };
        if ended {
            std::thread::sleep(after);
            self.start_containerd()?;
        }
        Ok(())
    }

    /// Restarts containerd while `work` runs, whenever it ends without [`Node::stop_containerd`],
    /// as systemd does on a real node.
    pub fn supervised<T>(&self, work: impl FnOnce() -> T) -> T {
        let end = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    let ended = |child: &mut Child| matches!(child.try_wait(), Ok(Some(_)));
                    if self.slot().as_mut().is_some_and(ended) {
                        // If the start fails, the next round tries again.
                        let _ = self.spawn_containerd();
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
            });
            let _end = EndAtDrop(&end);
            work()
        })
    }

    /// Starts containerd on this node's folder and waits until it answers.
    pub fn start_containerd(&self) -> Result<()> {
        self.spawn_containerd()?;
        let answers = command::poll("containerd to answer", LIMIT, || {
            self.ctr(["version"]).ok().filter(|output| output.code == 0)
        });
        answers.map(drop).with_context(|| self.log())
    }

    fn spawn_containerd(&self) -> Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("logs/containerd.log"))?;
        let child = Command::new(self.dir.join(&self.tag))
            .arg("--config")
            .arg(self.dir.join("containerd.toml"))
            .env("PATH", self.path())
            .env("CAISSON_CONFIG", self.config_file())
            .env("TMPDIR", &self.dir)
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start containerd")?;
        *self.slot() = Some(child);
        Ok(())
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.containerd
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Ends everything of a node that is kept for the whole process. This is also done at exit.
    pub fn remove(&self) {
        self.end();
    }

    fn end(&self) {
        if std::env::var_os("CAISSON_TEST_KEEP").is_some() {
            let _ = writeln!(std::io::stderr(), "kept: {}", self.dir.display());
            return;
        }
        let _ = self.stop_containerd(false);
        let _ = fs::copy(
            self.dir.join("store/accelerator.json"),
            paths::accelerator(),
        );
        if let Err(error) = sweep::remove(&self.tag, &self.dir) {
            let _ = writeln!(std::io::stderr(), "{}: {error:#}", self.dir.display());
        }
    }
}

struct EndAtDrop<'a>(&'a AtomicBool);

impl Drop for EndAtDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end();
    }
}

/// Makes SIGINT and SIGTERM exit the process, so that what is registered for its exit is done.
/// Meant for programs that people interrupt. Must be called before the first thread is started.
pub fn exit_on_signals() -> Result<()> {
    use nix::sys::signal::{SigSet, Signal};
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().context("block signals")?;
    std::thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            std::process::exit(128 + signal as i32);
        }
    });
    Ok(())
}

fn remove_at_exit() {
    // SAFETY: the function has the C ABI, takes nothing and lets no panic out.
    unsafe { libc::atexit(end_shared) };
}

extern "C" fn end_shared() {
    let node = SHARED
        .get()
        .and_then(|slot| slot.lock().ok().and_then(|mut slot| slot.take()));
    if let Some(node) = node {
        let _ = std::panic::catch_unwind(|| node.end());
    }
}

/// Returns the `caisson` command for this node.
pub fn caisson(node: &Node) -> Result<Command> {
    let program = paths::dist().join("bin/caisson");
    ensure!(
        program.exists(),
        "no {}: cargo xtask dist",
        program.display()
    );
    let mut command = Command::new(program);
    command
        .env("CAISSON_CONFIG", node.config_file())
        .env("TMPDIR", &node.dir)
        .env("PATH", node.path());
    Ok(command)
}
