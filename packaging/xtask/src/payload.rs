//! Lists what a node gets of `target/dist`, in the same order and with the same modes for the node
//! image and the Debian package.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{dirs::Dirs, files, papers};

/// The folders of `target/dist` that go to a node, with those below them.
pub const FOLDERS: [&str; 3] = ["bin", "guest", "libexec"];
/// Where they are in the node image and in the Debian package, without the leading slash.
pub const PLACE: &str = "usr/lib/caisson";
/// Where its papers are: licences and SBOM.
pub const PAPERS: &str = "usr/share/doc/caisson";

/// One file to put somewhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Without a leading slash.
    pub to: String,
    pub from: PathBuf,
    /// 0755 or 0644.
    pub mode: u32,
}

/// The programs, the guest image, licences and SBOM, sorted.
pub fn entries(dirs: &Dirs) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for folder in FOLDERS {
        let dir = dirs.dist.join(folder);
        for path in files::below(&dir)? {
            let to = format!("{PLACE}/{folder}/{path}");
            entries.push(entry(&dir.join(path), to)?);
        }
    }
    for paper in papers::all(dirs) {
        entries.push(entry(&dirs.dist.join(paper), format!("{PAPERS}/{paper}"))?);
    }
    entries.sort();
    Ok(entries)
}

/// Returns the entry that puts `from` at `to`. Of its mode, only whether it is executable is kept.
pub fn entry(from: &Path, to: String) -> Result<Entry> {
    let meta = fs::metadata(from).with_context(|| format!("look at {}", from.display()))?;
    let executable = meta.permissions().mode() & 0o100 != 0;
    Ok(Entry {
        to,
        from: from.to_owned(),
        mode: if executable { 0o755 } else { 0o644 },
    })
}
