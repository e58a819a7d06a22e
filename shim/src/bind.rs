//! Bind mounts that are whole before anybody sees them: cloned, given their flags, then put in place (mount_setattr(2), Linux 5.12).
//!
//! Mounted the old way, a clone is a peer of its source until it is told otherwise: what happens below one happens below
//! the other, so that unmounting a pod's volume would unmount the host's own mounts.
//!
//! Every clone is `nosuid` and `nodev`: what a guest has written gives nobody on the host other rights. The guest loses nothing by
//! it, since its own kernel runs its programs and opens its devices, and virtiofsd only reads and writes.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use caisson_oci::volume::ReadOnly;
use rustix::{
    fs::{fstat, FileType, CWD},
    mount::{move_mount, open_tree, MoveMountFlags, OpenTreeFlags},
};

/// Takes their power from set-uid programs and device nodes among a guest's files.
pub const INERT: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

/// How a clone differs from its source.
#[derive(Debug, Clone, Copy)]
pub struct Bind<'a> {
    /// With the mounts below it.
    pub recursive: bool,
    /// What is read-only.
    pub read_only: ReadOnly,
    /// Mounts that come below the source later come here, too; never the other way.
    pub follows: bool,
    /// A user namespace: what belongs to an id of it belongs in the clone to that for which it stands. Of the mount itself, not
    /// of those below it (runc's `idmap`).
    pub ids: Option<BorrowedFd<'a>>,
}

/// A mount of one directory, as it is.
pub const PLAIN: Bind<'static> = Bind {
    recursive: false,
    read_only: ReadOnly::No,
    follows: false,
    ids: None,
};

/// A clone of a mount, or of a part of one, that is at no place yet.
#[derive(Debug)]
pub struct Detached(OwnedFd);

impl Detached {
    /// Clones what is at `source`, a directory or file.
    pub fn clone_of(source: &Path, how: Bind<'_>) -> io::Result<Self> {
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        flags.set(OpenTreeFlags::AT_RECURSIVE, how.recursive);
        let tree = open_tree(CWD, source, flags)?;
        let propagation = if how.follows {
            libc::MS_SLAVE
        } else {
            libc::MS_PRIVATE
        };
        set(&tree, true, INERT, propagation)?;
        if let Some(ids) = how.ids {
            let change = libc::mount_attr {
                attr_set: libc::MOUNT_ATTR_IDMAP,
                attr_clr: 0,
                propagation: 0,
                userns_fd: ids.as_raw_fd() as u64,
            };
            set_attributes(&tree, false, &change)?;
        }
        match how.read_only {
            ReadOnly::No => {}
            ReadOnly::Top => set(&tree, false, libc::MOUNT_ATTR_RDONLY, 0)?,
            ReadOnly::Recursive => set(&tree, true, libc::MOUNT_ATTR_RDONLY, 0)?,
        }
        Ok(Self(tree))
    }

    /// Whether it is a directory. Anything else can be mounted over a file alone.
    pub fn is_dir(&self) -> io::Result<bool> {
        let mode = fstat(&self.0)?.st_mode;
        Ok(FileType::from_raw_mode(mode) == FileType::Directory)
    }

    /// Puts it over `place`, which is of the same kind, and over what is mounted there.
    pub fn mount(self, place: impl AsFd) -> io::Result<()> {
        let flags =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        Ok(move_mount(&self.0, "", place, "", flags)?)
    }
}

/// Changes the mount whose root is open: its attributes and, where it is not 0, its propagation.
pub fn set(
    root: &impl AsFd,
    recursive: bool,
    attributes: u64,
    propagation: libc::c_ulong,
) -> io::Result<()> {
    let change = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation,
        userns_fd: 0,
    };
    set_attributes(root, recursive, &change)
}

fn set_attributes(root: &impl AsFd, recursive: bool, change: &libc::mount_attr) -> io::Result<()> {
    let recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: an open descriptor, a path and a struct that live through the call, and the struct's size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            root.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            change,
            size_of::<libc::mount_attr>(),
        )
    };
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
