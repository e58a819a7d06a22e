//! Where a home is in a container.

use std::{
    fs,
    io::{self, Read},
    os::fd::{FromRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use caisson_oci::{home::is_mount_point, spec::Process};

use super::{file, HomeError};

/// The most of a container's `/etc/passwd` that is read, in bytes.
const MAX_PASSWD: u64 = 1 << 20;

/// Where a container's user has its home: `HOME` of the process, else by the image's `/etc/passwd`.
pub fn of_user(process: &Process, rootfs: &Path) -> Result<PathBuf, HomeError> {
    let env = process.env().as_deref().unwrap_or_default();
    let from_env = env.iter().find_map(|entry| entry.strip_prefix("HOME="));
    let uid = process.user().uid();
    let home = match from_env {
        Some(home) => home.to_owned(),
        None => home_in_passwd(rootfs, uid)?.ok_or(HomeError::NoHome(uid))?,
    };
    match is_mount_point(Path::new(&home)) {
        true => Ok(home.into()),
        false => Err(HomeError::Place { uid, home }),
    }
}

fn home_in_passwd(rootfs: &Path, uid: u32) -> Result<Option<String>, HomeError> {
    let passwd = match open_in_root(rootfs, c"etc/passwd") {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(file("read the image's", Path::new("/etc/passwd"))(error)),
    };
    let mut text = Vec::new();
    passwd
        .take(MAX_PASSWD)
        .read_to_end(&mut text)
        .map_err(file("read the image's", Path::new("/etc/passwd")))?;
    let text = String::from_utf8_lossy(&text);
    // passwd(5): name:password:uid:gid:gecos:directory:shell
    let home = text.lines().find_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        let of_user = fields.get(2)?.parse() == Ok(uid);
        of_user.then(|| fields.get(5).map(|home| (*home).to_owned()))?
    });
    Ok(home.filter(|home| !home.is_empty()))
}

/// Opens a regular file below `root` for reading. A symlink in the image can't lead out: it is resolved as in a chroot (openat2(2),
/// `RESOLVE_IN_ROOT`).
fn open_in_root(root: &Path, path: &std::ffi::CStr) -> io::Result<fs::File> {
    use std::os::fd::AsRawFd;
    let root = fs::File::open(root)?;
    // SAFETY: the structure is plain integers; all zero is valid.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY) as u64;
    how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
    // SAFETY: path and structure live through the call; the size is the structure's.
    let opened = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            path.as_ptr(),
            &how,
            std::mem::size_of::<libc::open_how>(),
        )
    };
    if opened < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    let file = fs::File::from(unsafe { OwnedFd::from_raw_fd(opened as i32) });
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::ErrorKind::InvalidInput.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn rootfs(passwd: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/passwd"), passwd).unwrap();
        root
    }

    #[test]
    fn home_is_read_from_the_images_passwd() {
        let root = rootfs("root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n");
        let home = home_in_passwd(root.path(), 1000).unwrap();
        assert_eq!(home.as_deref(), Some("/home/app"));
        assert_eq!(home_in_passwd(root.path(), 7).unwrap(), None);
    }

    #[test]
    fn passwd_that_is_a_symlink_does_not_reach_the_hosts() {
        let root = rootfs("");
        fs::remove_file(root.path().join("etc/passwd")).unwrap();
        symlink("/../../etc/passwd", root.path().join("etc/passwd")).unwrap();
        // In the image's own root the link leads to itself.
        assert!(home_in_passwd(root.path(), 0).is_err());
    }

    #[test]
    fn passwd_that_is_a_fifo_does_not_block() {
        let root = rootfs("");
        let path = root.path().join("etc/passwd");
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(home_in_passwd(root.path(), 0).is_err());
    }
}
