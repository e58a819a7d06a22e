//! Files and folders of the node as `caisson node` changes them: whole or not at all.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::{fchown, symlink, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Ends the names of files that are being written. No `.toml`: containerd would import one.
const PART: &str = ".caisson-new";

/// A file's bytes; `None` where there is no file.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// As [`read`], as text.
pub fn read_text(path: &Path) -> Result<Option<String>> {
    let bytes = read(path)?;
    let text = bytes.map(String::from_utf8).transpose();
    text.with_context(|| format!("{} is not UTF-8", path.display()))
}

/// Where a file is made before it takes its place: beside it, so that what is relative in it stays right.
pub fn part(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(PART);
    path.with_file_name(name)
}

/// Writes [`part`], with the owner, mode and attributes of the file that it will replace.
pub fn write_part(path: &Path, bytes: &[u8]) -> Result<PathBuf> {
    let part = part(path);
    let write = || -> io::Result<()> {
        // What a killed run left may have another owner.
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
                    // A label that this file system does not let be set is that of the folder.
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

/// Puts [`part`] in its place.
pub fn commit_part(path: &Path) -> Result<()> {
    fs::rename(part(path), path).with_context(|| format!("replace {}", path.display()))?;
    sync_parent(path)
}

/// Replaces a file, whose owner, mode and attributes stay.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_part(path, bytes)?;
    commit_part(path)
}

/// Removes a file, if there is one.
pub fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path).or_else(unless_gone)
}

/// Removes a folder, if it is there and empty; says whether it has gone.
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

/// Makes a link point elsewhere, at once.
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

/// The folders on the way to `dir`, itself included, that are not there: the outermost first.
pub fn missing(dir: &Path) -> Vec<PathBuf> {
    let ancestors = dir.ancestors().take_while(|path| !path.exists());
    let mut missing: Vec<_> = ancestors.map(Path::to_owned).collect();
    missing.reverse();
    missing
}

/// Has everything on disk that happened in a file's folder.
pub fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let synced = File::open(parent).and_then(|dir| dir.sync_all());
    synced.with_context(|| format!("sync {}", parent.display()))
}

/// Hexadecimal sha256.
pub fn digest(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
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
