//! A skill's file while it is being written.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::error::SkillError;
use crate::host::error::OnFile;

/// A file of the store that is not named by its digest yet. Its writer holds a lock on it. When
/// dropped, the file stays, so that the next writer can go on with it.
#[derive(Debug)]
pub struct Part {
    file: File,
    path: PathBuf,
    hash: Sha256,
    size: u64,
}

impl Part {
    /// Goes on at the end of an existing file.
    pub(super) fn resume(mut file: File, path: PathBuf) -> Result<Self, SkillError> {
        let mut hash = Sha256::new();
        let size = hash_file(&mut file, &mut hash).map_err(SkillError::file("read", &path))?;
        Ok(Self {
            file,
            path,
            hash,
            size,
        })
    }

    /// The number of bytes written so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The digest of what has been written: 64 hex digits.
    pub fn digest(&self) -> String {
        hex::encode(self.hash.clone().finalize())
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), SkillError> {
        self.file
            .write_all(bytes)
            .map_err(SkillError::file("write", &self.path))?;
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Discards what has been written and begins anew.
    pub fn restart(&mut self) -> Result<(), SkillError> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.rewind())
            .map_err(SkillError::file("write", &self.path))?;
        self.hash = Sha256::new();
        self.size = 0;
        Ok(())
    }

    /// Removes the file.
    pub fn discard(self) -> Result<(), SkillError> {
        fs::remove_file(&self.path).map_err(SkillError::file("remove", &self.path))
    }

    /// Gives the file its final name, read-only and on disk.
    pub(super) fn name(self, path: &Path) -> Result<(), SkillError> {
        let read_only = fs::Permissions::from_mode(0o444);
        self.file
            .set_permissions(read_only)
            .and_then(|()| self.file.sync_all())
            .map_err(SkillError::file("write", &self.path))?;
        fs::rename(&self.path, path).map_err(SkillError::file("name", path))?;
        let dir = path.parent().unwrap_or(path);
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(SkillError::file("write", dir))
    }
}

/// The digest of a file from its current position: 64 hex digits.
pub(super) fn digest_of(mut file: &File) -> io::Result<String> {
    let mut hash = Sha256::new();
    hash_file(&mut file, &mut hash)?;
    Ok(hex::encode(hash.finalize()))
}

fn hash_file(file: &mut impl Read, hash: &mut Sha256) -> io::Result<u64> {
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(size),
            length => {
                hash.update(&buffer[..length]);
                size += length as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::skills::SkillStore;

    #[test]
    fn part_that_was_left_is_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let store = SkillStore::new(dir.path());
        let mut part = store.part("x").unwrap();
        part.write(b"first ").unwrap();
        drop(part);
        let mut part = store.part("x").unwrap();
        assert_eq!(part.size(), 6);
        part.write(b"second").unwrap();
        let mut whole = store.part("y").unwrap();
        whole.write(b"first second").unwrap();
        assert_eq!(part.digest(), whole.digest());
    }

    #[test]
    fn part_has_one_writer_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let store = SkillStore::new(dir.path());
        let mut part = store.part("x").unwrap();
        let second = std::thread::spawn({
            let store = store.clone();
            move || store.part("x").unwrap().size()
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!second.is_finished());
        part.write(b"bytes").unwrap();
        part.discard().unwrap();
        assert_eq!(second.join().unwrap(), 0);
    }
}
