//! Keeps files in the guest's memory that the host gives to a pod: those of a claim.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
};

use caisson_protocol::{
    agent::{Files, Memory, Owner},
    path::MEMORY,
};

use super::memory;
use crate::{devices::target, id, Error, Result};

/// The most bytes of one file system: what a claim can have, each file in pages of its own.
const SIZE: u64 = 8 << 20;
/// The modes of the files and of their folders.
const FILE: u32 = 0o444;
const FOLDER: u32 = 0o755;
/// The name of a file before it appears.
const PART: &str = ".part";

/// Adds files to the file system of this name, which is made if it does not exist.
pub fn put(files: &Files) -> Result<()> {
    let root = place(&files.name)?;
    let owner = Owner {
        mode: FOLDER,
        ..Default::default()
    };
    memory::mount(&Memory {
        name: files.name.clone(),
        size_bytes: SIZE,
        owner: Some(owner).into(),
        strict: true,
        ..Default::default()
    })?;
    for file in &files.files {
        let (path, part) = (root.join(relative(&file.path)?), root.join(PART));
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(Error::file("create directory", folder))?;
        }
        fs::write(&part, &file.content)
            .and_then(|()| fs::set_permissions(&part, fs::Permissions::from_mode(FILE)))
            .and_then(|()| fs::rename(&part, &path))
            .map_err(Error::file("write", path))?;
    }
    Ok(())
}

/// Removes a file system with its files. One that does not exist counts as a success.
pub fn remove(files: &Files) -> Result<()> {
    target::let_go(&place(&files.name)?)
}

/// Returns where the file system of this name is mounted.
pub fn place(name: &str) -> Result<PathBuf> {
    id::check("files.name", name)?;
    Ok(Path::new(MEMORY).join(name))
}

fn relative(path: &str) -> Result<&Path> {
    let plain = |part: Component| matches!(part, Component::Normal(name) if name != PART);
    match !path.is_empty() && Path::new(path).components().all(plain) {
        true => Ok(Path::new(path)),
        false => Err(Error::Argument {
            field: "file.path",
            value: path.to_owned(),
            why: "must be relative and plain",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_that_leads_elsewhere_is_refused() {
        for path in ["", "/etc/passwd", "../x", "a/../b", ".", ".part"] {
            assert!(relative(path).is_err(), "{path:?}");
        }
        assert_eq!(relative("secrets/a.b").unwrap(), Path::new("secrets/a.b"));
    }
}
