//! Unpacks layers into a root file system. This happens in a thread whose root is that folder, so
//! that no path or symlink of an image leads out of it. Users are looked up in the same way.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs,
    io::{self, ErrorKind, Read},
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Component, Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{anyhow, bail, ensure, Context, Result};
use nix::{
    sched::{unshare, CloneFlags},
    sys::stat::{makedev, mknod, Mode, SFlag},
    unistd::{chown, chroot, Gid, Uid},
};
use sha2::{Digest, Sha256};
use tar::{Entry, EntryType};

use super::image::Image;

/// The beginning of the name of an entry that removes another (OCI image spec, layer.md).
const WHITEOUT: &[u8] = b".wh.";
/// The name of an entry that removes everything that lower layers put into its folder.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// The beginning of the names that aufs kept for itself.
const AUFS: &[u8] = b".wh..wh.";
/// The beginning of the pax records that are extended attributes.
const XATTR: &str = "SCHILY.xattr.";

/// Unpacks all layers of `image` into the folder `root`, until `cancelled` is set.
pub fn unpack(image: &Image, root: &Path, cancelled: &AtomicBool) -> Result<()> {
    inside(root, || {
        for (number, layer) in image.layers().enumerate() {
            let layer = layer?;
            let mut tar = Watched {
                from: layer.tar,
                hash: Sha256::new(),
                cancelled,
            };
            let named = || format!("layer {}", number + 1);
            apply(&mut tar).with_context(named)?;
            // What comes after the last entry is hashed, too.
            io::copy(&mut tar, &mut io::sink()).with_context(named)?;
            let digest = format!("sha256:{}", hex::encode(tar.hash.finalize()));
            ensure!(
                digest == layer.diff_id,
                "layer {} has the digest {digest}, not {}: the archive is damaged",
                number + 1,
                layer.diff_id
            );
        }
        Ok(())
    })
}

/// Runs `work` in a thread for which `root` is `/`.
pub fn inside<T: Send>(root: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // From here on, root and working directory are this thread's own.
            unshare(CloneFlags::CLONE_FS).context("unshare")?;
            chroot(root).with_context(|| format!("chroot {}", root.display()))?;
            std::env::set_current_dir("/")?;
            work()
        });
        thread
            .join()
            .map_err(|_| anyhow!("the thread in {} panicked", root.display()))?
    })
}

/// A reader that hashes what is read, and ends when it is cancelled.
struct Watched<'a> {
    from: Box<dyn Read + Send>,
    hash: Sha256,
    cancelled: &'a AtomicBool,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(io::Error::other("cancelled"));
        }
        let length = self.from.read(buffer)?;
        self.hash.update(&buffer[..length]);
        Ok(length)
    }
}

/// The paths that this layer has written so far: its whiteouts only affect what lies below it.
type Done = HashSet<PathBuf>;

fn apply(layer: impl Read) -> Result<()> {
    let mut archive = tar::Archive::new(layer);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    let mut folders = Vec::new();
    let mut done = Done::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = path_in_root(&entry.path()?)?;
        apply_entry(&mut entry, &path, &mut folders, &mut done)
            .with_context(|| path.display().to_string())?;
    }
    // Writing into a folder changes its time, so the times of folders are set last.
    for (path, mtime) in folders.into_iter().rev() {
        // A later entry may have put something else there.
        if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
            fs::File::open(&path)?
                .set_modified(mtime)
                .with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

fn apply_entry<R: Read>(
    entry: &mut Entry<'_, R>,
    path: &Path,
    folders: &mut Vec<(PathBuf, SystemTime)>,
    done: &mut Done,
) -> Result<()> {
    let Some((name, parent)) = path.file_name().zip(path.parent()) else {
        return folder(entry, path, folders);
    };
    let name = name.as_bytes();
    if name == OPAQUE {
        return prune(parent, done);
    }
    if name.starts_with(AUFS) {
        return Ok(());
    }
    if let Some(hidden) = name.strip_prefix(WHITEOUT) {
        ensure!(
            !matches!(hidden, b"" | b"." | b".."),
            "a whiteout that names nothing"
        );
        return hide(&parent.join(OsStr::from_bytes(hidden)), done);
    }
    fs::create_dir_all(parent)?;
    for known in path.ancestors() {
        if !done.insert(known.to_owned()) && known != path {
            break;
        }
    }
    let kind = entry.header().entry_type();
    if !kind.is_dir() || !fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir()) {
        remove(path)?;
    }
    let xattrs = xattrs(entry)?;
    match kind {
        EntryType::Char | EntryType::Block | EntryType::Fifo => special(entry, path)?,
        EntryType::Link => {
            let target = entry.link_name()?.context("a hard link to nothing")?;
            // The owner, mode and attributes are those of the existing file.
            return Ok(fs::hard_link(path_in_root(&target)?, path)?);
        }
        EntryType::Directory => folder(entry, path, folders)?,
        EntryType::Regular | EntryType::Continuous | EntryType::Symlink | EntryType::GNUSparse => {
            // The crate `tar` takes any number for a time.
            time(entry.header().mtime()?)?;
            entry.unpack(path).map(drop)?;
        }
        other => bail!("entries of type {other:?} are not known"),
    }
    for (name, value) in xattrs {
        match xattr::set(path, &name, &value) {
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                eprintln!(
                    "caisson: attribute {name:?} of {} is lost: {error}",
                    path.display()
                );
            }
            set => set.with_context(|| format!("attribute {name:?}"))?,
        }
    }
    Ok(())
}

fn folder<R: Read>(
    entry: &Entry<'_, R>,
    path: &Path,
    folders: &mut Vec<(PathBuf, SystemTime)>,
) -> Result<()> {
    if !path.is_dir() {
        fs::create_dir(path)?;
    }
    folders.push((path.to_owned(), time(entry.header().mtime()?)?));
    own(entry, path)
}

/// Converts a header's seconds since 1970.
fn time(mtime: u64) -> Result<SystemTime> {
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(mtime));
    time.context("a time of change that can't be")
}

fn special<R: Read>(entry: &Entry<'_, R>, path: &Path) -> Result<()> {
    let header = entry.header();
    let kind = match header.entry_type() {
        EntryType::Char => SFlag::S_IFCHR,
        EntryType::Block => SFlag::S_IFBLK,
        _ => SFlag::S_IFIFO,
    };
    let number = |part: Option<u32>| u64::from(part.unwrap_or(0));
    let device = makedev(
        number(header.device_major()?),
        number(header.device_minor()?),
    );
    mknod(path, kind, Mode::S_IRUSR, device)?;
    own(entry, path)
}

fn own<R: Read>(entry: &Entry<'_, R>, path: &Path) -> Result<()> {
    let header = entry.header();
    let (uid, gid) = (u32::try_from(header.uid()?)?, u32::try_from(header.gid()?)?);
    chown(path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    // Set after the owner, since changing the owner clears the set-id bits.
    let mode = fs::Permissions::from_mode(header.mode()? & 0o7777);
    Ok(fs::set_permissions(path, mode)?)
}

/// Returns the extended attributes in the pax records of an entry.
fn xattrs<R: Read>(entry: &mut Entry<'_, R>) -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    for record in entry.pax_extensions()?.into_iter().flatten() {
        let record = record?;
        let key = record.key().context("a pax record's name")?;
        ensure!(
            !key.starts_with("GNU.sparse."),
            "sparse files in pax form can't be read"
        );
        if let Some(name) = key.strip_prefix(XATTR) {
            found.push((name.to_owned(), record.value_bytes().to_owned()));
        }
    }
    Ok(found)
}

/// Returns the path below `/`, and refuses one with `..`.
fn path_in_root(path: &Path) -> Result<PathBuf> {
    let mut inside = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => inside.push(name),
            Component::RootDir | Component::CurDir => {}
            _ => bail!("{} leads out of the image", path.display()),
        }
    }
    Ok(inside)
}

/// Removes what lower layers put at `path`. Where this layer has put something there too, only what
/// lower layers put below it is removed.
fn hide(path: &Path, done: &Done) -> Result<()> {
    match done.contains(path) {
        true => prune(path, done),
        false => remove(path),
    }
}

/// Removes what lower layers put into a folder.
fn prune(folder: &Path, done: &Done) -> Result<()> {
    match fs::symlink_metadata(folder) {
        Ok(metadata) if metadata.is_dir() => {}
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ => return Ok(()),
    }
    for entry in fs::read_dir(folder)? {
        hide(&folder.join(entry?.file_name()), done)?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(())
        }
        Err(error) => return Err(error.into()),
    };
    ensure!(path != Path::new("/"), "the root itself can't be removed");
    if metadata.is_dir() {
        fs::remove_dir_all(path)?;
    } else {
        fs::remove_file(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    use super::*;

    enum What<'a> {
        File(&'a str),
        Dir,
        Symlink(&'a str),
        Hard(&'a str),
        /// A file with a time of change that can't be.
        Late,
        Null,
    }
    use What::{Dir, File, Hard, Late, Null, Symlink};

    type Entries<'a> = &'a [(&'a str, What<'a>)];

    /// Makes a layer's tar. Paths are written as they are, however hostile.
    fn tar_of(entries: Entries) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, what) in entries {
            let mut header = tar::Header::new_gnu();
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_mode(0o4755);
            header.set_uid(1000);
            header.set_gid(2000);
            header.set_mtime(7);
            header.set_size(0);
            let mut content = "";
            match what {
                File(text) => content = text,
                Dir => header.set_entry_type(EntryType::Directory),
                Symlink(target) => {
                    header.set_entry_type(EntryType::Symlink);
                    header.set_link_name_literal(target).unwrap();
                }
                Hard(target) => {
                    header.set_entry_type(EntryType::Link);
                    header.set_link_name_literal(target).unwrap();
                }
                Late => header.set_mtime(1 << 63),
                Null => {
                    header.set_entry_type(EntryType::Char);
                    header.set_device_major(1).unwrap();
                    header.set_device_minor(3).unwrap();
                }
            }
            header.set_size(content.len() as u64);
            header.set_cksum();
            tar.append(&header, content.as_bytes()).unwrap();
        }
        tar.into_inner().unwrap()
    }

    /// Unpacks layers into a temporary folder. Needs root, as `caisson run` does.
    fn unpacked(layers: &[Entries]) -> Option<(tempfile::TempDir, Result<()>)> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        let root = tempfile::tempdir().unwrap();
        for layer in layers {
            let bytes = tar_of(layer);
            let applied = inside(root.path(), || apply(bytes.as_slice()));
            if applied.is_err() {
                return Some((root, applied));
            }
        }
        Some((root, Ok(())))
    }

    fn files(layers: &[Entries]) -> Option<(tempfile::TempDir, Vec<String>)> {
        let (root, applied) = unpacked(layers)?;
        applied.unwrap();
        let mut found = Vec::new();
        let mut next = vec![root.path().to_owned()];
        while let Some(dir) = next.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if fs::symlink_metadata(&path).unwrap().is_dir() {
                    next.push(path);
                } else {
                    let path = path.strip_prefix(root.path()).unwrap();
                    found.push(path.display().to_string());
                }
            }
        }
        found.sort();
        Some((root, found))
    }

    #[test]
    fn whiteouts_remove_what_lower_layers_put_there_and_nothing_of_their_own() {
        let lower: Entries = &[
            ("a/one", File("1")),
            ("a/two", File("2")),
            ("b/three", File("3")),
            ("b/sub/lower", File("5")),
        ];
        let upper: Entries = &[
            ("a/.wh.one", File("")),
            ("b/four", File("4")),
            ("b/sub/upper", File("6")),
            ("b/.wh..wh..opq", File("")),
            ("b/.wh..wh.plnk", File("")),
        ];
        let Some((_root, found)) = files(&[lower, upper]) else {
            return;
        };
        assert_eq!(found, ["a/two", "b/four", "b/sub/upper"]);
    }

    #[test]
    fn file_and_folder_take_each_others_place() {
        let lower: Entries = &[("x/file", File("1")), ("y", File("2"))];
        let upper: Entries = &[("x", File("3")), ("y", Dir), ("y/file", File("4"))];
        let Some((_root, found)) = files(&[lower, upper]) else {
            return;
        };
        assert_eq!(found, ["x", "y/file"]);
    }

    #[test]
    fn owner_mode_links_and_devices_are_kept() {
        let layer: Entries = &[
            ("tool", File("x")),
            ("second", Hard("tool")),
            ("null", Null),
        ];
        let Some((root, _)) = files(&[layer]) else {
            return;
        };
        let metadata = |name| fs::metadata(root.path().join(name)).unwrap();
        let tool = metadata("tool");
        assert_eq!(
            (tool.uid(), tool.gid(), tool.mode() & 0o7777, tool.mtime()),
            (1000, 2000, 0o4755, 7)
        );
        assert_eq!(tool.ino(), metadata("second").ino());
        let null = metadata("null");
        assert!(null.file_type().is_char_device());
        assert_eq!((null.rdev(), null.uid()), (makedev(1, 3), 1000));
    }

    #[test]
    fn symlinks_of_an_image_lead_nowhere_else() {
        let outside = tempfile::tempdir().unwrap();
        let name = outside.path().to_str().unwrap();
        let inside = format!("{}/kept", &name[1..]);
        let lower: Entries = &[(&inside, File("in the image")), ("link", Symlink(name))];
        let upper: Entries = &[
            ("link/file", File("through the link")),
            ("link/.wh.kept", File("")),
        ];
        let Some((_root, found)) = files(&[lower, upper]) else {
            return;
        };
        assert_eq!(found, ["link".to_owned(), format!("{}/file", &name[1..])]);
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn hard_link_does_not_reach_a_file_of_the_host() {
        let Some((_root, applied)) = unpacked(&[&[("passwd", Hard("/etc/passwd"))]]) else {
            return;
        };
        assert!(applied.is_err());
    }

    #[test]
    fn paths_with_dots_are_refused() {
        for layer in [
            [("../escaped", File("x"))],
            [("a/../../escaped", File("x"))],
            [("link", Hard("../../etc/passwd"))],
            [("a/.wh...", File(""))],
            [(".wh.", File(""))],
        ] {
            let Some((root, applied)) = unpacked(&[&layer]) else {
                return;
            };
            let error = format!("{:#}", applied.unwrap_err());
            assert!(
                error.contains("leads out") || error.contains("names nothing"),
                "{error}"
            );
            assert!(!root.path().parent().unwrap().join("escaped").exists());
        }
    }

    #[test]
    fn time_that_cannot_be_is_refused() {
        assert_eq!(time(7).unwrap(), UNIX_EPOCH + Duration::from_secs(7));
        time(u64::MAX).unwrap_err();
        let Some((_root, applied)) = unpacked(&[&[("file", Late)]]) else {
            return;
        };
        let error = format!("{:#}", applied.unwrap_err());
        assert!(error.contains("a time of change that can't be"), "{error}");
    }

    #[test]
    fn absolute_paths_are_the_images() {
        let Some((_root, found)) = files(&[&[("/etc/motd", File("x"))]]) else {
            return;
        };
        assert_eq!(found, ["etc/motd"]);
    }
}
