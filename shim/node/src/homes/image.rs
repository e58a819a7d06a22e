//! Makes, grows and mounts the file system of a home: ext4 in a sparse file, which limits its size.
//! Only the host's kernel writes to it, on behalf of the home's virtiofs daemon. A guest never gets
//! the file or its device.
//!
//! What a guest does to its files still decides what is in the tables of the file system. The ext4
//! programs, which read those tables, run confined. But the host's own driver reads them too. A
//! guest that finds an error in the driver by file operations alone attacks the host's kernel, and
//! so does somebody who puts an image of their own into the store. That risk stays as long as homes
//! are mounted on the host.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use caisson_vmm::{
    confined::{self, End, Program},
    Credentials,
};
use nix::{
    fcntl::{renameat2, RenameFlags, AT_FDCWD},
    mount::{mount, MsFlags},
};

use super::error::HomeError;
use crate::host::{error::OnFile, program};

/// From `<linux/loop.h>`; the crate `libc` does not have it.
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
/// Since Linux 5.8.
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
/// The device goes with its last user: when a mount is undone, by anyone, or when a process is
/// killed before it mounts.
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Bypasses the page cache of the image file, where its file system allows that, so that the data
/// of the home is cached once, not twice.
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// `struct loop_config` with its `struct loop_info64`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    names_and_key: [u8; 160],
    init: [u64; 2],
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopConfig>() == 304);

/// The node's settings for mke2fs.
const MKE2FS_CONF: &str = "/etc/mke2fs.conf";

/// How the ext4 programs run: on behalf of a pod, within its cgroup.
#[derive(Debug)]
pub struct Tools {
    /// The user that they run as: the pod's user.
    pub credentials: Credentials,
    /// The `cgroup.procs` files through which a process joins the pod's cgroup.
    pub cgroup: Vec<File>,
    /// The time limit of each run.
    pub limit: Duration,
    /// A directory over which their root is mounted, invisible to other processes.
    pub mount_point: PathBuf,
}

/// Makes a file system of `size` bytes in a new file at `path`, and replaces what a dead shim left
/// there.
pub fn make(path: &Path, size: u64, tools: &Tools) -> Result<File, HomeError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        removed => removed.map_err(HomeError::file("remove", path))?,
    }
    let mut options = File::options();
    options.read(true).write(true).create_new(true).mode(0o600);
    let image = options
        .open(path)
        .map_err(HomeError::file("create", path))?;
    image
        .set_len(size)
        .map_err(HomeError::file("create", path))?;
    // Reserves no blocks for root: on the host the daemon is not root, and in the guest anybody can
    // be.
    let arguments = ["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0"];
    // A sparse file needs no zeroing, neither now nor later by the kernel.
    let extended = ["-E", "lazy_itable_init=0,lazy_journal_init=1"];
    let arguments = [&arguments[..], &extended].concat();
    tools.run("mke2fs", &arguments, &image, &[0])?;
    Ok(image)
}

/// Renames a file from [`make`] to its final name, unless that name is taken.
pub fn name(made: &Path, path: &Path) -> io::Result<()> {
    let (here, unless_there) = (AT_FDCWD, RenameFlags::RENAME_NOREPLACE);
    renameat2(here, made, here, path, unless_there).map_err(Into::into)
}

/// Enlarges a file system that is not mounted. A smaller `size` changes nothing.
pub fn grow(image: &File, size: u64, tools: &Tools) -> Result<(), HomeError> {
    let path = own_path(image);
    let now = image
        .metadata()
        .map_err(HomeError::file("read", &path))?
        .len();
    if now >= size {
        return Ok(());
    }
    // Exit code 1 means that errors were repaired. resize2fs requires a check first.
    tools.run("e2fsck", &["-f", "-p"], image, &[0, 1])?;
    image
        .set_len(size)
        .map_err(HomeError::file("grow", &path))?;
    if let Err(error) = tools.run("resize2fs", &[], image, &[0]) {
        image
            .set_len(now)
            .map_err(HomeError::file("shrink", &path))?;
        return Err(error);
    }
    Ok(())
}

/// Mounts a file system at `target`.
///
/// The loop device shares the open file description of `image` (open(2)), and with it the lock
/// (flock(2)). So the lock is held until the mount is undone, whichever processes live on.
pub fn mount_at(image: &File, target: &Path, read_only: bool) -> Result<(), HomeError> {
    let (device, path) = attach(image)?;
    // The guest loses nothing by these flags: it gets its files through virtiofs, and its own
    // kernel decides what they mean.
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    flags.set(MsFlags::MS_RDONLY, read_only);
    // `discard` returns the space of removed files to the host. On damage the home becomes
    // read-only, and the host goes on.
    let options = Some("discard,errors=remount-ro");
    mount(Some(&path), target, Some("ext4"), flags, options)
        .map_err(io::Error::from)
        .map_err(HomeError::file("mount", target))?;
    drop(device);
    Ok(())
}

/// Makes a block device of a file and returns it opened. The device goes when nobody uses it any
/// more.
fn attach(image: &File) -> Result<(File, PathBuf), HomeError> {
    let control_path = Path::new("/dev/loop-control");
    let both = || File::options().read(true).write(true).clone();
    let control = both()
        .open(control_path)
        .map_err(HomeError::file("open", control_path))?;
    let mut config = LoopConfig {
        fd: image.as_raw_fd() as u32,
        block_size: 0,
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO,
        names_and_key: [0; 160],
        init: [0; 2],
        reserved: [0; 8],
    };
    // Other processes look for free devices too.
    for _ in 0..100 {
        // SAFETY: the request takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        let number =
            check(number).map_err(HomeError::file("ask for a loop device by", control_path))?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = both().open(&path).map_err(HomeError::file("open", &path))?;
        // SAFETY: the kernel reads a structure and descriptors, which all live through the call.
        let configured =
            unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw mut config) };
        match check(configured) {
            Ok(_) => return Ok((device, path)),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => {
                return Err(HomeError::file("make a loop device of a home by", &path)(
                    error,
                ))
            }
        }
    }
    Err(HomeError::file("find a free loop device by", control_path)(
        io::ErrorKind::ResourceBusy.into(),
    ))
}

impl Tools {
    /// Runs one of the ext4 programs on an image.
    fn run(
        &self,
        program: &str,
        arguments: &[&str],
        image: &File,
        good: &[i32],
    ) -> Result<(), HomeError> {
        let failed = |reason: String| HomeError::Tool {
            program: program.to_owned(),
            reason,
        };
        let path = program::find(program)
            .ok_or_else(|| failed("not found; is e2fsprogs installed?".into()))?;
        let arguments: Vec<_> = arguments.iter().copied().chain([confined::FILE]).collect();
        let confined = Program {
            path: &path,
            arguments: &arguments,
            file: image,
            readable: &[Path::new(MKE2FS_CONF)],
            credentials: self.credentials,
            cgroup: &self.cgroup,
            limit: self.limit,
            mount_point: &self.mount_point,
        };
        let ended = confined::run(&confined);
        let (end, text) =
            ended.map_err(|error| failed(format!("can't be run confined: {error}")))?;
        let how = match end {
            End::Code(code) if good.contains(&code) => return Ok(()),
            End::Code(code) => format!("exit status {code}"),
            End::Signal(signal) => format!("ended by signal {signal}"),
            End::TimedOut => {
                let secs = self.limit.as_secs();
                let limit =
                    format!("{secs} s (tool_timeout_secs of [homes] in Caisson's configuration)");
                return Err(failed(format!(
                    "was killed since it took longer than {limit}"
                )));
            }
        };
        Err(failed(match text.as_str() {
            "" => how,
            text => format!("{how}: {text}"),
        }))
    }
}

/// A path of the file that other processes can open too.
fn own_path(image: &File) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), image.as_raw_fd()).into()
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    match result {
        0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
