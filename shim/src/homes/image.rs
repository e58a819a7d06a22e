//! A home's file system: ext4 in a sparse file, by which it has an end. Written by the host's kernel only, on behalf of the home's virtiofs
//! daemon: a guest never has the file or its device.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::mount::{mount, MsFlags};

use super::{file, HomeError};

/// `<linux/loop.h>`, not in the crate `libc`.
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
/// Since Linux 5.8.
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
/// The device goes with its last user: a mount that is undone, by whomever, or a process that is killed before it mounts.
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Past the page cache of the file, where its file system can; what is in the home is cached once, not twice.
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

/// Makes a file system of `size` bytes in a file without a name, in `folder`: it is gone with its last user unless it is [`name`]d.
pub fn make(folder: &Path, size: u64) -> Result<File, HomeError> {
    let image = File::options()
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_TMPFILE)
        .open(folder)
        .map_err(file("make a file in", folder))?;
    image
        .set_len(size)
        .map_err(file("make a file in", folder))?;
    // No blocks are kept back for root: on the host the daemon is none, and in the guest anybody can be.
    let arguments = ["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0"];
    // In a sparse file there is nothing to be zeroed, now or by the kernel later.
    let extended = ["-E", "lazy_itable_init=0,lazy_journal_init=1"];
    tool(
        "mke2fs",
        &[&arguments[..], &extended].concat(),
        &image,
        &[0],
    )?;
    Ok(image)
}

/// Gives a file from [`make`] its name.
pub fn name(image: &File, path: &Path) -> io::Result<()> {
    let own = own_path(image);
    nix::unistd::linkat(
        nix::fcntl::AT_FDCWD,
        &own,
        nix::fcntl::AT_FDCWD,
        path,
        nix::fcntl::AtFlags::AT_SYMLINK_FOLLOW,
    )
    .map_err(Into::into)
}

/// Makes a file system that is not mounted larger. A smaller `size` changes nothing.
pub fn grow(image: &File, size: u64) -> Result<(), HomeError> {
    let path = own_path(image);
    let now = image.metadata().map_err(file("read", &path))?.len();
    if now >= size {
        return Ok(());
    }
    // 1: mended. resize2fs wants it to have been looked through.
    tool("e2fsck", &["-f", "-p"], image, &[0, 1])?;
    image.set_len(size).map_err(file("grow", &path))?;
    if let Err(error) = tool("resize2fs", &[], image, &[0]) {
        image.set_len(now).map_err(file("shrink", &path))?;
        return Err(error);
    }
    Ok(())
}

/// Mounts a file system at `target`.
///
/// Its device has the very description of `image` (open(2)), and with it the lock (flock(2)): it is held until the mount is undone, whoever lives.
pub fn mount_at(image: &File, target: &Path, read_only: bool) -> Result<(), HomeError> {
    let (device, path) = attach(image)?;
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    flags.set(MsFlags::MS_RDONLY, read_only);
    // What is removed in the home goes back to the host; damage stops it instead of the host.
    let options = Some("discard,errors=remount-ro");
    mount(Some(&path), target, Some("ext4"), flags, options)
        .map_err(io::Error::from)
        .map_err(file("mount", target))?;
    drop(device);
    Ok(())
}

/// Makes a block device of a file. Returns it opened; without a user it is gone.
fn attach(image: &File) -> Result<(File, PathBuf), HomeError> {
    let control_path = Path::new("/dev/loop-control");
    let both = || File::options().read(true).write(true).clone();
    let control = both()
        .open(control_path)
        .map_err(file("open", control_path))?;
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
    // Others look for free ones too.
    for _ in 0..100 {
        // SAFETY: the request takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        let number = check(number).map_err(file("ask for a loop device by", control_path))?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = both().open(&path).map_err(file("open", &path))?;
        // SAFETY: a structure that the kernel reads, and descriptors that live through the call.
        let configured =
            unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw mut config) };
        match check(configured) {
            Ok(_) => return Ok((device, path)),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(file("make a loop device of a home by", &path)(error)),
        }
    }
    Err(file("find a free loop device by", control_path)(
        io::ErrorKind::ResourceBusy.into(),
    ))
}

/// Runs one of ext4's programs on an image.
fn tool(program: &str, arguments: &[&str], image: &File, good: &[i32]) -> Result<(), HomeError> {
    let failed = |reason: String| HomeError::Tool {
        program: program.to_owned(),
        reason,
    };
    let output = Command::new(program)
        .args(arguments)
        .arg(own_path(image))
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(format!("{error}; is e2fsprogs installed?")))?;
    match output.status.code() {
        Some(code) if good.contains(&code) => Ok(()),
        _ => Err(failed(format!(
            "{}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        ))),
    }
}

/// The file, by a path that other processes understand too.
fn own_path(image: &File) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), image.as_raw_fd()).into()
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    match result {
        0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
