//! Accesses folders of the host by open descriptors.
//!
//! The shim creates, mounts and removes things as the host's root, beside files that others can
//! change. It therefore refers to a file or folder by a descriptor of the folder that it is in and
//! a plain path below that: openat2(2) with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS` follows no
//! link, neither out of the folder nor within it.

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        fstat, linkat, mkdirat, openat, openat2, statat, statx, unlinkat, AtFlags, Dir, FileType,
        Mode, OFlags, ResolveFlags, StatxFlags, CWD,
    },
    io::Errno,
    mount::{unmount, UnmountFlags},
};

/// The deepest nesting of folders that is removed. The shim's own are five deep.
const MAX_DEPTH: usize = 64;
/// The most mounts on top of one another at one path that are undone.
const MAX_STACKED: usize = 64;

/// An open folder.
#[derive(Debug)]
pub struct Folder(OwnedFd);

impl Folder {
    /// Opens a folder by a path that the operator controls. Follows links.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(openat(CWD, path, flags, Mode::empty())?))
    }

    /// Opens a folder below this one, or what is mounted over it.
    pub fn folder(&self, path: impl AsRef<Path>) -> io::Result<Self> {
        self.beneath(path.as_ref(), OFlags::DIRECTORY, ResolveFlags::empty())
            .map(Self)
    }

    /// Creates a folder, if there is none, and opens it. `path` is one name.
    ///
    /// Anybody who can reach the folder may enter it. On the host only root can reach it; in the
    /// guest, users without privileges reach their roots through it.
    pub fn make_folder(&self, path: impl AsRef<Path>) -> io::Result<Self> {
        match mkdirat(&self.0, path.as_ref(), Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => self.folder(path),
            Err(error) => Err(error.into()),
        }
    }

    /// Creates an empty file, if there is none, and opens it as a place to mount over. `path` is
    /// one name.
    pub fn make_file(&self, path: impl AsRef<Path>) -> io::Result<OwnedFd> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(&self.0, path.as_ref(), flags, Mode::RUSR) {
            Ok(_) | Err(Errno::EXIST) => self.place(path),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens a file below this folder to read and write it. Anything but a file is an error.
    pub fn open_file(&self, path: impl AsRef<Path>) -> io::Result<fs::File> {
        let place = self.place(path)?;
        // Opening a device or a pipe would have effects of its own.
        if !FileType::from_raw_mode(fstat(&place)?.st_mode).is_file() {
            return Err(io::Error::other("is not a file"));
        }
        let mut both = fs::File::options();
        both.read(true).write(true).open(descriptor_path(&place))
    }

    /// Creates a file of this folder for root alone that has no name yet, and is gone when it is
    /// closed.
    pub fn unnamed_file(&self) -> io::Result<fs::File> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = openat(&self.0, ".", flags, Mode::RUSR | Mode::WUSR)?;
        Ok(file.into())
    }

    /// Gives a file from [`Self::unnamed_file`] a name in this folder that is not taken.
    pub fn name_file(&self, file: &fs::File, name: &str) -> io::Result<()> {
        let path = descriptor_path(file);
        Ok(linkat(CWD, path, &self.0, name, AtFlags::SYMLINK_FOLLOW)?)
    }

    /// Opens whatever is at a path below this folder as a place to mount over, without reading it.
    pub fn place(&self, path: impl AsRef<Path>) -> io::Result<OwnedFd> {
        self.beneath(path.as_ref(), OFlags::NOFOLLOW, ResolveFlags::empty())
    }

    /// Undoes the mounts at a path below this folder, together with everything mounted below them.
    /// Succeeds if nothing is there.
    pub fn unmount(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let path = path.as_ref();
        for _ in 0..MAX_STACKED {
            let place = match self.place(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                place => place?,
            };
            if !is_mounted(&place)? {
                return Ok(());
            }
            // The link refers to the mount that was opened, whatever its path leads to by now.
            unmount(descriptor_path(&place), UnmountFlags::DETACH)?;
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    /// Removes a file or folder of this folder with everything in it, after undoing the mounts in
    /// it. If something is mounted there nevertheless, it is left alone and an error is returned.
    /// Succeeds if nothing is there. `path` is one name.
    pub fn remove(&self, path: impl AsRef<Path>) -> io::Result<()> {
        self.remove_below(path.as_ref(), MAX_DEPTH)
    }

    fn remove_below(&self, name: &Path, depth: usize) -> io::Result<()> {
        self.unmount(name)?;
        match unlinkat(&self.0, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR) => {}
            Err(error) => return Err(error.into()),
        }
        if depth == 0 {
            return Err(io::Error::other("too many folders in one another"));
        }
        let folder = Self(self.beneath(name, OFlags::DIRECTORY, ResolveFlags::NO_XDEV)?);
        for entry in folder.names()? {
            folder.remove_below(&entry, depth - 1)?;
        }
        match unlinkat(&self.0, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the names in the folder.
    pub fn names(&self) -> io::Result<Vec<PathBuf>> {
        let names = self.entries()?.map(|entry| Ok(entry?.0));
        names.collect()
    }

    /// Returns the names and kinds of what is in the folder. They are read one by one, since others
    /// may have created many.
    pub fn entries(&self) -> io::Result<impl Iterator<Item = io::Result<(PathBuf, FileType)>>> {
        use std::os::unix::ffi::OsStrExt;
        let readable = openat(
            &self.0,
            ".",
            OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let entries = Dir::new(readable)?.filter_map(|entry| match entry {
            Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => None,
            Ok(entry) => {
                let name = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes());
                Some(Ok((PathBuf::from(name), entry.file_type())))
            }
            Err(error) => Some(Err(error.into())),
        });
        Ok(entries)
    }

    /// Returns the length of a file in this folder, or of the link that is there. `path` is one
    /// name.
    pub fn length(&self, path: impl AsRef<Path>) -> io::Result<u64> {
        let status = statat(&self.0, path.as_ref(), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(status.st_size.unsigned_abs())
    }

    /// Returns a path that leads to this very folder, for interfaces that take only paths.
    pub fn path(&self) -> PathBuf {
        descriptor_path(&self.0)
    }

    fn beneath(&self, path: &Path, flags: OFlags, more: ResolveFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | more;
        Ok(openat2(&self.0, path, flags, Mode::empty(), resolve)?)
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Creates a folder and its parents for root alone. Leaves existing ones as they are.
pub fn create_private(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(path)
}

/// Creates a folder for root alone, and restricts it to root if it exists already. Its parents are
/// handled as by [`create_private`].
pub fn make_private(path: &Path) -> io::Result<()> {
    create_private(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// Returns a path that leads to an open file (proc(5), `/proc/self/fd`).
pub fn descriptor_path(open: &impl AsRawFd) -> PathBuf {
    format!("/proc/self/fd/{}", open.as_raw_fd()).into()
}

/// Whether an open file is the root of a mount (statx(2), `STATX_ATTR_MOUNT_ROOT`, Linux 5.8).
fn is_mounted(place: &OwnedFd) -> io::Result<bool> {
    let status = statx(place, "", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
    Ok(status
        .stx_attributes
        .contains(rustix::fs::StatxAttributes::MOUNT_ROOT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::mount::{mount, MsFlags};
    use std::os::unix::fs::symlink;

    fn folder() -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        (dir, folder)
    }

    fn bind(source: &Path, target: &Path) {
        let none = None::<&str>;
        mount(Some(source), target, none, MsFlags::MS_BIND, none).unwrap();
    }

    #[test]
    fn link_within_and_out_of_a_folder_is_not_followed() {
        let (dir, folder) = folder();
        folder.make_folder("real").unwrap();
        for target in ["real", "/etc", ".."] {
            let link = dir.path().join("link");
            symlink(target, &link).unwrap();
            assert!(folder.folder("link").is_err(), "{target}");
            assert!(folder.folder("link/x").is_err(), "{target}");
            assert!(folder.make_folder("link").is_err(), "{target}");
            fs::remove_file(link).unwrap();
        }
        assert!(folder.folder("..").is_err());
    }

    #[test]
    fn removing_a_folder_with_mounts_leaves_what_was_mounted() {
        let (dir, folder) = folder();
        let beside = tempfile::tempdir().unwrap();
        fs::write(beside.path().join("file"), "x").unwrap();
        let pod = dir.path().join("pod");
        fs::create_dir_all(pod.join("a/b")).unwrap();
        bind(beside.path(), &pod.join("a/b"));
        bind(beside.path(), &pod.join("a/b"));
        symlink(beside.path(), pod.join("link")).unwrap();
        folder.remove("pod").unwrap();
        folder.remove("pod").unwrap();
        assert!(!pod.exists());
        assert!(beside.path().join("file").exists());
    }

    #[test]
    fn unmounting_a_place_that_is_a_link_leaves_the_mount_that_it_leads_to() {
        let (dir, folder) = folder();
        let beside = tempfile::tempdir().unwrap();
        let mounted = dir.path().join("mounted");
        fs::create_dir(&mounted).unwrap();
        bind(beside.path(), &mounted);
        symlink(&mounted, dir.path().join("link")).unwrap();
        folder.unmount("link").unwrap();
        fs::write(beside.path().join("seen"), "x").unwrap();
        assert!(mounted.join("seen").exists());
        folder.unmount("mounted").unwrap();
        assert!(!mounted.join("seen").exists());
    }
}
