//! Makes and opens the files that the disks are.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{id, Stdio},
    time::Duration,
};

use caisson_node::host::{
    error::{FileError, OnFile},
    folder::Folder,
    program,
};
use nix::sys::statvfs::fstatvfs;
use tokio::process::Command;

/// The name of the file. Whoever copies the folder, such as `ctr snapshots diff`, sees it.
const IMAGE: &str = ".caisson-disk.ext4";

/// The largest disk in bytes. The tables of an empty one take some 12 MiB.
const MAX_SIZE: u64 = 1 << 40;
/// The smallest disk in bytes: it has room for its journal and for some files.
const MIN_SIZE: u64 = 64 << 20;

/// The options of mke2fs. No blocks are reserved for root, which anybody can be in the guest. A
/// sparse file needs no zeroing. The journal is small, since the space of all of it is taken when
/// it has been written once. The file system never grows, so it has no room to do so.
const OPTIONS: [&str; 13] = [
    "-q",
    "-F",
    "-t",
    "ext4",
    "-b",
    "4096",
    "-m",
    "0",
    "-J",
    "size=16",
    "-O",
    "^resize_inode",
    "-Elazy_itable_init=0,lazy_journal_init=1",
];
/// How long mke2fs may take. It takes some 20 ms.
const LIMIT: Duration = Duration::from_secs(60);

/// Whether a folder has such a file. Something else of that name is none.
pub fn is_there(folder: &Folder) -> bool {
    folder.open_file(IMAGE).is_ok()
}

/// Opens the file in a folder, and makes it if there is none.
pub async fn open(folder: &Path) -> Result<File, FileError> {
    let path = folder.join(IMAGE);
    let failed = |operation| FileError::file(operation, &path);
    let folder = Folder::open(folder).map_err(failed("open the folder of"))?;
    match folder.open_file(IMAGE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened.map_err(failed("open the disk")),
    }
    // It gets its name when it is whole, so that nothing is left of one that is not.
    let file = folder.unnamed_file().map_err(failed("create the disk"))?;
    let size = size(&file).map_err(failed("find room for the disk"))?;
    file.set_len(size).map_err(failed("set the size of"))?;
    make_file_system(&file)
        .await
        .map_err(failed("make the file system of"))?;
    let named = tokio::task::spawn_blocking(move || {
        file.sync_all()?;
        folder.name_file(&file, IMAGE)?;
        io::Result::Ok(file)
    });
    let named = named
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)));
    named.map_err(failed("finish the disk"))
}

/// Returns the size of a new disk: what is free now where the file is. The pod could take as much
/// of a shared folder, and with a larger disk it would be told too late that the host's is full.
fn size(file: &File) -> io::Result<u64> {
    let host = fstatvfs(file)?;
    let free = host.blocks_available().saturating_mul(host.fragment_size());
    let whole = free.min(MAX_SIZE) / MIN_SIZE * MIN_SIZE;
    match whole {
        0 => Err(io::ErrorKind::StorageFull.into()),
        size => Ok(size),
    }
}

async fn make_file_system(file: &File) -> io::Result<()> {
    let program = program::find("mke2fs")
        .ok_or_else(|| io::Error::other("there is no program mke2fs; is e2fsprogs installed?"))?;
    let mut command = Command::new(program);
    command.args(OPTIONS).arg(path_for_others(file)).env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::piped()).kill_on_drop(true);
    let ended = tokio::time::timeout(LIMIT, command.output()).await;
    let ended = ended.map_err(|_| {
        let secs = LIMIT.as_secs();
        io::Error::other(format!(
            "mke2fs was killed since it took longer than {secs} s"
        ))
    })??;
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    Err(io::Error::other(format!(
        "mke2fs: {}: {}",
        ended.status,
        said.trim()
    )))
}

/// Returns a path by which another process can open the file.
fn path_for_others(file: &File) -> PathBuf {
    format!("/proc/{}/fd/{}", id(), file.as_raw_fd()).into()
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{symlink, MetadataExt},
    };

    use super::*;

    #[tokio::test]
    async fn new_disk_takes_little_space_and_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path()).await.unwrap().metadata().unwrap();
        assert!(first.len() >= MIN_SIZE);
        assert!(first.blocks() * 512 < 16 << 20, "{}", first.blocks());
        let second = open(dir.path()).await.unwrap().metadata().unwrap();
        assert_eq!(first.ino(), second.ino());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    /// A pod can have put it there while it shared the folder.
    #[tokio::test]
    async fn link_in_place_of_the_disk_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/etc/passwd", dir.path().join(IMAGE)).unwrap();
        assert!(!is_there(&Folder::open(dir.path()).unwrap()));
        let error = open(dir.path()).await.unwrap_err();
        assert_eq!(error.operation, "open the disk");
    }
}
