//! Mounts shares, the directories that the host lends to the guest over virtio-fs.

use std::{collections::BTreeSet, fs, time::Instant};

use caisson_protocol::agent::Share;
use nix::mount::{mount, MsFlags};

use super::target;
use crate::{
    kernel::{
        modules,
        mounts::is_mount_point,
        sysfs::{names_in, wait_for, POLL},
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
    let mut devices = BTreeSet::new();
    let mut last = None::<Instant>;
    wait_for(&format!("share {}", share.tag), || {
        // Each attempt for a tag that does not exist adds a line to the kernel's log.
        let now = names_in("/sys/bus/virtio/drivers/virtiofs");
        if now == devices && last.is_some_and(|last| last.elapsed() < 50 * POLL) {
            return Ok(None);
        }
        devices = now;
        last = Some(Instant::now());
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
