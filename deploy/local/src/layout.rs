//! Defines where a cluster has its files: all of them are below one folder, whose name marks
//! whatever the cluster has elsewhere.

use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};

/// The longest path of a cluster's folder: sockets (108 bytes, unix(7)) lie in folders of pods
/// below it.
const LONGEST: usize = 24;

/// The folder of a cluster.
#[derive(Debug, Clone)]
pub struct Layout {
    dir: PathBuf,
    mark: String,
}

impl Layout {
    /// A cluster's folder, which need not exist. Its last component becomes part of names, so it
    /// may contain only `a-z`, `0-9` and `-`.
    pub fn new(dir: &Path) -> Result<Self> {
        let text = dir.to_str().context("the cluster's folder is not UTF-8")?;
        let name = dir.file_name().and_then(|name| name.to_str());
        let name = name.with_context(|| format!("{text}: no name for a cluster"))?;
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        ensure!(
            dir.is_absolute() && text.len() <= LONGEST && name.bytes().all(plain),
            "{text}: the cluster's folder is an absolute path of at most {LONGEST} bytes whose last part is of a-z, 0-9 and -"
        );
        Ok(Self {
            dir: dir.to_owned(),
            mark: format!("cluster-{name}"),
        })
    }

    /// The folder itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The name of its network namespace, its cgroup and its CNI network.
    pub fn mark(&self) -> &str {
        &self.mark
    }

    /// A path below the folder.
    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.join(below)
    }

    /// A path below the folder, as text; the folder is UTF-8.
    pub fn text(&self, below: &str) -> String {
        self.path(below).display().to_string()
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.path("kubeconfig")
    }

    /// containerd's configuration.
    pub fn containerd_config(&self) -> PathBuf {
        self.path("containerd.toml")
    }

    /// containerd's socket.
    pub fn containerd_socket(&self) -> PathBuf {
        self.path("c.sock")
    }

    /// Caisson's configuration, which containerd has in its environment as `CAISSON_CONFIG`.
    pub fn caisson_config(&self) -> PathBuf {
        self.path("caisson/config.toml")
    }

    /// The network namespace's file.
    pub fn network_namespace(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_that_is_no_name_is_refused() {
        for dir in [
            "relative",
            "/var/tmp/Upper",
            "/var/tmp/a b",
            "/",
            "/a/path/that/is/too/long/for-sockets",
        ] {
            assert!(Layout::new(Path::new(dir)).is_err(), "{dir}");
        }
        let layout = Layout::new(Path::new("/var/tmp/caisson")).unwrap();
        assert_eq!(layout.mark(), "cluster-caisson");
    }
}
