//! Mounts shares, the directories that the host lends to the guest over virtio-fs.

use std::fs;

use caisson_protocol::agent::Share;
use nix::mount::{mount, MsFlags};

use super::target;
use crate::{
    kernel::{
        modules,
        mounts::is_mount_point,
        sysfs::{names_in, wait_for},
    },
    Error, Result,
};

/// Mounts a share at `SHARES/<tag>`.
pub fn attach(share: &Share) -> Result<()> {
    let target = target::share(&share.tag)?;
    if is_mount_point(&target)? {
        return Ok(());
    }
    modules::load(modules::SHARE)?;
    fs::create_dir_all(&target).map_err(Error::file("create directory", &target))?;
    let mut flags = MsFlags::empty();
    flags.set(MsFlags::MS_RDONLY, share.read_only);
    wait_for("virtio", &format!("share {}", share.tag), || {
        // An attempt for a tag that does not exist adds a line to the kernel's log.
        if names_in("/sys/bus/virtio/drivers/virtiofs").is_empty() {
            return Ok(None);
        }
        match mount(
            Some(share.tag.as_str()),
            &target,
            Some("virtiofs"),
            flags,
            None::<&str>,
        ) {
            Ok(()) => Ok(Some(())),
            // The tag does not exist (yet).
            Err(nix::Error::EINVAL | nix::Error::ENODEV) => Ok(None),
            // Another call for the same share was faster.
            Err(nix::Error::EBUSY) if is_mount_point(&target)? => Ok(Some(())),
            Err(error) => Err(Error::Mount {
                what: format!("share {}", share.tag),
                target: target.clone(),
                source: error.into(),
            }),
        }
    })
}

/// Unmounts a share and what is mounted below it. One that is not mounted counts as a success.
pub fn detach(share: &Share) -> Result<()> {
    target::let_go(&target::share(&share.tag)?)
}

/// Makes the kernel forget directory entries that are not in use. The host's daemon has a file open
/// for each of them, and what the host mounted below a share stays busy there. There is no call to
/// drop a single entry (proc_sys_vm(5), `drop_caches`).
pub fn forget_files() -> Result<()> {
    let path = "/proc/sys/vm/drop_caches";
    fs::write(path, "2").map_err(Error::file("write", path))
}
