//! Mounts the roots of containers whose upper layers are on disks.

use std::{
    fs, io,
    os::unix::fs::{chown, PermissionsExt},
    path::Path,
};

use caisson_protocol::agent::{Overlay, Owner};
use nix::mount::{mount as mount_at, MsFlags};
use rustix::fs::{Mode, OFlags};

use crate::{
    kernel::{module_files, modules},
    Error, Result,
};

/// The folders on the disk: the layer, what the kernel needs for its changes, and the place of the
/// root. A layer that is not finished has the last name.
const UPPER: &str = "upper";
const WORK: &str = "work";
const ROOT: &str = "root";
const NEW: &str = "new";

/// Mounts a root at `root` below the place where its disk is mounted.
pub fn mount(disk: &Path, overlay: &Overlay) -> Result<()> {
    modules::load(&module_files::of_fs("overlay"))?;
    let (upper, work, root) = (disk.join(UPPER), disk.join(WORK), disk.join(ROOT));
    for folder in [&work, &root] {
        fs::create_dir_all(folder).map_err(Error::file("create directory", folder))?;
    }
    make_layer(&disk.join(NEW), &upper, overlay.owner.get_or_default())
        .map_err(Error::file("make the upper layer", &upper))?;
    // What the host has mounted becomes a mount here only if it is opened as a folder.
    let lower = Path::new(&overlay.lower);
    let _open = rustix::fs::open(
        lower,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(io::Error::from)
    .map_err(Error::file("open the lower layer", lower))?;
    // `index` as containerd has it: the lower layer need not be the same file system each time.
    let options = format!(
        "index=off,lowerdir={},upperdir={},workdir={}",
        overlay.lower,
        upper.display(),
        work.display()
    );
    let (kind, flags) = (Some("overlay"), MsFlags::empty());
    mount_at(kind, &root, kind, flags, Some(options.as_str())).map_err(|source| Error::Mount {
        what: format!("the overlay over {}", overlay.lower),
        target: root,
        source: source.into(),
    })
}

/// Makes the upper layer, whose owner and mode are the root's, unless the disk has one. It gets its
/// name when it is whole, since the machine may end at any time.
fn make_layer(new: &Path, upper: &Path, owner: &Owner) -> io::Result<()> {
    if upper.exists() {
        return Ok(());
    }
    fs::create_dir_all(new)?;
    chown(new, Some(owner.uid), Some(owner.gid))?;
    fs::set_permissions(new, fs::Permissions::from_mode(owner.mode & 0o7777))?;
    fs::rename(new, upper)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_keeps_the_mode_that_a_container_has_given_it() {
        let dir = tempfile::tempdir().unwrap();
        let upper = dir.path().join(UPPER);
        let me = fs::metadata(dir.path()).unwrap();
        let owner = |mode| Owner {
            mode,
            uid: std::os::unix::fs::MetadataExt::uid(&me),
            gid: std::os::unix::fs::MetadataExt::gid(&me),
            ..Default::default()
        };
        let mode = || fs::metadata(&upper).unwrap().permissions().mode() & 0o7777;
        make_layer(&dir.path().join(NEW), &upper, &owner(0o1755)).unwrap();
        assert_eq!(mode(), 0o1755);
        fs::set_permissions(&upper, fs::Permissions::from_mode(0o700)).unwrap();
        make_layer(&dir.path().join(NEW), &upper, &owner(0o1755)).unwrap();
        assert_eq!(mode(), 0o700);
    }
}
