//! Finds the path at which a home belongs in a container.

use std::{
    fs,
    io::{self, Read},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use caisson_oci::{home::is_mount_point, spec::Process};

use nix::fcntl::{openat2, OFlag, OpenHow, ResolveFlag};

use super::error::HomeError;
use crate::host::error::OnFile;

/// The number of bytes of a container's `/etc/passwd` that are read at most.
const MAX_PASSWD: u64 = 1 << 20;

/// Finds the home directory of a container's user: `HOME` of the process, else the entry in the
/// image's `/etc/passwd`.
///
/// The root file system belongs to the guest and may be on a file system that does not answer, so
/// it is read on a thread of its own.
pub async fn of_user(process: &Process, rootfs: &Path) -> Result<PathBuf, HomeError> {
    let env = process.env().as_deref().unwrap_or_default();
    let from_env = env.iter().find_map(|entry| entry.strip_prefix("HOME="));
    let uid = process.user().uid();
    let home = match from_env {
        Some(home) => home.to_owned(),
        None => {
            let rootfs = rootfs.to_owned();
            let read = tokio::task::spawn_blocking(move || home_in_passwd(&rootfs, uid)).await;
            let failed = HomeError::file("read the image's", Path::new("/etc/passwd"));
            read.map_err(|error| failed(io::Error::other(error)))??
                .ok_or(HomeError::NoHome(uid))?
        }
    };
    match is_mount_point(Path::new(&home)) {
        true => Ok(home.into()),
        false => Err(HomeError::Place { uid, home }),
    }
}

fn home_in_passwd(rootfs: &Path, uid: u32) -> Result<Option<String>, HomeError> {
    let passwd = match open_in_root(rootfs, "etc/passwd") {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(HomeError::file(
                "read the image's",
                Path::new("/etc/passwd"),
            )(error))
        }
    };
    let mut text = Vec::new();
    passwd
        .take(MAX_PASSWD)
        .read_to_end(&mut text)
        .map_err(HomeError::file(
            "read the image's",
            Path::new("/etc/passwd"),
        ))?;
    let text = String::from_utf8_lossy(&text);
    // passwd(5): name:password:uid:gid:gecos:directory:shell
    let home = text.lines().find_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        let of_user = fields.get(2)?.parse() == Ok(uid);
        of_user.then(|| fields.get(5).map(|home| (*home).to_owned()))?
    });
    Ok(home.filter(|home| !home.is_empty()))
}

/// Opens a regular file below `root` for reading.
///
/// A symlink in the image can't lead outside: it is resolved as in a chroot (openat2(2),
/// `RESOLVE_IN_ROOT`). Anything but a regular file is not even opened, since opening a device can
/// have effects.
fn open_in_root(root: &Path, path: &str) -> io::Result<fs::File> {
    let root = fs::File::open(root)?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let found = fs::File::from(openat2(&root, path, how)?);
    match found.metadata()?.is_file() {
        true => fs::File::open(format!("/proc/self/fd/{}", found.as_raw_fd())),
        false => Err(io::ErrorKind::InvalidInput.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::error::FileError;
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

    #[test]
    fn passwd_that_is_a_device_is_not_opened() {
        let root = rootfs("");
        let path = root.path().join("etc/passwd");
        fs::remove_file(&path).unwrap();
        // A device without a driver: opening it would fail with ENXIO.
        let (kind, mode) = (
            nix::sys::stat::SFlag::S_IFCHR,
            nix::sys::stat::Mode::S_IRUSR,
        );
        nix::sys::stat::mknod(&path, kind, mode, nix::sys::stat::makedev(254, 254)).unwrap();
        let error = home_in_passwd(root.path(), 0).unwrap_err();
        let HomeError::File(FileError { source, .. }) = error else {
            panic!("{error}");
        };
        assert_eq!(source.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn passwd_beneath_a_folder_that_is_a_symlink_is_the_images_own() {
        let root = rootfs("");
        fs::rename(root.path().join("etc"), root.path().join("real")).unwrap();
        symlink("/../../../real", root.path().join("etc")).unwrap();
        let line = "app:x:7:7::/home/app:/bin/sh\n";
        fs::write(root.path().join("real/passwd"), line).unwrap();
        let home = home_in_passwd(root.path(), 7).unwrap();
        assert_eq!(home.as_deref(), Some("/home/app"));
    }
}
