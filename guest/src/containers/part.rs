//! Mounts parts of volumes by themselves (`subPath` in Kubernetes), so that a volume is one file
//! system for all containers, whichever part of it each has.
//!
//! A container may write to the volume and swap a folder for a link while another container is
//! being made. So no link is followed below the volume's root.

use std::{
    fs,
    io::ErrorKind,
    os::fd::{AsRawFd, OwnedFd},
    path::{Component, Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use caisson_protocol::{
    agent::{Owner, Part},
    path::PARTS,
};
use nix::mount::{mount as mount_at, MsFlags};
use rustix::{
    fs::{
        chownat, mkdirat, openat, openat2, unlinkat, AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid,
        CWD,
    },
    io::Errno,
};

use crate::{id, kernel::mounts, Error, Result};

/// Two containers may ask for the same part at once.
static MOUNTING: Mutex<()> = Mutex::new(());

/// Returns where a part is mounted.
pub fn place(part: &Part) -> Result<PathBuf> {
    id::check("part.name", &part.name)?;
    Ok(Path::new(PARTS).join(&part.name))
}

/// Mounts a part, unless it is mounted already.
pub fn mount(part: &Part) -> Result<()> {
    let place = place(part)?;
    let _mounting = MOUNTING.lock().unwrap_or_else(PoisonError::into_inner);
    if mounts::is_mount_point(&place)? {
        return Ok(());
    }
    let source = Path::new(&part.whole).join(&part.path);
    let opened = open(part).map_err(Error::file("open the part of a volume", &source))?;
    let from = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
    let failed = Error::file("create the place of a part", &place);
    match fs::metadata(&from).is_ok_and(|from| from.is_dir()) {
        true => fs::create_dir_all(&place).map_err(failed)?,
        false => fs::create_dir_all(PARTS)
            .and_then(|()| fs::write(&place, ""))
            .map_err(failed)?,
    }
    let (none, bind) = (None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC);
    let bound = mount_at(Some(&from), &place, none, bind, none);
    let made = bound.and_then(|()| match part.shared {
        true => mount_at(none, &place, none, MsFlags::MS_SHARED, none),
        false => Ok(()),
    });
    made.map_err(|error| Error::Mount {
        what: source.display().to_string(),
        target: place,
        source: error.into(),
    })
}

/// Unmounts a part. Succeeds if it is not there.
pub fn remove(place: &Path) -> Result<()> {
    mounts::unmount(place)?;
    let removed = fs::remove_dir(place).or_else(|error| match error.kind() {
        ErrorKind::NotADirectory => fs::remove_file(place),
        ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    });
    removed.map_err(Error::file("remove the place of a part", place))
}

/// Opens what is at a part's path, and makes the folders that are missing.
fn open(part: &Part) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let whole = openat(
        CWD,
        part.whole.as_str(),
        flags | OFlags::DIRECTORY,
        Mode::empty(),
    )?;
    let beneath = |path: &Path, kind: OFlags| {
        let flags = flags | kind;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        openat2(&whole, path, flags, Mode::empty(), resolve)
    };
    let mut parent = PathBuf::from(".");
    for name in Path::new(&part.path).components() {
        let folder = beneath(&parent, OFlags::DIRECTORY)?;
        match part.folder.as_ref() {
            Some(owner) => make(&folder, name, owner)?,
            None => learn(&folder, name),
        }
        parent.push(name);
    }
    // A folder on which the host has mounted something becomes that mount only if it is opened as a
    // folder.
    let path = Path::new(".").join(&part.path);
    match beneath(&path, OFlags::DIRECTORY) {
        Err(Errno::NOTDIR) => beneath(&path, OFlags::empty()),
        opened => opened,
    }
}

/// Has the kernel ask the host for a name that it believes to be missing: the kubelet makes the
/// folders of a `subPath` on the host, in a volume of which the kernel keeps what it knows. It asks
/// when it is to make the folder.
fn learn(parent: &OwnedFd, name: Component<'_>) {
    let name: &Path = name.as_ref();
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let known = openat(parent, name, flags, Mode::empty());
    if known.is_err() && mkdirat(parent, name, Mode::empty()).is_ok() {
        // It is missing on the host, too.
        let _ = unlinkat(parent, name, AtFlags::REMOVEDIR);
    }
}

fn make(parent: &OwnedFd, name: Component<'_>, owner: &Owner) -> rustix::io::Result<()> {
    let name: &Path = name.as_ref();
    match mkdirat(parent, name, Mode::empty()) {
        Err(Errno::EXIST) => return Ok(()),
        made => made?,
    }
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    chownat(
        parent,
        name,
        Some(uid),
        Some(gid),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    // The owner first: a change of it clears the set-group-id bit. Until then, nobody but root may
    // enter the folder, so what is there is the folder that was made here.
    let folder = openat(
        parent,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    rustix::fs::fchmod(&folder, Mode::from_raw_mode(owner.mode & 0o7777))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{symlink, PermissionsExt};

    use super::*;

    fn part(whole: &Path, path: &str, mode: Option<u32>) -> Part {
        Part {
            whole: whole.display().to_string(),
            path: path.to_owned(),
            folder: mode
                .map(|mode| Owner {
                    mode,
                    ..Default::default()
                })
                .into(),
            ..Default::default()
        }
    }

    #[test]
    fn folders_that_are_missing_are_made_with_their_mode() {
        let dir = tempfile::tempdir().unwrap();
        open(&part(dir.path(), "a/b", Some(0o2775))).unwrap();
        let mode = fs::metadata(dir.path().join("a/b"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o2775);
        assert_eq!(
            open(&part(dir.path(), "c", None)).unwrap_err(),
            Errno::NOENT
        );
    }

    #[test]
    fn link_that_a_container_made_of_a_folder_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("real")).unwrap();
        symlink("real", dir.path().join("link")).unwrap();
        symlink("/", dir.path().join("out")).unwrap();
        for path in ["link", "out", "out/etc"] {
            let error = open(&part(dir.path(), path, Some(0o777))).unwrap_err();
            assert!(
                matches!(error, Errno::LOOP | Errno::NOTDIR),
                "{path}: {error}"
            );
        }
        assert!(open(&part(dir.path(), "../x", None)).is_err());
    }
}
