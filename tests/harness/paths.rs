//! Finds the programs and files that `cargo xtask` built for the harness, and lists folders.

use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Result};

/// The containerd that a test node runs. `CAISSON_TEST_CONTAINERD` selects it: `2` (the default),
/// `1.7` or `1.6`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Containerd {
    /// Debian 12's package.
    V1_6,
    /// Debian 13's package, unpacked by `cargo xtask test-tools`.
    V1_7,
    /// Built from its Go module by `cargo xtask test-tools`.
    V2,
}

impl Containerd {
    /// Returns the version that the environment names.
    pub fn from_environment() -> Result<Self> {
        match std::env::var("CAISSON_TEST_CONTAINERD").as_deref() {
            Ok("1.6") => Ok(Self::V1_6),
            Ok("1.7") => Ok(Self::V1_7),
            Ok("2") | Err(_) => Ok(Self::V2),
            Ok(other) => bail!("CAISSON_TEST_CONTAINERD={other}: none of 1.6, 1.7 and 2"),
        }
    }

    /// Returns the folder with containerd, ctr, the runc shim and, for 2.x, runc.
    pub fn bin(self) -> PathBuf {
        match self {
            Self::V1_6 => PathBuf::from("/usr/bin"),
            Self::V1_7 => target().join("cache/tools/containerd-1.7/bin"),
            Self::V2 => target().join("cache/tools/containerd-2.1/bin"),
        }
    }

    /// Returns the folder of programs. If they are missing, the error says how to get them.
    pub fn checked_bin(self) -> Result<PathBuf> {
        let bin = self.bin();
        let advice = match self {
            Self::V1_6 => "apt-get install containerd",
            Self::V1_7 | Self::V2 => "cargo xtask test-tools",
        };
        ensure!(
            bin.join("containerd").exists() && bin.join("ctr").exists(),
            "no containerd in {}: {advice}",
            bin.display()
        );
        Ok(bin)
    }
}

/// How the VMs of a test node start. `CAISSON_TEST_START` selects it: `cold`, `clone` or `pool`. By
/// default it is `clone`, if there is Caisson's own QEMU, which can do that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// They boot.
    Cold,
    /// From a template, which the node has from the beginning.
    Clone,
    /// In the node's pool, from a template.
    Pool,
}

impl Start {
    /// Returns the way that the environment names.
    pub fn from_environment() -> Result<Self> {
        match std::env::var("CAISSON_TEST_START").as_deref() {
            Ok("cold") => Ok(Self::Cold),
            Ok("clone") => Ok(Self::Clone),
            Ok("pool") => Ok(Self::Pool),
            Err(_) if own_qemu().exists() => Ok(Self::Clone),
            Err(_) => Ok(Self::Cold),
            Ok(other) => bail!("CAISSON_TEST_START={other}: none of cold, clone and pool"),
        }
    }
}

/// Returns the workspace's folder.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_owned)
        .unwrap_or_default()
}

/// Returns the build folder.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// Returns the file that keeps what a probe VM found out about KVM: a new probe takes seconds.
pub fn accelerator() -> PathBuf {
    target().join("accelerator.json")
}

/// Returns the folder with the templates of the nodes whose VMs start from one: a new one takes
/// seconds.
pub fn templates() -> PathBuf {
    target().join("templates")
}

/// Returns the folder of the shipped files, made by `cargo xtask dist`: `bin`, `libexec`, `guest`.
/// With `CAISSON_TEST_MACHINE=debian`, that is what `cargo xtask dist --debian` made.
pub fn dist() -> PathBuf {
    let debian =
        std::env::var_os("CAISSON_TEST_MACHINE").is_some_and(|machine| machine == "debian");
    target().join(if debian { "dist-debian" } else { "dist" })
}

fn own_qemu() -> PathBuf {
    dist().join("libexec/qemu-system-x86_64")
}

/// Returns Caisson's own QEMU, or Debian's for what is shipped without.
pub fn qemu() -> PathBuf {
    let own = own_qemu();
    match own.exists() {
        true => own,
        false => "/usr/bin/qemu-system-x86_64".into(),
    }
}

/// Returns the guest image's agent, which the fake VMM runs on the host.
pub fn agent() -> PathBuf {
    target().join("cache/caisson-agent")
}

/// Returns the `probe` program, built beside the running test.
pub fn probe() -> Result<PathBuf> {
    program("probe")
}

/// Returns a program of this crate, built beside the running test.
pub fn program(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let found = test
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|p| p.exists());
    match found {
        Some(path) => Ok(path),
        None => bail!(
            "no {name} beside {}: cargo build -p caisson-tests --bins",
            test.display()
        ),
    }
}

/// Returns a program for Kubernetes' own end-to-end tests. If it is missing, the error says how to
/// get it.
pub fn conformance(name: &str) -> Result<PathBuf> {
    tool("conformance", name, "cluster-tools --conformance")
}

/// Returns the program with the tests of CRI. If it is missing, the error says how to get it.
pub fn critest() -> Result<PathBuf> {
    tool("cri-tools", "critest", "test-tools --integration")
}

/// Returns a file of the controller of agent-sandbox: its program below `bin`, a manifest below
/// `k8s`. If it is missing, the error says how to get it.
pub fn agent_sandbox(name: &str) -> Result<PathBuf> {
    built("agent-sandbox", name, "cluster-tools --add-ons")
}

/// Returns kube-router. If it is missing, the error says how to get it.
pub fn kube_router() -> Result<PathBuf> {
    tool("kube-router", "kube-router", "cluster-tools --add-ons")
}

/// Returns nerdctl. If it is missing, the error says how to get it.
pub fn nerdctl() -> Result<PathBuf> {
    tool("nerdctl", "nerdctl", "test-tools --nerdctl")
}

/// Returns a program that a job of xtask builds into a folder of the cache.
fn tool(folder: &str, name: &str, job: &str) -> Result<PathBuf> {
    built(folder, &format!("bin/{name}"), job)
}

/// Returns a file that a job of xtask puts into a folder of the cache.
fn built(folder: &str, name: &str, job: &str) -> Result<PathBuf> {
    let path = target().join("cache/tools").join(folder).join(name);
    ensure!(path.exists(), "no {}: cargo xtask {job}", path.display());
    Ok(path)
}

/// Returns the names of what is in a folder; none if it is not there.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}
