//! What `caisson node install` did, `<store_dir>/node/`: written before each thing is done, so that it can be taken back after a
//! kill at any line.
//!
//! ```text
//! record.json        a [`Record`]
//! containerd.saved   the bytes of the file that the handler went into, as they were
//! check/             while containerd's program looks at what would be written
//! self-test/         while a self-test runs
//! ```

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{ensure, Context, Result};
use caisson_shim::folder::make_private;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::{containerd::Restart, files};

/// All of what was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub prefix: PathBuf,
    pub handler: String,
    pub socket: PathBuf,
    pub restart: Restart,
    /// Folders that were not there before, outer ones first.
    pub made: Vec<PathBuf>,
    /// What of [`traces`] was there before.
    pub found: Vec<PathBuf>,
    pub containerd: Option<Edit>,
}

/// The one file of containerd's configuration that was changed or made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    pub file: PathBuf,
    pub kind: Kind,
    /// Whether it was there before: then `containerd.saved` has its bytes.
    pub existed: bool,
    /// The sha256 of what was written.
    pub written: String,
    /// Whether containerd has come up with it.
    pub in_force: bool,
}

/// What kind of file has the handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The configuration itself.
    Main,
    /// One that it imports.
    DropIn,
    /// The template from which k3s and RKE2 make it.
    Template,
}

/// The folder, locked against another `caisson node`.
pub struct Store {
    pub dir: PathBuf,
    _lock: Flock<File>,
}

impl Store {
    /// Opens the folder, made where there is none. Gives the folders that were made for it too.
    pub fn create(store_dir: &Path) -> Result<(Self, Vec<PathBuf>)> {
        let dir = store_dir.join("node");
        let mut made = files::missing(&dir);
        // What is saved may hold secrets.
        make_private(&dir).with_context(|| format!("create {}", dir.display()))?;
        let store = Self::open(store_dir)?.context("it has just been removed: try again")?;
        // A run that was killed before it wrote a record.
        if made.is_empty() && store.load()?.is_none() {
            let others = fs::read_dir(store_dir)?.flatten();
            if others.filter(|entry| entry.file_name() != "node").count() == 0 {
                made.push(store_dir.to_owned());
            }
        }
        made.retain(|path| *path != dir);
        Ok((store, made))
    }

    /// Opens the folder; `None` where there is none.
    pub fn open(store_dir: &Path) -> Result<Option<Self>> {
        let dir = store_dir.join("node");
        if !dir.exists() {
            return Ok(None);
        }
        let what = || format!("lock {}", dir.display());
        let file = File::open(&dir).with_context(what)?;
        let inode = file.metadata().with_context(what)?.ino();
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error);
        let lock = lock.context("another `caisson node` is at work on this node")?;
        let still = fs::metadata(&dir).is_ok_and(|now| now.ino() == inode);
        ensure!(still, "another `caisson node` has just ended: try again");
        Ok(Some(Self { dir, _lock: lock }))
    }

    /// What was written last; `None` where nothing was.
    pub fn load(&self) -> Result<Option<Record>> {
        Record::read(&self.dir)
    }

    pub fn save(&self, record: &Record) -> Result<()> {
        let text = serde_json::to_vec_pretty(record).context("record")?;
        files::write(&self.dir.join("record.json"), &text)
    }

    /// The bytes as they were.
    pub fn saved(&self) -> PathBuf {
        self.dir.join("containerd.saved")
    }

    /// A folder for what containerd's program is to look at.
    pub fn check(&self) -> PathBuf {
        self.dir.join("check")
    }

    /// A folder for the self-test.
    pub fn self_test(&self) -> PathBuf {
        self.dir.join("self-test")
    }

    /// Removes the record, last the folder.
    pub fn remove(self) -> Result<()> {
        remove_dir(&self.dir)
    }
}

/// Removes the folder of a [`Store`], the record before the rest is gone: nothing is left to be taken back.
pub fn remove_dir(dir: &Path) -> Result<()> {
    for name in ["record.json", "containerd.saved"] {
        let path = dir.join(name);
        files::remove(&files::part(&path))?;
        files::remove(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    for name in ["check", "self-test"] {
        files::remove_tree(&dir.join(name))?;
    }
    files::remove_empty(dir)?;
    Ok(())
}

impl Record {
    /// Reads without a lock, to show it.
    pub fn of(store_dir: &Path) -> Result<Option<Self>> {
        Self::read(&store_dir.join("node"))
    }

    fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join("record.json");
        let bytes = files::read(&path)?;
        let record = bytes
            .map(|bytes| serde_json::from_slice(&bytes))
            .transpose();
        record.with_context(|| format!("{} was not written by this program", path.display()))
    }

    /// Notes folders that are about to be made.
    pub fn add_made(&mut self, dirs: Vec<PathBuf>) {
        for dir in dirs {
            if !self.made.contains(&dir) {
                self.made.push(dir);
            }
        }
    }
}

/// What shims leave on a node that has no pods: files that say what a probe found out, and folders, which go where they are empty.
pub fn traces(state_dir: &Path, store_dir: &Path) -> Vec<PathBuf> {
    let store = [
        "accelerator.json",
        "accelerator.lock",
        "run/.lock",
        "run",
        "skills",
        "homes",
    ];
    let store = store.iter().map(|name| store_dir.join(name));
    store
        .chain([state_dir.join(".users"), state_dir.to_owned()])
        .collect()
}
