//! Keeps what takes long to make in folders outside the checkout, in `~/.cache/caisson` (or below
//! `XDG_CACHE_HOME`). All checkouts of a user share them.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};

use crate::files;

/// How long an entry is kept after its last use.
const KEPT: Duration = Duration::from_secs(60 * 24 * 3600);

/// Returns the folder for one kind of things. It exists.
pub fn dir(kind: &str) -> Result<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let base = base
        .filter(|path| path.is_absolute())
        .or_else(home)
        .context("neither XDG_CACHE_HOME nor HOME is set")?;
    let dir = base.join("caisson").join(kind);
    files::make_dir(&dir)?;
    Ok(dir)
}

/// Returns the folder in `dir` that is named by a digest of all that goes in. It need not exist.
pub fn entry(dir: &Path, name: &str, inputs: &str) -> Result<PathBuf> {
    let file = tempfile::NamedTempFile::new().context("make a file")?;
    files::write(file.path(), inputs.as_bytes(), 0o600)?;
    let digest = files::sha256(file.path())?;
    Ok(dir.join(format!("{name}-{}", &digest[..16])))
}

/// Notes that an entry is used now.
pub fn use_now(entry: &Path) -> Result<()> {
    let now = SystemTime::now();
    let used = fs::File::open(entry).and_then(|entry| entry.set_modified(now));
    used.with_context(|| format!("set the time of {}", entry.display()))
}

/// Removes the entries that no checkout has used for long, and what an interrupted build left.
pub fn remove_old(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry.with_context(|| format!("list {}", dir.display()))?;
        let used = entry.metadata().and_then(|meta| meta.modified());
        let idle = used.map(|used| used.elapsed().unwrap_or_default());
        if idle.is_ok_and(|idle| idle > KEPT) {
            let path = entry.path();
            fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}
