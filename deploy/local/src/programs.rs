//! Finds the programs that a cluster consists of: below `target/`, made by `cargo xtask dist` and
//! `cargo xtask cluster-tools`.

use std::path::{Path, PathBuf};

use anyhow::{ensure, Result};

/// The folder of Debian's `containernetworking-plugins`.
pub const CNI_PLUGINS: &str = "/usr/lib/cni";

/// Folders with programs.
#[derive(Debug, Clone)]
pub struct Programs {
    target: PathBuf,
}

impl Programs {
    /// Finds what was built into this `target/`. The error says what to do if something is missing.
    pub fn find(target: &Path) -> Result<Self> {
        let programs = Self {
            target: target.to_owned(),
        };
        for (program, advice) in [
            (
                programs.kubernetes("kube-apiserver"),
                "cargo xtask cluster-tools",
            ),
            (programs.kubernetes("helm"), "cargo xtask cluster-tools"),
            (
                programs.containerd("containerd"),
                "cargo xtask cluster-tools",
            ),
            (programs.dist().join("bin/caisson"), "cargo xtask dist"),
            (
                Path::new(CNI_PLUGINS).join("bridge"),
                "packaging/setup cluster",
            ),
        ] {
            ensure!(program.exists(), "no {}: {advice}", program.display());
        }
        Ok(programs)
    }

    /// A program of Kubernetes, etcd, CoreDNS or helm.
    pub fn kubernetes(&self, name: &str) -> PathBuf {
        self.target.join("cache/tools/kubernetes/bin").join(name)
    }

    /// A program of containerd 2.1, or runc.
    pub fn containerd(&self, name: &str) -> PathBuf {
        self.target
            .join("cache/tools/containerd-2.1/bin")
            .join(name)
    }

    /// The folder with what a node gets.
    pub fn dist(&self) -> PathBuf {
        self.target.join("dist")
    }

    /// The `PATH` of containerd, in which it finds shims and runc.
    pub fn path(&self) -> String {
        let (dist, containerd) = (self.dist().join("bin"), self.containerd(""));
        let system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        format!("{}:{}:{system}", dist.display(), containerd.display())
    }
}
