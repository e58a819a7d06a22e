//! A real cluster that tests use only through `kubectl`.
//!
//! ```no_run
//! use caisson_tests::{k8s::TestCluster, Runtime};
//!
//! let namespace = TestCluster::shared().namespace()?;
//! let pod = namespace.pod("web").runtime(Runtime::Caisson).sh("sleep 1000").start()?;
//! assert_ne!(pod.exec("uname -r")?, "");
//! # anyhow::Ok(())
//! ```
//!
//! All tests of a run share the cluster. Each has its own [`Namespace`], which is deleted with
//! everything in it.

pub mod agent_sandbox;
pub mod kube_router;
mod namespace;
mod pod;
mod registry;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        atomic::{AtomicU32, Ordering},
        Mutex, OnceLock, PoisonError,
    },
    time::Duration,
};

use anyhow::{ensure, Context, Result};
use caisson_local::{images, Cluster, Layout, Programs};
use serde_json::Value;

pub use self::{
    namespace::Namespace,
    pod::{Pod, PodBuilder},
    registry::Registry,
};
use crate::{
    command::{self, Output},
    fixture, paths, proc, Runtime,
};

/// How long a test waits for something in the cluster. VMs on a busy machine are slow.
pub const LIMIT: Duration = Duration::from_secs(240);
/// The prefix of every cluster's folder. The pid of the run follows.
const FOLDERS: &str = "/var/tmp/csl";

static SHARED: OnceLock<TestCluster> = OnceLock::new();

/// The tests' cluster.
pub struct TestCluster {
    cluster: Cluster,
    /// Whether this run started the cluster. One named by the environment is not removed.
    ours: bool,
    namespaces: AtomicU32,
    images: Mutex<BTreeSet<(String, String)>>,
}

impl TestCluster {
    /// Returns the one cluster of this run. The first test that asks starts it, and it is removed
    /// when the process exits. If `CAISSON_TEST_CLUSTER` names the folder of a cluster, that
    /// cluster is used, and it stays.
    ///
    /// Panics if the cluster can't be started, since no test can go on without it.
    pub fn shared() -> &'static TestCluster {
        SHARED.get_or_init(|| {
            let cluster = Self::start().unwrap_or_else(|error| panic!("no cluster: {error:#}"));
            // SAFETY: the function has the C ABI, takes nothing and lets no panic out.
            unsafe { libc::atexit(remove_shared) };
            cluster
        })
    }

    fn start() -> Result<Self> {
        let named = std::env::var("CAISSON_TEST_CLUSTER").ok();
        let dir = match &named {
            Some(dir) => dir.clone(),
            None => {
                remove_dead()?;
                format!("{FOLDERS}{}", std::process::id())
            }
        };
        let layout = Layout::new(Path::new(&dir))?;
        let programs = Programs::find(&paths::target())?;
        let supervisor = paths::program("k8s-cluster")?;
        let cluster = caisson_local::up(&layout, &programs, &supervisor, &mut |_| {})?;
        let _ = fs::copy(paths::accelerator(), layout.path("store/accelerator.json"));
        Ok(Self {
            cluster,
            ours: named.is_none(),
            namespaces: AtomicU32::new(1),
            images: Mutex::default(),
        })
    }

    /// Creates a namespace that no other test has.
    pub fn namespace(&self) -> Result<Namespace<'_>> {
        let number = self.namespaces.fetch_add(1, Ordering::Relaxed);
        Namespace::new(self, format!("t{}-{number}", std::process::id()))
    }

    /// Runs `kubectl` with these arguments. Returns its output whatever its exit code.
    pub fn kubectl(&self, args: &[&str]) -> Result<Output> {
        command::run(self.cluster.kubectl_command().args(args), None, LIMIT)
    }

    /// Returns a `kubectl` command without arguments.
    pub fn kubectl_command(&self) -> Command {
        self.cluster.kubectl_command()
    }

    /// Returns the `caisson` command on the cluster's node.
    pub fn caisson(&self) -> Command {
        let mut caisson = Command::new(self.cluster.programs().dist().join("bin/caisson"));
        caisson.env("CAISSON_CONFIG", self.cluster.layout().caisson_config());
        caisson
    }

    /// Gives the node further settings, as TOML in a drop-in of this name, until the returned value
    /// is dropped.
    pub fn settings(&self, name: &str, text: &str) -> Result<Settings> {
        let dir = self.cluster.layout().path("caisson/config.d");
        let path = dir.join(format!("90-{name}.toml"));
        // A shim that starts meanwhile reads either all of it or nothing.
        let part = path.with_extension("part");
        fs::write(&part, text)?;
        fs::rename(&part, &path)?;
        Ok(Settings { path })
    }

    /// Imports an image of [`fixture`] as `name`.
    pub fn image_as(&self, fixture: &str, name: &str) -> Result<()> {
        let mut there = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (fixture.to_owned(), name.to_owned());
        if there.contains(&key) {
            return Ok(());
        }
        let dir = tempfile::tempdir_in(self.cluster.layout().dir())?;
        let archive = fixture::archive(fixture, dir.path())?;
        self.cluster.import(&archive)?;
        let full = fixture::full_name(fixture);
        if full != name {
            images::tag(self.cluster.layout(), self.cluster.programs(), &full, name)?;
        }
        there.insert(key);
        Ok(())
    }

    /// Imports an image of [`fixture`]. Returns its name.
    pub fn image(&self, fixture: &str) -> Result<String> {
        let full = fixture::full_name(fixture);
        self.image_as(fixture, &full)?;
        Ok(full)
    }

    /// Returns the address at which the pods reach this machine: the other end of the node's link
    /// (`caisson_local::network`).
    pub fn machine_address(&self) -> Result<String> {
        let path = r#"jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}"#;
        let node = line(self.kubectl(&["get", "nodes", "--output", path])?)?;
        let (link, _) = node.rsplit_once('.').context("an IPv4 address")?;
        Ok(format!("{link}.1"))
    }

    /// Returns the cluster itself.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }
}

/// A drop-in of the node's configuration. Dropping it removes it.
#[must_use]
pub struct Settings {
    path: PathBuf,
}

impl Drop for Settings {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Sets the RuntimeClass of a PodSpec for Caisson; for runc, sets none.
pub fn set_class(spec: &mut Value, runtime: Runtime) {
    if runtime == Runtime::Caisson {
        spec["runtimeClassName"] = "sandbox".into();
    }
}

/// Returns the pid of a program of the cluster: `kubelet`, `containerd`, …
pub fn program(cluster: &Cluster, name: &str) -> Result<u32> {
    let dir = cluster.layout().dir().display().to_string();
    let found = proc::all()
        .into_iter()
        .find(|p| p.command.contains(&format!("/{name} ")) && p.command.contains(&dir));
    let pid = found.with_context(|| name.to_owned())?.pid;
    ensure!(cluster.kubectl(&["get", "--raw", "/readyz"]).is_ok());
    Ok(pid)
}

extern "C" fn remove_shared() {
    let Some(cluster) = SHARED.get() else { return };
    if !cluster.ours || std::env::var_os("CAISSON_TEST_KEEP").is_some() {
        return;
    }
    let _ = std::panic::catch_unwind(|| {
        let layout = cluster.cluster.layout();
        let _ = fs::copy(layout.path("store/accelerator.json"), paths::accelerator());
        if let Err(error) = caisson_local::down(layout) {
            eprintln!("{}: {error:#}", layout.dir().display());
        }
    });
}

/// Removes what killed runs left.
fn remove_dead() -> Result<()> {
    let folders = Path::new(FOLDERS);
    let parent = folders.parent().context("a folder's parent")?;
    for entry in fs::read_dir(parent)?.flatten() {
        let path = entry.path();
        let number = path.to_str().and_then(|text| text.strip_prefix(FOLDERS));
        // A test that has its own cluster adds a letter.
        let number = number.map(|number| number.trim_end_matches(char::is_alphabetic));
        let Some(pid) = number.and_then(|number| number.parse().ok()) else {
            continue;
        };
        if !proc::is_running(pid) {
            caisson_local::down(&Layout::new(&path)?)?;
        }
    }
    Ok(())
}

/// Returns the first stream of a successful `output` without the white space around it. Otherwise
/// fails with all that was printed.
pub fn line(output: Output) -> Result<String> {
    ensure!(
        output.code == 0,
        "exit code {}: {}{}",
        output.code,
        output.text(),
        output.errors()
    );
    Ok(output.line())
}
