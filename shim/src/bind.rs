//! Bind mounts that are whole before anybody sees them: cloned, given their flags, then put in place (mount_setattr(2), Linux 5.12).
//!
//! Mounted the old way, a clone is a peer of its source until it is told otherwise: what happens below one happens below
//! the other, so that unmounting a pod's volume would unmount the host's own mounts.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use caisson_oci::volume::ReadOnly;

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

/// Puts a clone of `source`, a directory or file, over `target`, which is of the same kind.
pub fn bind(source: &Path, target: &Path, how: Bind<'_>) -> io::Result<()> {
    let (source, target) = (c_path(source)?, c_path(target)?);
    let recursive = if how.recursive {
        libc::AT_RECURSIVE as libc::c_uint
    } else {
        0
    };
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | recursive;
    // SAFETY: a path that lives through the call, and flags.
    let tree =
        unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, source.as_ptr(), flags) };
    let tree = check(tree)? as i32;
    // SAFETY: open_tree(2) just gave this descriptor to us alone.
    let tree = unsafe { OwnedFd::from_raw_fd(tree) };
    let propagation = if how.follows {
        libc::MS_SLAVE
    } else {
        libc::MS_PRIVATE
    };
    set(&tree, true, 0, propagation)?;
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
    // SAFETY: an open descriptor, paths that live through the call, and flags.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    check(moved).map(drop)
}

fn set(
    tree: &OwnedFd,
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
    set_attributes(tree, recursive, &change)
}

fn set_attributes(tree: &OwnedFd, recursive: bool, change: &libc::mount_attr) -> io::Result<()> {
    let recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: an open descriptor, a path and a struct that live through the call, and the struct's size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            change,
            size_of::<libc::mount_attr>(),
        )
    };
    check(result).map(drop)
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    match result {
        0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}
