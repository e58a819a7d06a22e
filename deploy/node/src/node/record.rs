//! Records what `caisson node install` did, in `<store_dir>/node/`. Each step is recorded before it
//! is done, so that it can be undone after a kill at any point.
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
use caisson_node::{counters, host::folder::make_private, pool, state};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::{containerd::Restart, files};

/// Everything that was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub prefix: PathBuf,
    pub handler: String,
    /// The presets of the configuration that have a handler and a link to the shim.
    #[serde(default)]
    pub presets: Vec<String>,
    pub socket: PathBuf,
    pub restart: Restart,
    /// Folders that were not there before, outer ones first.
    pub made: Vec<PathBuf>,
    /// The files and folders of [`traces`] that were there before.
    pub found: Vec<PathBuf>,
    pub containerd: Option<Edit>,
}

/// The one file of containerd's configuration that was changed or made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    pub file: PathBuf,
    pub kind: Kind,
    /// Whether it was there before; `containerd.saved` has its bytes then.
    pub existed: bool,
    /// The sha256 of what was written.
    pub written: String,
    /// Whether containerd has come up with it.
    pub in_force: bool,
}

/// The kind of file that has the handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The configuration itself.
    Main,
    /// A file that the configuration imports, or that k0s makes a part of it.
    DropIn,
    /// The template from which k3s, RKE2 or MicroK8s makes the configuration.
    Template,
}

/// The record's folder, locked against another `caisson node`.
pub struct Store {
    pub dir: PathBuf,
    _lock: Flock<File>,
}

impl Store {
    /// Opens the folder, and makes it where there is none. Also returns the folders that were made
    /// for it.
    pub fn create(store_dir: &Path) -> Result<(Self, Vec<PathBuf>)> {
        let dir = store_dir.join("node");
        let mut made = files::missing(&dir);
        // The saved file may hold secrets.
        make_private(&dir).with_context(|| format!("create {}", dir.display()))?;
        let store = Self::open(store_dir)?.context("it has just been removed: try again")?;
        // Left by a run that was killed before it wrote a record.
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

    /// Returns the record that was written last, or `None` where there is none.
    pub fn load(&self) -> Result<Option<Record>> {
        Record::read(&self.dir)
    }

    pub fn save(&self, record: &Record) -> Result<()> {
        let text = serde_json::to_vec_pretty(record).context("record")?;
        files::write(&self.dir.join("record.json"), &text)
    }

    /// The file with the original bytes.
    pub fn saved(&self) -> PathBuf {
        self.dir.join("containerd.saved")
    }

    /// A folder for the files that containerd's program is to check.
    pub fn check(&self) -> PathBuf {
        self.dir.join("check")
    }

    /// A folder for the self-test.
    pub fn self_test(&self) -> PathBuf {
        self.dir.join("self-test")
    }

    /// Removes the record, and the folder last.
    pub fn remove(self) -> Result<()> {
        remove_dir(&self.dir)
    }
}

/// Removes the folder of a [`Store`], the record before the rest: nothing is left to be undone.
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
    /// Reads the record without a lock, to show it.
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

    /// Returns the names of all handlers.
    pub fn handlers(&self) -> Vec<String> {
        let presets = self.presets.iter();
        let presets = presets.map(|preset| preset_handler(&self.handler, preset));
        [self.handler.clone()].into_iter().chain(presets).collect()
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

/// Returns the name of a preset's handler.
pub fn preset_handler(handler: &str, preset: &str) -> String {
    format!("{handler}-{preset}")
}

/// Returns what shims leave on a node that has no pods: files with the results of probes, and
/// folders, which are removed where they are empty.
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
        .chain(
            [
                ".users",
                state::TURNS,
                pool::LOCK,
                counters::FILE,
                counters::LOCK,
            ]
            .map(|name| state_dir.join(name)),
        )
        .chain([state_dir.to_owned()])
        .collect()
}
