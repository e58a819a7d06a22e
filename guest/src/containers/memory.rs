//! Mounts file systems in memory that the containers of a pod share: `/dev/shm`, and emptyDirs with
//! medium Memory.

use std::{
    fs,
    path::Path,
    sync::{Mutex, PoisonError},
};

use caisson_protocol::{agent::Memory, path::MEMORY};
use nix::{
    mount::{mount as mount_at, MsFlags},
    unistd::{chown, Gid, Uid},
};

use crate::{id, kernel::mounts, Error, Result};

/// Two containers may ask for the same file system at once.
static MOUNTING: Mutex<()> = Mutex::new(());

/// Mounts the file system, unless it is mounted already.
pub fn mount(memory: &Memory) -> Result<()> {
    id::check("memory.name", &memory.name)?;
    let _mounting = MOUNTING.lock().unwrap_or_else(PoisonError::into_inner);
    let target = Path::new(MEMORY).join(&memory.name);
    if mounts::is_mount_point(&target)? {
        return Ok(());
    }
    fs::create_dir_all(&target).map_err(Error::file("create directory", &target))?;
    let mut flags = MsFlags::empty();
    let strict = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    flags.set(strict, memory.strict);
    let owner = memory.owner.get_or_default();
    let options = format!("size={},mode={:o}", memory.size_bytes, owner.mode & 0o7777);
    mount_at(
        Some("tmpfs"),
        &target,
        Some("tmpfs"),
        flags,
        Some(options.as_str()),
    )
    .map_err(|source| Error::Mount {
        what: format!("memory {}", memory.name),
        target: target.clone(),
        source: source.into(),
    })?;
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    chown(&target, Some(uid), Some(gid)).map_err(Error::file("change the owner of", target))
}
