//! Reads and writes files, with the path in each error. A new file replaces the old one in one
//! step, so that a file that a running VM has open stays whole.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{bail, Context, Result};

/// Writes `to` unless it already has this content and these permissions.
pub fn write(to: &Path, content: &[u8], mode: u32) -> Result<()> {
    let same = fs::read(to).is_ok_and(|old| old == content)
        && fs::metadata(to).is_ok_and(|meta| meta.permissions().mode() & 0o7777 == mode);
    if same {
        return Ok(());
    }
    let dir = to
        .parent()
        .with_context(|| format!("{} has no folder", to.display()))?;
    make_dir(dir)?;
    let temp = tempfile::NamedTempFile::new_in(dir)
        .with_context(|| format!("make a file in {}", dir.display()))?;
    fs::write(&temp, content)
        .and_then(|()| fs::set_permissions(&temp, fs::Permissions::from_mode(mode)))
        .with_context(|| format!("write {}", to.display()))?;
    temp.persist(to)
        .with_context(|| format!("write {}", to.display()))?;
    Ok(())
}

/// Copies a file, permissions included, unless `to` has the same content.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let mode = fs::metadata(from)
        .with_context(|| format!("look at {}", from.display()))?
        .permissions()
        .mode();
    write(to, &read(from)?, mode & 0o7777)
}

/// Reads a whole file.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// Reads a text file.
pub fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// Removes a folder with all that is in it. One that is not there is no error.
pub fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Makes a folder and those above it.
pub fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))
}

/// Returns every file below a folder, by its path there, sorted.
pub fn below(dir: &Path) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    collect(dir, "", &mut paths)?;
    paths.sort();
    Ok(paths)
}

fn collect(top: &Path, below: &str, paths: &mut Vec<String>) -> Result<()> {
    let dir = top.join(below);
    let context = || format!("read {}", dir.display());
    for found in fs::read_dir(&dir).with_context(context)? {
        let found = found.with_context(context)?;
        let name = found.file_name().to_string_lossy().into_owned();
        let path = if below.is_empty() {
            name
        } else {
            format!("{below}/{name}")
        };
        if found.file_type().with_context(context)?.is_dir() {
            collect(top, &path, paths)?;
        } else {
            paths.push(path);
        }
    }
    Ok(())
}

/// Returns the last part of a path.
pub fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Returns the sha256 of a file as 64 hex digits. It runs coreutils, since a debug build's own code
/// would take seconds.
pub fn sha256(path: &Path) -> Result<String> {
    let output = Command::new("sha256sum")
        .arg("--")
        .arg(path)
        .stderr(Stdio::inherit())
        .output()
        .context("start sha256sum")?;
    if !output.status.success() {
        bail!("sha256sum {}: {}", path.display(), output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    // A leading backslash marks an escaped file name.
    let digest = text.trim_start_matches('\\').get(..64);
    Ok(digest
        .with_context(|| format!("sha256sum of {} said: {text}", path.display()))?
        .to_owned())
}
