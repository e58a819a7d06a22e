//! Finds where in its file system a path is, whatever mounts lead to it.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use rustix::fs::{statx, AtFlags, StatxFlags, CWD};

/// The mounts of this process' mount namespace (proc(5), `mountinfo`), by their ids.
#[derive(Debug, Default)]
pub struct MountTable {
    mounts: HashMap<u64, Mount>,
}

#[derive(Debug)]
struct Mount {
    /// The path in its file system of the folder or file that is mounted.
    root: PathBuf,
    point: PathBuf,
}

impl MountTable {
    /// Reads the table.
    pub fn read() -> io::Result<Self> {
        Ok(Self::parse(&fs::read("/proc/self/mountinfo")?))
    }

    fn parse(table: &[u8]) -> Self {
        let mounts = table.split(|byte| *byte == b'\n').filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ');
            let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
            let root = unescape(fields.nth(2)?);
            let point = unescape(fields.next()?);
            Some((id, Mount { root, point }))
        });
        Self {
            mounts: mounts.collect(),
        }
    }

    /// Returns the path that a file or folder has in its file system. Two paths with the same
    /// device (stat(2), `st_dev`) and the same place are the same file.
    pub fn place(&self, path: &Path) -> Option<PathBuf> {
        let path = fs::canonicalize(path).ok()?;
        let status = statx(CWD, &path, AtFlags::empty(), StatxFlags::MNT_ID).ok()?;
        let mount = self.mounts.get(&status.stx_mnt_id)?;
        let below = path.strip_prefix(&mount.point).ok()?;
        Some(match below.as_os_str().is_empty() {
            true => mount.root.clone(),
            false => mount.root.join(below),
        })
    }
}

/// Undoes the octal escapes of a path in the table, such as `\040` for a space.
fn unescape(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = after.get(..3).filter(|_| byte == b'\\');
        let digits = escaped.and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(code) => {
                path.push(code);
                rest = &after[3..];
            }
            None => {
                path.push(byte);
                rest = after;
            }
        }
    }
    std::ffi::OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::mount::{mount, umount2, MntFlags, MsFlags};

    #[test]
    fn place_in_a_bind_mount_is_that_in_its_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, elsewhere) = (dir.path().join("a b"), dir.path().join("elsewhere"));
        fs::create_dir_all(whole.join("sub/below")).unwrap();
        fs::create_dir(&elsewhere).unwrap();
        let none = None::<&str>;
        mount(
            Some(&whole.join("sub")),
            &elsewhere,
            none,
            MsFlags::MS_BIND,
            none,
        )
        .unwrap();
        let table = MountTable::read();
        let place = |path: &Path| table.as_ref().unwrap().place(path).unwrap();
        let (whole, below) = (place(&whole), place(&elsewhere.join("below")));
        umount2(&elsewhere, MntFlags::MNT_DETACH).unwrap();
        assert_eq!(below.strip_prefix(whole).unwrap(), Path::new("sub/below"));
    }

    #[test]
    fn escapes_of_the_table_are_undone() {
        assert_eq!(unescape(br"/a\040b\134c\x"), Path::new(r"/a b\c\x"));
    }
}
