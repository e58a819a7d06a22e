//! A node of the tests: a containerd of its own, with everything below one temporary folder.

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
use containerd_client::Client;
use serde_json::Value;

use crate::{
    command::{self, Output},
    config,
    container::ContainerBuilder,
    cri::network,
    fixture, leftovers,
    paths::{self, Containerd},
    sweep,
};

/// How long `ctr` may take when a test does not say otherwise.
pub const LIMIT: Duration = Duration::from_secs(90);

/// A running containerd, its folder and its namespace. Dropped, it is stopped and everything of it removed.
pub struct Node {
    /// In every id, path and name that this node makes: by it leftovers are found.
    tag: String,
    dir: PathBuf,
    version: Containerd,
    containerd: Mutex<Option<Child>>,
    ids: AtomicU32,
    /// What has been imported: containerd's namespace and the image's name.
    images: Mutex<Vec<(String, String)>>,
    runtime: tokio::runtime::Runtime,
    /// Held as long as this process lives: a folder whose lock can be had is a dead run's.
    _lock: nix::fcntl::Flock<File>,
}

static SHARED: OnceLock<Mutex<Option<&'static Node>>> = OnceLock::new();

impl Node {
    /// The one node of this test binary, started by the first test that asks and removed when the process exits.
    ///
    /// Panics when it can't be started: no test can go on without it.
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

    /// Keeps a node until the process exits, however it does: also by SIGINT or SIGTERM where [`exit_on_signals`]
    /// was called.
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

    /// Starts a node of the version that the environment names.
    pub fn start() -> Result<Self> {
        Self::start_with(|_| {})
    }

    /// Starts a node whose Caisson configuration was changed by `edit`.
    pub fn start_with(edit: impl FnOnce(&mut Value)) -> Result<Self> {
        Self::start_version(Containerd::from_environment()?, edit)
    }

    /// Starts a node of a version.
    pub fn start_version(version: Containerd, edit: impl FnOnce(&mut Value)) -> Result<Self> {
        Self::start_configured(version, edit, |_, dir| Ok(config::containerd(dir)))
    }

    /// Starts a node whose containerd serves CRI, with a network of its own.
    pub fn start_cri(version: Containerd, edit: impl FnOnce(&mut Value)) -> Result<Self> {
        Self::start_configured(version, edit, |tag, dir| {
            network::configure(tag, dir)?;
            Ok(config::containerd_with_cri(dir, version))
        })
    }

    fn start_configured(
        version: Containerd,
        edit: impl FnOnce(&mut Value),
        containerd: impl FnOnce(&str, &Path) -> Result<String>,
    ) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "tests under containerd need root"
        );
        version.checked_bin()?;
        let (tag, dir, lock) = sweep::claim_folder()?;
        let mut caisson = config::caisson(&dir);
        edit(&mut caisson);
        // As `caisson` makes it; the state folder is the shim's to make.
        fs::DirBuilder::new()
            .mode(0o700)
            .create(dir.join("store"))?;
        for folder in ["store/skills", "store/homes", "shelf", "logs"] {
            fs::create_dir_all(dir.join(folder))?;
        }
        fs::write(dir.join("containerd.toml"), containerd(&tag, &dir)?)?;
        // By this name a program that looks for containerd's process finds this node's only.
        symlink(version.bin().join("containerd"), dir.join(&tag))?;
        fs::write(dir.join("config.toml"), toml::to_string(&caisson)?)?;
        // What a probe VM found out about KVM holds for the next node too, and takes seconds.
        let _ = fs::copy(remembered_accelerator(), dir.join("store/accelerator.json"));
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
        node.start_containerd()?;
        Ok(node)
    }

    /// The beginning of a container that will run an image of [`fixture`].
    pub fn container(&self, image: &str) -> ContainerBuilder<'_> {
        ContainerBuilder::new(self, image)
    }

    /// Imports an image of [`fixture`] if this node does not have it; gives its full name.
    pub fn image(&self, name: &str) -> Result<String> {
        self.image_in(&self.tag, name)
    }

    /// As [`Node::image`], in a namespace of containerd's.
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

    /// `ctr` with this node's address and namespace, arguments to follow.
    pub fn ctr_command(&self) -> Command {
        self.ctr_in(&self.tag)
    }

    /// As [`Node::ctr_command`], in another namespace.
    pub fn ctr_in(&self, namespace: &str) -> Command {
        // Before all others: containerd's client drops the output that it has not read when it hears of a process' end
        // (`Delete` of 1.6 to 2.4), which on a busy machine is output of a test.
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

    /// An id that no other container of this machine has.
    pub fn next_id(&self) -> String {
        format!(
            "{}-{:04}",
            self.tag,
            self.ids.fetch_add(1, Ordering::Relaxed)
        )
    }

    /// Ids given out until now.
    pub fn ids(&self) -> Vec<String> {
        (1..self.ids.load(Ordering::Relaxed))
            .map(|n| format!("{}-{n:04}", self.tag))
            .collect()
    }

    /// Remembers a shim whose id containerd made, so that its leftovers are found, also by the next run.
    pub fn add_shim(&self, namespace: &str, id: &str) -> Result<()> {
        leftovers::add_shim(&self.dir, namespace, id)
    }

    /// The folder of everything.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The version that containerd says it is.
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

    /// containerd's version.
    pub fn version(&self) -> Containerd {
        self.version
    }

    /// containerd's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("c.sock")
    }

    /// The containerd namespace and the mark in every name.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Caisson's state folder: one entry for each running pod.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Caisson's stores.
    pub fn store_dir(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// Caisson's configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    /// What containerd and its shims logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("logs/containerd.log")).unwrap_or_default()
    }

    /// A folder for programs that this node finds before all others; it need not be there.
    pub fn programs(&self) -> PathBuf {
        self.dir.join("programs")
    }

    /// `PATH` of containerd, by which it finds shims and runc.
    pub fn path(&self) -> String {
        let system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let dist = paths::dist().join("bin");
        format!(
            "{}:{}:{}:{system}",
            self.programs().display(),
            dist.display(),
            self.version.bin().display()
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

    /// The runtime of this node's calls.
    pub fn runtime(&self) -> &tokio::runtime::Runtime {
        &self.runtime
    }

    /// Stops containerd (tasks go on) with SIGTERM, or SIGKILL where `hard`.
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

    /// Starts containerd again if it has ended without [`Node::stop_containerd`], after that time.
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

    /// Starts containerd again, as often as it ends without [`Node::stop_containerd`], while `work` runs: what systemd is on a real node.
    pub fn supervised<T>(&self, work: impl FnOnce() -> T) -> T {
        let end = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    let ended = |child: &mut Child| matches!(child.try_wait(), Ok(Some(_)));
                    if self.slot().as_mut().is_some_and(ended) {
                        // One that can't be started is tried again.
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
        let answers = command::poll("containerd to answer", Duration::from_secs(30), || {
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

    /// Ends everything of a node that is kept for the whole process; also done at exit.
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
            remembered_accelerator(),
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

/// Turns SIGINT and SIGTERM into an exit of the process, with what is to be done at one. For programs that people
/// interrupt; to be called before the first thread is started.
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

fn remembered_accelerator() -> PathBuf {
    paths::target().join("tests-accelerator.json")
}

/// The `caisson` command, for this node.
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
