//! Homes: directories of the node that outlive a container, at `<store_dir>/homes/<namespace>/<name>`.

use std::{
    fs,
    io::{self, Read},
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
};

use caisson_oci::{
    annotations::is_plain_name,
    spec::{Process, Spec},
};
use nix::unistd::{chown, Gid, Uid};

use crate::error::{Error, Result};

/// The most of a container's `/etc/passwd` that is read, in bytes.
const MAX_PASSWD: u64 = 1 << 20;

/// The directory of a home, made for its first user.
pub fn directory(
    store_dir: &Path,
    namespace: &str,
    name: &str,
    process: &Process,
) -> Result<PathBuf> {
    if !is_plain_name(namespace) {
        return Err(Error::Home(format!(
            "namespace {namespace:?} can't name a folder"
        )));
    }
    let folder = store_dir.join("homes").join(namespace);
    fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
    let path = folder.join(name);
    match fs::create_dir(&path) {
        Ok(()) => {
            let user = process.user();
            let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
            chown(&path, Some(uid), Some(gid))
                .map_err(io::Error::from)
                .map_err(Error::file("set the owner of", &path))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700))
                .map_err(Error::file("set the mode of", &path))?;
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(Error::file("create", path)(error)),
    }
    Ok(path)
}

/// Where a container's user has its home: `HOME` of the process, else by the image's `/etc/passwd`.
pub fn mount_point(spec: &Spec, rootfs: &Path) -> Result<PathBuf> {
    let process = spec
        .process()
        .as_ref()
        .ok_or(caisson_oci::Error::Missing("process"))?;
    let env = process.env().as_deref().unwrap_or_default();
    let from_env = env.iter().find_map(|entry| entry.strip_prefix("HOME="));
    let uid = process.user().uid();
    let home = match from_env {
        Some(home) => home.to_owned(),
        None => home_in_passwd(rootfs, uid)?.ok_or_else(|| {
            Error::Home(format!(
                "the home of user {uid} is not known: set HOME or add the user to the image's /etc/passwd"
            ))
        })?,
    };
    let path = PathBuf::from(&home);
    let plain = path.components().all(|c| {
        matches!(
            c,
            std::path::Component::RootDir | std::path::Component::Normal(_)
        )
    });
    if !path.is_absolute() || !plain || path == Path::new("/") {
        return Err(Error::Home(format!(
            "the home of user {uid} is {home:?}; it must be an absolute path other than /"
        )));
    }
    Ok(path)
}

fn home_in_passwd(rootfs: &Path, uid: u32) -> Result<Option<String>> {
    let passwd = match open_in_root(rootfs, c"etc/passwd") {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::file("read the image's", "/etc/passwd")(error)),
    };
    let mut text = Vec::new();
    passwd
        .take(MAX_PASSWD)
        .read_to_end(&mut text)
        .map_err(Error::file("read the image's", "/etc/passwd"))?;
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
