//! Changes files and folders of the node for `caisson node`: each file completely or not at all.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::{fchown, symlink, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// The end of the names of files that are being written. It is not `.toml`, which containerd would
/// import.
const PART: &str = ".caisson-new";

/// Returns a file's bytes, or `None` where there is no file.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// Does as [`read`], but returns text.
pub fn read_text(path: &Path) -> Result<Option<String>> {
    let bytes = read(path)?;
    let text = bytes.map(String::from_utf8).transpose();
    text.with_context(|| format!("{} is not UTF-8", path.display()))
}

/// Returns where a file is made before it takes its place: beside it, so that relative paths in it
/// stay right.
pub fn part(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(PART);
    path.with_file_name(name)
}

/// Writes [`part`] with the owner, mode and attributes of the file that it will replace.
pub fn write_part(path: &Path, bytes: &[u8]) -> Result<PathBuf> {
    let part = part(path);
    let write = || -> io::Result<()> {
        // A file that a killed run left may have another owner.
        remove(&part)?;
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&part)?;
        file.write_all(bytes)?;
        match fs::metadata(path) {
            Ok(old) => {
                fchown(&file, Some(old.uid()), Some(old.gid()))?;
                file.set_permissions(Permissions::from_mode(old.mode() & 0o7777))?;
                for name in xattr::list(path).into_iter().flatten() {
                    // Where this file system does not allow a label to be set, the folder's label
                    // stays.
                    if let Ok(Some(value)) = xattr::get(path, &name) {
                        let _ = xattr::set(&part, &name, &value);
                    }
                }
            }
            Err(_) => file.set_permissions(Permissions::from_mode(0o644))?,
        }
        file.sync_all()
    };
    write().with_context(|| format!("write {}", part.display()))?;
    Ok(part)
}

/// Moves [`part`] into its place.
pub fn commit_part(path: &Path) -> Result<()> {
    fs::rename(part(path), path).with_context(|| format!("replace {}", path.display()))?;
    sync_parent(path)
}

/// Replaces a file and keeps its owner, mode and attributes.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_part(path, bytes)?;
    commit_part(path)
}

/// Removes a file, if there is one.
pub fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path).or_else(unless_gone)
}

/// Removes a folder if it is there and empty. Returns whether it has gone.
pub fn remove_empty(dir: &Path) -> Result<bool> {
    match fs::remove_dir(dir) {
        Ok(()) => Ok(true),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound => Ok(true),
            io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy => Ok(false),
            _ => Err(error).with_context(|| format!("remove {}", dir.display())),
        },
    }
}

/// Removes a folder with all that is in it, if it is there.
pub fn remove_tree(dir: &Path) -> Result<()> {
    let removed = fs::remove_dir_all(dir).or_else(unless_gone);
    removed.with_context(|| format!("remove {}", dir.display()))
}

/// Makes a link point elsewhere, atomically.
pub fn link(path: &Path, target: &Path) -> Result<()> {
    let part = part(path);
    let write = || {
        remove(&part)?;
        symlink(target, &part)?;
        fs::rename(&part, path)
    };
    write().with_context(|| format!("link {}", path.display()))?;
    sync_parent(path)
}

/// Returns the folders on the path to `dir`, itself included, that do not exist, outermost first.
pub fn missing(dir: &Path) -> Vec<PathBuf> {
    let ancestors = dir.ancestors().take_while(|path| !path.exists());
    let mut missing: Vec<_> = ancestors.map(Path::to_owned).collect();
    missing.reverse();
    missing
}

/// Syncs the folder of a file, so that all changes in it are on disk.
pub fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let synced = File::open(parent).and_then(|dir| dir.sync_all());
    synced.with_context(|| format!("sync {}", parent.display()))
}

/// Returns the sha256 in hexadecimal.
pub fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn unless_gone(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_that_is_replaced_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        write(&file, b"new").unwrap();
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(read(&file).unwrap(), Some(b"new".to_vec()));
        assert!(!part(&file).exists());
    }

    #[test]
    fn missing_folders_are_told_from_the_outermost() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b");
        assert_eq!(missing(&deep), [dir.path().join("a"), deep.clone()]);
        assert_eq!(missing(dir.path()), [] as [PathBuf; 0]);
    }
}
