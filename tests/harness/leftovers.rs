//! Counts what a node or a container has on the host, before and after a test.
//!
//! Everything that containerd, the shims and the tests make carries the container's id or the
//! node's folder in a name, an argument or the environment. The few things that carry neither are
//! compared as whole sets.

use std::{
    collections::BTreeSet,
    fmt, fs,
    io::Write,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use caisson_node::pool;

use crate::{
    command, container,
    cri::{self, network},
    paths::names,
    proc::{self, Process},
    Node,
};

/// Returns a lock for tests that count what is on the whole node, so that such tests of one binary
/// run one at a time.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The traces of a node at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leftovers(BTreeSet<String>);

impl Leftovers {
    /// Counts all traces of a node, except containerd itself.
    pub fn count(node: &Node) -> Self {
        let mut found = BTreeSet::new();
        let mut add = |kind: &str, names: Vec<String>| {
            found.extend(names.into_iter().map(|name| format!("{kind} {name}")));
        };
        let spare = Spare::of(node);
        let processes = processes(node.tag());
        add(
            "process",
            processes
                .iter()
                .filter(|p| !is_daemon(node, p) && !spare.pids.contains(&p.pid))
                .map(describe)
                .collect(),
        );
        add("mount", mounts(node.tag()));
        add("loop device of", loop_devices(node.tag()));
        add("netns", network_namespaces(node.tag()));
        add("network", network::traces(node.tag()));
        // runc leaves the cgroup of the namespace, which all containers share.
        let namespace = format!("/{}", node.tag());
        let cgroups = cgroups(node.tag()).into_iter();
        add(
            "cgroup",
            cgroups.filter(|path| !path.ends_with(&namespace)).collect(),
        );
        add("socket", texts(shim_sockets(node.tag(), node.dir())));
        add("socket", bound_sockets(node));
        add("shm", names(Path::new("/dev/shm")));
        // `.users` itself stays; its entries do not.
        let state = names(&node.state_dir());
        add(
            "state",
            state
                .into_iter()
                .filter(|name| {
                    ![".users", ".turns", ".pool", ".counters", ".counters.json"]
                        .contains(&name.as_str())
                })
                .collect(),
        );
        add("user", users(node));
        for namespace in [node.tag(), cri::NAMESPACE] {
            let bundles = node.dir().join("run/io.containerd.runtime.v2.task");
            add("bundle", names(&bundles.join(namespace)));
        }
        found.retain(|line| !spare.ids.iter().any(|id| line.contains(id)));
        Self(found)
    }

    /// Counts the traces of one container.
    pub fn of(node: &Node, id: &str) -> Self {
        Self(
            Self::count(node)
                .0
                .into_iter()
                .filter(|line| line.contains(id))
                .collect(),
        )
    }

    /// Returns the traces that are not in `before`.
    pub fn since(&self, before: &Self) -> Self {
        Self(self.0.difference(&before.0).cloned().collect())
    }

    /// Waits up to 5 s until there are no traces that are not in `before`. The error lists the
    /// remaining ones.
    pub fn none_since(node: &Node, before: &Self) -> Result<()> {
        let mut last = Self::default();
        command::poll("nothing left", Duration::from_secs(5), || {
            last = Self::count(node).since(before);
            last.is_empty().then_some(())
        })
        .map_err(|error| error.context(last.to_string()))
    }

    /// Returns whether there are no traces.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the number of traces.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// The members of a node's pool, which belong to no pod.
struct Spare {
    ids: Vec<String>,
    pids: BTreeSet<u32>,
}

impl Spare {
    fn of(node: &Node) -> Self {
        let mut ids = names(&node.state_dir());
        ids.retain(|id| pool::is_member(id));
        let pids = ids.iter().flat_map(|id| {
            let dir = node.state_dir().join(id);
            let vm = container::vm_processes(&dir).unwrap_or_default();
            vm.into_iter()
                .flat_map(|(_, pid)| proc::descendants(pid).into_iter().chain([pid]))
        });
        Self {
            pids: pids.collect(),
            ids,
        }
    }
}

/// Returns the users of the host that VMs run as, each with its pod.
fn users(node: &Node) -> Vec<String> {
    let users = node.state_dir().join(".users");
    let pod = |uid: &String| fs::read_link(users.join(uid)).unwrap_or_default();
    let uids = names(&users).into_iter();
    uids.map(|uid| format!("{uid} of {}", pod(&uid).display()))
        .collect()
}

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} left:", self.0.len())?;
        self.0.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

/// Returns the processes of a node, found by their arguments, environment or cgroup.
pub fn processes(tag: &str) -> Vec<Process> {
    let own = std::process::id();
    let has = |file: &str, pid: u32| {
        fs::read(format!("/proc/{pid}/{file}")).is_ok_and(|bytes| contains(&bytes, tag.as_bytes()))
    };
    proc::all()
        .into_iter()
        .filter(|p| p.pid != own)
        .filter(|p| p.command.contains(tag) || has("environ", p.pid) || has("cgroup", p.pid))
        .collect()
}

/// Returns the mount points of a node, in the order in which they were made.
pub fn mounts(tag: &str) -> Vec<String> {
    let points = caisson_local::remove::mount_points().into_iter();
    points
        .map(|point| point.to_string_lossy().into_owned())
        .filter(|point| point.contains(tag))
        .collect()
}

/// Returns the files of a node that back loop devices.
pub fn loop_devices(tag: &str) -> Vec<String> {
    let devices = names(Path::new("/sys/block")).into_iter();
    devices
        .filter_map(|name| fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok())
        .map(|file| file.trim().to_owned())
        .filter(|file| file.contains(tag))
        .collect()
}

/// Returns the named network namespaces of a node.
pub fn namespaces(tag: &str) -> Vec<String> {
    let mut found = names(Path::new("/run/netns"));
    found.retain(|name| name.contains(tag));
    found
}

/// Returns the cgroups of a node in every hierarchy, parents first.
pub fn cgroups(tag: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut next = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = next.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                next.push(entry.path());
            }
        }
        let path = dir.display().to_string();
        if path.contains(tag) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Returns the sockets of shims. containerd's libraries name them by a hash of address, namespace
/// and id.
pub fn shim_sockets(tag: &str, dir: &Path) -> Vec<PathBuf> {
    let there: BTreeSet<String> = names(Path::new("/run/containerd/s")).into_iter().collect();
    if there.is_empty() {
        return Vec::new();
    }
    let remembered = fs::read_to_string(shims(dir)).unwrap_or_default();
    let made = (1..3000).map(|n| format!("{tag}/{tag}-{n:04}"));
    made.chain(remembered.lines().map(str::to_owned))
        .map(|shim| dir.join("c.sock").join(shim))
        .map(|path| hex::encode(Sha256::digest(path.display().to_string())))
        .filter(|name| there.contains(name))
        .map(|name| Path::new("/run/containerd/s").join(name))
        .collect()
}

/// Remembers a shim of a node by containerd's namespace and its id, for [`shim_sockets`].
pub fn add_shim(dir: &Path, namespace: &str, id: &str) -> Result<()> {
    let path = shims(dir);
    let file = fs::File::options().create(true).append(true).open(&path);
    file.and_then(|mut file| file.write_all(format!("{namespace}/{id}\n").as_bytes()))
        .with_context(|| path.display().to_string())
}

fn shims(dir: &Path) -> PathBuf {
    dir.join("shims")
}

/// Returns whether a process is containerd or a program that talks to it. These exist as long as
/// the node does.
fn is_daemon(node: &Node, process: &Process) -> bool {
    let program = process.command.split(' ').next().unwrap_or_default();
    let daemons = ["/ctr", "/docker-registry"];
    let containerd = node.dir().join(node.tag());
    Path::new(program) == containerd || daemons.iter().any(|name| program.ends_with(name))
}

/// Returns the network namespaces that have a name or a mount, except those of other nodes. A
/// namespace with neither belongs to a process and is found with it.
fn network_namespaces(tag: &str) -> Vec<String> {
    let others = |path: &str| path.contains("/cst") && !path.contains(tag);
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounted = table.lines().filter(|line| line.contains(" net:["));
    let mut found: Vec<String> = mounted
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|path| !others(path))
        .map(str::to_owned)
        .collect();
    let named = names(Path::new("/run/netns"));
    found.extend(
        named
            .into_iter()
            .filter(|name| !others(&format!("/{name}"))),
    );
    found
}

fn bound_sockets(node: &Node) -> Vec<String> {
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let paths = table
        .lines()
        .filter_map(|line| line.split_whitespace().nth(7));
    let ours = paths.filter(|path| path.contains(node.tag()));
    let daemon = |path: &str| path.contains("/c.sock") || path.contains(".sock.ttrpc");
    ours.filter(|path| !daemon(path))
        .map(str::to_owned)
        .collect()
}

fn texts(paths: Vec<PathBuf>) -> Vec<String> {
    paths
        .iter()
        .map(|path| path.display().to_string())
        .collect()
}

fn describe(process: &Process) -> String {
    let short: String = process.command.chars().take(160).collect();
    format!("{} {short}", process.pid)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}
