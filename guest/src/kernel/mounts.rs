//! Finds what is mounted in the guest, and unmounts it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::mount::{umount2, MntFlags};

use crate::{Error, Result};

/// Unmounts everything at and below `path`, the deepest first. Returns whether anything was
/// mounted.
pub fn unmount(path: &Path) -> Result<bool> {
    let mut found = false;
    for target in mount_points()?.iter().rev() {
        if target.starts_with(path) {
            umount2(target, MntFlags::MNT_DETACH).map_err(Error::file("unmount", target))?;
            found = true;
        }
    }
    Ok(found)
}

/// Unmounts what can be unmounted below `dir`, for the end of the machine. This writes out the
/// unwritten data there.
pub fn unmount_below(dir: &Path) {
    for target in mount_points().unwrap_or_default().iter().rev() {
        if target.starts_with(dir) && target != dir {
            if let Err(error) = umount2(target, MntFlags::empty()) {
                log::debug!(path = target.display().to_string(), error:%; "not unmounted");
            }
        }
    }
}

/// Returns all mount points, in the order in which they were mounted.
fn mount_points() -> Result<Vec<PathBuf>> {
    let path = "/proc/self/mountinfo";
    let text = fs::read_to_string(path).map_err(Error::file("read", path))?;
    Ok(text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| PathBuf::from(unescape(field)))
        .collect())
}

/// Returns whether something is mounted at `path`.
pub fn is_mount_point(path: &Path) -> Result<bool> {
    Ok(mount_points()?.iter().any(|mounted| mounted == path))
}

/// Undoes the octal escapes of /proc/self/mountinfo (proc(5)).
fn unescape(field: &str) -> String {
    let mut text = field.to_string();
    for (code, character) in [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ] {
        text = text.replace(code, character);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_point_with_escapes_is_read() {
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
    }
}
