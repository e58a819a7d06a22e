//! Decides where shares and disks are mounted, and lets a mount go again.

use std::{
    fs,
    path::{Path, PathBuf},
};

use caisson_protocol::path::{DISKS, SHARES};

use crate::{kernel::mounts, Error, Result};

/// Returns where a share is mounted. Fails for a tag that is not a valid name.
pub fn share(tag: &str) -> Result<PathBuf> {
    // virtio spec 5.11.4.
    target(SHARES, "share.tag", tag, 36)
}

/// Returns where a disk is mounted. Fails for a serial that is not a valid name.
pub fn disk(serial: &str) -> Result<PathBuf> {
    // virtio spec 5.2.6.2.
    target(DISKS, "disk.serial", serial, 20)
}

/// Unmounts a target and what is mounted below it, and removes its directory. One that does not
/// exist counts as a success.
pub fn let_go(target: &Path) -> Result<()> {
    mounts::unmount(target)?;
    match fs::remove_dir(target) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::file("remove", target)(error))
        }
        _ => Ok(()),
    }
}

fn target(dir: &str, field: &'static str, name: &str, most: usize) -> Result<PathBuf> {
    let why = match name {
        "" | "." | ".." => "is no name",
        _ if name.len() > most => "is longer than the device can say",
        _ if name.contains(['/', '\0']) => "must not have a slash",
        _ => return Ok(Path::new(dir).join(name)),
    };
    Err(Error::Argument {
        field,
        value: name.to_string(),
        why,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_with_a_way_out_is_refused() {
        for name in ["", ".", "..", "a/b", "../x", "a\0b", &"x".repeat(37)] {
            assert!(target(SHARES, "share.tag", name, 36).is_err(), "{name:?}");
        }
        let good = target(SHARES, "share.tag", "pod", 36).unwrap();
        assert_eq!(good, Path::new("/run/caisson/shares/pod"));
    }
}
