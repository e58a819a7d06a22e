//! Makes bind mounts that are complete before anybody sees them: a mount is cloned, given its flags
//! and then put in place (mount_setattr(2), Linux 5.12).
//!
//! With mount(2), a clone is a peer of its source until it is told otherwise. What is mounted or
//! unmounted below one is mounted or unmounted below the other, so unmounting a pod's volume would
//! unmount the host's own mounts.
//!
//! Every clone is `nosuid` and `nodev`, so files that a guest has written give nobody on the host
//! additional rights. The guest loses nothing: its own kernel runs its programs and opens its
//! devices, and virtiofsd only reads and writes.

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

/// Makes set-uid programs and device nodes among a guest's files powerless on the host.
pub const INERT: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

/// How a clone differs from its source.
#[derive(Debug, Clone, Copy)]
pub struct Bind<'a> {
    /// Whether the mounts below the source are cloned too.
    pub recursive: bool,
    /// Which part of the clone is read-only.
    pub read_only: ReadOnly,
    /// Whether mounts that later appear below the source also appear in the clone. Mounts never
    /// propagate the other way.
    pub follows: bool,
    /// A user namespace that maps the owners of the files: in the clone, a file that is owned by an
    /// id of the namespace is owned by the host's id that this one maps to. Applies to the mount
    /// itself, not to the mounts below it (runc's `idmap`).
    pub ids: Option<BorrowedFd<'a>>,
}

/// An unchanged clone of one mount, without the mounts below it.
pub const PLAIN: Bind<'static> = Bind {
    recursive: false,
    read_only: ReadOnly::No,
    follows: false,
    ids: None,
};

/// A clone of a mount, or of a part of one, that is not attached anywhere yet.
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

    /// Whether the clone is a directory. Anything else can only be mounted over a file.
    pub fn is_dir(&self) -> io::Result<bool> {
        let mode = fstat(&self.0)?.st_mode;
        Ok(FileType::from_raw_mode(mode) == FileType::Directory)
    }

    /// Mounts the clone over `place`, which must be of the same kind, and over whatever is mounted
    /// there.
    pub fn mount(self, place: impl AsFd) -> io::Result<()> {
        let flags =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        Ok(move_mount(&self.0, "", place, "", flags)?)
    }
}

/// Changes the attributes of the mount whose root is open and, if `propagation` is not 0, its
/// propagation.
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
    // SAFETY: an open descriptor, a path and a struct that live through the call, and the struct's
    // size.
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
