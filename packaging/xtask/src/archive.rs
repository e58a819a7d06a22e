//! Writes tar archives that are the same for the same files: no times, no owners, folders before
//! what is in them.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use anyhow::{Context, Result};
use tar::{EntryType, Header};

use crate::files;

/// A tar file that is being written.
pub struct Archive {
    tar: tar::Builder<BufWriter<File>>,
    /// The folders that are already in it.
    folders: BTreeSet<String>,
}

impl Archive {
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self {
            tar: tar::Builder::new(BufWriter::new(file)),
            folders: BTreeSet::new(),
        })
    }

    /// Adds a folder and those above it, unless they are already there.
    pub fn folder(&mut self, path: &str) -> Result<()> {
        let mut above = String::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            above = format!("{above}{part}/");
            if self.folders.insert(above.clone()) {
                self.append(EntryType::Directory, &above, 0o755, &[])?;
            }
        }
        Ok(())
    }

    /// Adds a file with this content.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        if let Some((folder, _)) = path.rsplit_once('/') {
            self.folder(folder)?;
        }
        self.append(EntryType::Regular, path, mode, content)
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, to: &str) -> Result<()> {
        let mut header = header(EntryType::Symlink, 0o777, 0);
        self.tar
            .append_link(&mut header, path, to)
            .with_context(|| format!("add {path}"))
    }

    /// Adds a copy of a file.
    pub fn copy(&mut self, path: &str, mode: u32, from: &Path) -> Result<()> {
        self.file(path, mode, &files::read(from)?)
    }

    /// Writes the end of the archive.
    pub fn finish(self) -> Result<()> {
        let done = self.tar.into_inner().and_then(|mut file| file.flush());
        done.context("write an archive's end")
    }

    fn append(&mut self, kind: EntryType, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        let mut header = header(kind, mode, content.len() as u64);
        self.tar
            .append_data(&mut header, path, content)
            .with_context(|| format!("add {path}"))
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(path: &Path) -> Vec<String> {
        let mut tar = tar::Archive::new(File::open(path).unwrap());
        let entries = tar.entries().unwrap();
        let name = |entry: tar::Entry<'_, File>| entry.path().unwrap().display().to_string();
        entries.map(|entry| name(entry.unwrap())).collect()
    }

    fn write(path: &Path) {
        let mut archive = Archive::create(path).unwrap();
        archive.file("a/b/c", 0o644, b"one").unwrap();
        archive.file("a/d", 0o755, b"two").unwrap();
        archive.finish().unwrap();
    }

    #[test]
    fn archive_has_each_folder_once_before_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tar");
        write(&path);
        assert_eq!(names(&path), ["a/", "a/b/", "a/b/c", "a/d"]);
    }

    #[test]
    fn archive_is_the_same_twice() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("1"), dir.path().join("2"));
        write(&one);
        write(&two);
        assert_eq!(std::fs::read(one).unwrap(), std::fs::read(two).unwrap());
    }
}
