//! Shows disks, shares and files in a container that exists already, and hides them again.
//!
//! [`crate::devices`] and [`crate::containers`] have mounted them in the guest. This module mounts
//! them in the container's mount namespace.

use std::{
    fs::File,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{open, openat2, OFlag, OpenHow, ResolveFlag},
    mount::{umount2, MntFlags},
    sched::{setns, CloneFlags},
    sys::stat::{mkdirat, Mode},
};

use super::{
    error::{Error, Result},
    task::Made,
};

/// Mounts `source`, a mount of the guest, at `target` in the container with this init. What is
/// mounted there already counts as a success. No set-uid program and no device node of it takes
/// effect.
pub fn show(init: i32, source: &Path, target: &Path, read_only: bool) -> Result<Made> {
    let root = identity(source)?;
    let name = std::ffi::CString::new(source.as_os_str().as_bytes());
    let name = name.map_err(|_| Error::file("name", source)(Errno::EINVAL))?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: a string that lives through the call and plain numbers.
    let tree = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, name.as_ptr(), flags) };
    let tree = Errno::result(tree).map_err(Error::file("open", source))?;
    // SAFETY: open_tree(2) just returned this descriptor, and nothing else owns it.
    let tree = unsafe { OwnedFd::from_raw_fd(tree as i32) };
    restrict(&tree, read_only).map_err(Error::file("restrict", source))?;
    enter(init)?;
    let place = make(target).map_err(Error::file("make", target))?;
    let found = nix::sys::stat::fstat(&place).map_err(Error::file("read", target))?;
    if (found.st_dev, found.st_ino) == root {
        return Ok(Made::NOTHING);
    }
    // SAFETY: open descriptors, strings that live through the call and plain numbers.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            place.as_raw_fd(),
            c"".as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH,
        )
    };
    Errno::result(moved).map_err(Error::file("mount at", target))?;
    Ok(Made::NOTHING)
}

/// Sets the flags of a detached mount (mount_setattr(2)).
fn restrict(tree: &OwnedFd, read_only: bool) -> nix::Result<()> {
    let read_only = match read_only {
        true => libc::MOUNT_ATTR_RDONLY,
        false => 0,
    };
    let attributes = libc::mount_attr {
        attr_set: read_only | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: an open descriptor, a string and a structure that live through the call, and the
    // structure's size.
    let set = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(set).map(drop)
}

/// Unmounts what the guest has at `source` from `target` in the container with this init. Fails
/// while something on it is in use. If something else or nothing is mounted there, the container
/// itself has done that, and it counts as a success.
pub fn hide(init: i32, source: &Path, target: &Path) -> Result<Made> {
    let root = identity(source)?;
    enter(init)?;
    if identity(target).ok() != Some(root) {
        return Ok(Made::NOTHING);
    }
    match umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) => {}
        // The container has replaced the place by a link.
        Err(Errno::EINVAL) => return Ok(Made::NOTHING),
        Err(error) => return Err(Error::file("unmount", target)(error)),
    }
    // A directory that was there before and is not empty stays.
    let _ = std::fs::remove_dir(target);
    Ok(Made::NOTHING)
}

/// Makes a folder with its parents, and opens it. Links that the container has made are resolved
/// inside the container's root, and the magic links of its /proc are not followed.
///
/// `pathrs` can't be used here, since it needs a /proc that knows this process.
fn make(target: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(flags).resolve(resolve);
    let root = open("/", flags, Mode::empty())?;
    let (mut path, mut place) = (PathBuf::from("."), openat2(&root, ".", how)?);
    for part in target.components() {
        match part {
            Component::RootDir => continue,
            Component::Normal(name) => {
                match mkdirat(&place, name, Mode::from_bits_truncate(0o755)) {
                    Ok(()) | Err(Errno::EEXIST) => path.push(name),
                    Err(error) => return Err(error),
                }
            }
            _ => return Err(Errno::EINVAL),
        }
        place = openat2(&root, &path, how)?;
    }
    Ok(place)
}

/// Returns the device and inode of a file.
fn identity(path: &Path) -> Result<(u64, u64)> {
    let found = std::fs::symlink_metadata(path).map_err(Error::file("find", path))?;
    Ok((found.dev(), found.ino()))
}

/// Enters the mount namespace of a container, and with it the container's root. This process
/// becomes root of the container's users, so they own what it makes.
fn enter(init: i32) -> Result<()> {
    // Processes of the container must not see the guest's things through this process.
    nix::sys::prctl::set_dumpable(false).map_err(Error::system("become undumpable"))?;
    let open = |path: String| File::open(&path).map_err(Error::file("open", path));
    let mounts = open(format!("/proc/{init}/ns/mnt"))?;
    let users = open(format!("/proc/{init}/ns/user"))?;
    let own = open("/proc/self/ns/user".to_owned())?;
    let inode = |file: &File| file.metadata().map(|metadata| metadata.ino()).ok();
    let failed = || Error::system("enter the container's namespaces");
    if inode(&users) != inode(&own) {
        setns(&users, CloneFlags::CLONE_NEWUSER).map_err(failed())?;
        nix::unistd::setresgid(0.into(), 0.into(), 0.into()).map_err(failed())?;
        nix::unistd::setresuid(0.into(), 0.into(), 0.into()).map_err(failed())?;
    }
    setns(&mounts, CloneFlags::CLONE_NEWNS).map_err(failed())
}
