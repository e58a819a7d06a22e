//! Carries out small tasks: sets the limits of a running container and, for tests, mounts a
//! directory of the host in the fake guest.

use std::{
    ffi::CString,
    fs::File,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use libcgroups::common::{create_cgroup_manager, CgroupConfig, CgroupManager, ControllerOpt};
use nix::{
    errno::Errno,
    mount::MsFlags,
    sched::{setns, CloneFlags},
};
use oci_spec::runtime::LinuxResources;

use super::{
    error::{Error, Result},
    spec,
    task::Made,
};

/// Applies limits to a cgroup, given by its path below the mount point.
pub fn run(cgroup: &Path, resources: &Path) -> Result<Made> {
    let resources: LinuxResources = spec::read(resources, "resources")?;
    let failed = |error: &dyn std::error::Error| Error::Cgroup {
        path: cgroup.to_path_buf(),
        message: crate::error::chain(error),
    };
    let config = CgroupConfig {
        cgroup_path: cgroup.to_path_buf(),
        systemd_cgroup: false,
        container_name: String::new(),
    };
    let limits = ControllerOpt {
        resources: &resources,
        disable_oom_killer: false,
        oom_score_adj: None,
        freezer_state: None,
    };
    create_cgroup_manager(config)
        .map_err(|error| failed(&error))?
        .apply(&limits)
        .map_err(|error| failed(&error))?;
    Ok(Made::NOTHING)
}

/// Mounts `source`, as process `from` sees it in its mount namespace, at `to` in the mount
/// namespace of this process, with all that is mounted below it.
pub fn graft(from: i32, source: &Path, to: &Path, read_only: bool) -> Result<Made> {
    let open = |path: String| File::open(&path).map_err(Error::file("open", path));
    let here = open("/proc/self/ns/mnt".to_string())?;
    let there = open(format!("/proc/{from}/ns/mnt"))?;
    let name =
        |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(Error::file("name", path));
    let source_name = name(source)?;
    let to_name = name(to)?;
    setns(&there, CloneFlags::CLONE_NEWNS).map_err(Error::system("enter the host's mounts"))?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_RECURSIVE as u32;
    // SAFETY: a string that lives through the call and plain numbers.
    let tree = unsafe {
        libc::syscall(
            libc::SYS_open_tree,
            libc::AT_FDCWD,
            source_name.as_ptr(),
            flags,
        )
    };
    let tree = Errno::result(tree).map_err(Error::file("open", source))?;
    // SAFETY: open_tree(2) just returned this descriptor, and nothing else owns it.
    let tree = unsafe { OwnedFd::from_raw_fd(tree as i32) };
    setns(&here, CloneFlags::CLONE_NEWNS).map_err(Error::system("leave the host's mounts"))?;
    // SAFETY: strings that live through the call and plain numbers.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            to_name.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    Errno::result(moved).map_err(Error::file("mount at", to))?;
    // Later mounts of the host are seen here, but not the other way round.
    let flags = MsFlags::MS_SLAVE | MsFlags::MS_REC;
    nix::mount::mount(None::<&str>, to, None::<&str>, flags, None::<&str>)
        .map_err(Error::file("separate", to))?;
    if read_only {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        nix::mount::mount(None::<&str>, to, None::<&str>, flags, None::<&str>)
            .map_err(Error::file("make read-only", to))?;
    }
    Ok(Made::NOTHING)
}
