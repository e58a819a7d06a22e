//! Confines the VMM and the vsock daemon: between fork and exec, a child gives up everything that
//! it does not need. [`super::spawn`] uses this, after it has put the child into its cgroup and a
//! pid namespace of its own.
//!
//! ```text
//!   new mount, network, IPC and UTS namespaces
//!   -> an empty read-only tmpfs as root, with the entries of Jail::root, and no /proc
//!   -> no capability, no group, the VM's own uid and gid, no new privileges
//!   -> the seccomp filter
//! ```
//!
//! Everything up to [`Jail::enter`] runs in the parent and may allocate. `enter` runs in the forked
//! child of a process with threads, so it only makes system calls on prepared data.

use std::{
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
};

use seccompiler::BpfProgram;

use crate::Credentials;

/// The step that failed in the child, for [`crate::Error::Start`].
pub(crate) type Step = (&'static str, io::Error);

/// A confinement, prepared by the parent.
#[derive(Debug)]
pub(crate) struct Jail {
    /// An existing directory over which the new root is mounted (in the new mount namespace only).
    mount_point: CString,
    root: Vec<Entry>,
    credentials: Credentials,
    seccomp: Option<BpfProgram>,
    cwd: CString,
}

/// An entry of the new root. Paths are relative to it; parents come first.
#[derive(Debug)]
enum Entry {
    Dir(CString),
    Link {
        target: CString,
        at: CString,
    },
    /// A file or directory of the host, with what is mounted below it.
    Bind {
        source: CString,
        at: CString,
        read_only: bool,
        is_dir: bool,
    },
    /// A file whose mount is not attached yet (open_tree(2)), writable.
    File {
        tree: OwnedFd,
        at: CString,
    },
    /// A device node that belongs to the VM's user: the host's node belongs to root and a group.
    Device {
        at: CString,
        number: libc::dev_t,
    },
}

impl Jail {
    /// Prepares a root with the host's `/usr` and the device nodes that every program needs.
    pub(crate) fn new(mount_point: &Path, credentials: Credentials) -> io::Result<Jail> {
        let mut jail = Jail {
            mount_point: c_string(mount_point)?,
            root: Vec::new(),
            credentials,
            seccomp: None,
            cwd: c"/".to_owned(),
        };
        jail.bind(Path::new("/usr"), Path::new("usr"))?;
        for name in ["lib", "lib64", "bin"] {
            let host = Path::new("/").join(name);
            match std::fs::read_link(&host) {
                Ok(target) => jail.root.push(Entry::Link {
                    target: c_string(&target)?,
                    at: CString::new(name)?,
                }),
                Err(_) if host.is_dir() => jail.bind(&host, Path::new(name))?,
                Err(_) => {}
            }
        }
        jail.root.push(Entry::Dir(c"etc".to_owned()));
        let linker_cache = Path::new("/etc/ld.so.cache");
        if linker_cache.exists() {
            jail.bind(linker_cache, Path::new("etc/ld.so.cache"))?;
        }
        jail.root.push(Entry::Dir(c"dev".to_owned()));
        for name in ["null", "urandom"] {
            jail.bind(&Path::new("/dev").join(name), &Path::new("dev").join(name))?;
        }
        Ok(jail)
    }

    /// Adds a file or directory of the host, read-only. `at` is relative to the new root.
    pub(crate) fn bind(&mut self, source: &Path, at: &Path) -> io::Result<()> {
        self.add_bind(source, at, true)
    }

    /// Adds a writable directory of the host and makes it the working directory.
    pub(crate) fn work_in(&mut self, source: &Path, at: &Path) -> io::Result<()> {
        self.add_bind(source, at, false)?;
        self.cwd = c_string(&Path::new("/").join(at))?;
        Ok(())
    }

    fn add_bind(&mut self, source: &Path, at: &Path, read_only: bool) -> io::Result<()> {
        self.root.push(Entry::Bind {
            source: c_string(source)?,
            at: c_string(at)?,
            read_only,
            is_dir: source.metadata()?.is_dir(),
        });
        Ok(())
    }

    /// Adds a detached mount of a writable file. The first process that enters uses it up.
    pub(crate) fn file(&mut self, tree: OwnedFd, at: &str) -> io::Result<()> {
        let at = CString::new(at.trim_start_matches('/'))?;
        self.root.push(Entry::File { tree, at });
        Ok(())
    }

    /// Adds a directory.
    pub(crate) fn dir(&mut self, at: &'static CStr) {
        self.root.push(Entry::Dir(at.to_owned()));
    }

    /// Adds the host's device node at the same path, for the VM's user.
    pub(crate) fn device(&mut self, path: &Path) -> io::Result<()> {
        let number = path.metadata()?.rdev();
        let at = path.strip_prefix("/").map_or(PathBuf::new(), PathBuf::from);
        self.root.push(Entry::Device {
            at: c_string(&at)?,
            number,
        });
        Ok(())
    }

    /// Makes a program visible that may be outside `/usr`. Returns the path to run inside.
    pub(crate) fn program(&mut self, path: &Path) -> io::Result<PathBuf> {
        let real = path.canonicalize()?;
        if real.starts_with("/usr") {
            return Ok(real);
        }
        let name = real.file_name().unwrap_or_default();
        self.root.push(Entry::Dir(c"program".to_owned()));
        self.bind(&real, &Path::new("program").join(name))?;
        Ok(Path::new("/program").join(name))
    }

    /// Installs a seccomp filter as the last step. It must allow what is left to do: `prctl`,
    /// `poll`, `execve`, `write`, `exit`.
    pub(crate) fn seccomp(&mut self, filter: BpfProgram) {
        self.seccomp = Some(filter);
    }

    /// Confines the calling process. Only for a child between fork and exec, with one thread.
    ///
    /// A failure leaves the process half confined, so it must exit.
    pub(crate) fn enter(&self) -> Result<(), Step> {
        let namespaces =
            libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        // SAFETY: unshare takes no pointer.
        check("unshare", unsafe { libc::unshare(namespaces) })?;
        self.change_root()?;
        self.drop_privileges()
    }

    fn change_root(&self) -> Result<(), Step> {
        mount(c"none", c"/", c"", libc::MS_REC | libc::MS_PRIVATE)?;
        // Every source is looked up before the new root covers anything of the old one.
        const MAX_BINDS: usize = 32;
        let mut trees = [-1; MAX_BINDS];
        for (tree, entry) in trees.iter_mut().zip(&self.root) {
            match entry {
                Entry::Bind { source, .. } => *tree = open_tree(source)?,
                Entry::File { tree: given, .. } => *tree = given.as_raw_fd(),
                _ => {}
            }
        }
        if self.root.len() > MAX_BINDS {
            return Err((
                "count the root's entries",
                io::ErrorKind::InvalidInput.into(),
            ));
        }
        let flags = libc::MS_NOSUID | libc::MS_NOEXEC;
        mount(c"tmpfs", &self.mount_point, c"mode=755,size=64k", flags)?;
        // SAFETY: a NUL-terminated path.
        check("chdir to the new root", unsafe {
            libc::chdir(self.mount_point.as_ptr())
        })?;
        for (&tree, entry) in trees.iter().zip(&self.root) {
            self.make(entry, tree)?;
        }
        // SAFETY: NUL-terminated paths. With "." twice the old root lands on top of the new one
        // (pivot_root(2)).
        check("pivot_root", unsafe {
            libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) as libc::c_int
        })?;
        // SAFETY: a NUL-terminated path.
        check("unmount the old root", unsafe {
            libc::umount2(c".".as_ptr(), libc::MNT_DETACH)
        })?;
        set_read_only("make the root read-only", libc::AT_FDCWD, c"/", 0)?;
        // SAFETY: a NUL-terminated path.
        check("chdir", unsafe { libc::chdir(self.cwd.as_ptr()) })
    }

    fn make(&self, entry: &Entry, tree: RawFd) -> Result<(), Step> {
        match entry {
            // SAFETY: a NUL-terminated path.
            Entry::Dir(at) => check("mkdir", unsafe { libc::mkdir(at.as_ptr(), 0o755) }),
            // SAFETY: NUL-terminated paths.
            Entry::Link { target, at } => check("symlink", unsafe {
                libc::symlink(target.as_ptr(), at.as_ptr())
            }),
            Entry::Bind {
                at,
                read_only,
                is_dir,
                ..
            } => {
                let kind = if *is_dir { 0 } else { libc::S_IFREG };
                // SAFETY: NUL-terminated paths.
                check("make a mount point", unsafe {
                    match kind {
                        0 => libc::mkdir(at.as_ptr(), 0o755),
                        _ => libc::mknod(at.as_ptr(), kind | 0o644, 0),
                    }
                })?;
                if *read_only {
                    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
                    set_read_only("make a mount read-only", tree, c"", flags)?;
                }
                move_mount(tree, at)
            }
            Entry::File { at, .. } => {
                // SAFETY: a NUL-terminated path.
                check("make a mount point", unsafe {
                    libc::mknod(at.as_ptr(), libc::S_IFREG | 0o644, 0)
                })?;
                move_mount(tree, at)
            }
            // SAFETY: NUL-terminated paths.
            Entry::Device { at, number } => check("make a device node", unsafe {
                libc::mknod(at.as_ptr(), libc::S_IFCHR | 0o600, *number);
                libc::chown(at.as_ptr(), self.credentials.uid, self.credentials.gid)
            }),
        }
    }

    fn drop_privileges(&self) -> Result<(), Step> {
        for capability in 0..64 {
            // SAFETY: prctl with numbers only. EINVAL marks the end of this kernel's list.
            if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
                break;
            }
        }
        let Credentials { uid, gid } = self.credentials;
        // SAFETY: numbers and an empty list. These are raw system calls because libc's wrappers
        // signal all threads in the parent's bookkeeping, which this child does not have.
        unsafe {
            check("setgroups", libc::syscall(libc::SYS_setgroups, 0, 0) as i32)?;
            check(
                "setresgid",
                libc::syscall(libc::SYS_setresgid, gid, gid, gid) as i32,
            )?;
            check(
                "setresuid",
                libc::syscall(libc::SYS_setresuid, uid, uid, uid) as i32,
            )?;
        }
        clear_capabilities()?;
        // SAFETY: prctl with numbers only.
        check("no_new_privs", unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        })?;
        if let Some(filter) = &self.seccomp {
            if seccompiler::apply_filter(filter).is_err() {
                return Err(("seccomp", io::Error::last_os_error()));
            }
        }
        Ok(())
    }
}

/// Empties the permitted, effective and inheritable sets. The ambient set goes with them
/// (capabilities(7)).
fn clear_capabilities() -> Result<(), Step> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    let header = Header {
        version: 0x2008_0522, // _LINUX_CAPABILITY_VERSION_3
        pid: 0,
    };
    let none = [0u32; 6];
    // SAFETY: version 3 reads a header and two structs of three u32 each.
    check("capset", unsafe {
        libc::syscall(libc::SYS_capset, &header, none.as_ptr()) as libc::c_int
    })
}

fn mount(source: &CStr, target: &CStr, data: &CStr, flags: libc::c_ulong) -> Result<(), Step> {
    // SAFETY: NUL-terminated strings.
    check("mount", unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            source.as_ptr(),
            flags,
            data.as_ptr().cast(),
        )
    })
}

fn open_tree(source: &CStr) -> Result<RawFd, Step> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_RECURSIVE as u32;
    // SAFETY: a NUL-terminated path.
    let tree =
        unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, source.as_ptr(), flags) };
    check("open_tree", tree as libc::c_int)?;
    Ok(tree as RawFd)
}

fn move_mount(tree: RawFd, at: &CStr) -> Result<(), Step> {
    // SAFETY: NUL-terminated paths.
    check("move_mount", unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree,
            c"".as_ptr(),
            libc::AT_FDCWD,
            at.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        ) as libc::c_int
    })
}

fn set_read_only(step: &'static str, at: RawFd, path: &CStr, flags: i32) -> Result<(), Step> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: a NUL-terminated path and a struct of the size that is given.
    check(step, unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            at,
            path.as_ptr(),
            flags,
            &attributes,
            size_of::<libc::mount_attr>(),
        ) as libc::c_int
    })
}

/// Turns a system call's result into a step's. Allocates nothing, since an `io::Error` made from
/// errno is a number.
pub(crate) fn check(step: &'static str, result: libc::c_int) -> Result<(), Step> {
    if result < 0 {
        return Err((step, io::Error::last_os_error()));
    }
    Ok(())
}

fn c_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
