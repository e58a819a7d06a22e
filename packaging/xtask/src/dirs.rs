//! Knows where things are; no other module knows the layout of `target/`.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

/// The checkout's folders.
#[derive(Clone)]
pub struct Dirs {
    /// The checkout.
    pub root: PathBuf,
    /// Cargo's target folder: `CARGO_TARGET_DIR`, or `target` in the checkout.
    pub target: PathBuf,
    /// Downloads and what is made from them; may be thrown away at any time.
    pub cache: PathBuf,
    /// What is shipped.
    pub dist: PathBuf,
    /// One log per step.
    pub log: PathBuf,
}

impl Dirs {
    /// Returns the folders of the checkout that this binary was built from; creates those that are
    /// missing.
    pub fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../..")
            .canonicalize()
            .context("find the checkout")?;
        let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
        // An absolute path replaces the root.
        let target = root.join(target);
        let dirs = Self {
            cache: target.join("cache"),
            dist: target.join("dist"),
            log: target.join("log"),
            target,
            root,
        };
        for dir in [&dirs.cache, &dirs.dist, &dirs.log] {
            std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        }
        Ok(dirs)
    }

    /// Returns the same folders, with another one for what is shipped: the build for Debian's QEMU.
    pub fn debian(&self) -> Self {
        Self {
            dist: self.target.join("dist-debian"),
            ..self.clone()
        }
    }

    /// Waits until no other xtask works on these folders, and keeps others out until the lock is
    /// dropped.
    pub fn lock(&self) -> Result<Flock<File>> {
        let path = self.cache.join("lock");
        let file = File::create(&path).with_context(|| format!("make {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(lock),
            Err((file, Errno::EWOULDBLOCK)) => {
                eprintln!("  waiting for another xtask to end");
                Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno)
            }
            Err((_, errno)) => Err(errno),
        }
        .with_context(|| format!("lock {}", path.display()))
    }

    /// The file in which everything from outside is pinned.
    pub fn inputs(&self) -> PathBuf {
        self.root.join("packaging/guest/inputs.toml")
    }
}
