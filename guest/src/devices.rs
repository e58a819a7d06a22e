//! The guest's half of plugging in a device: waits until the kernel has it, then makes it usable.
//!
//! Every wait ends after [`DEADLINE`]. All functions block.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use caisson_protocol::{
    agent::{Disk, Share},
    path::{DISKS, SHARES},
};
use nix::mount::{mount, umount2, MntFlags, MsFlags};

use crate::{modules, verity, Error, Result};

/// How long a device may take to appear after the host plugged it in.
const DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// Mounts a share at `SHARES/<tag>`.
pub fn attach_share(share: &Share) -> Result<()> {
    let target = share_target(&share.tag)?;
    if is_mount_point(&target)? {
        return Ok(());
    }
    modules::load(modules::SHARE)?;
    make_dir(&target)?;
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

/// Waits for a disk and mounts it at `DISKS/<serial>` if it has a file system.
pub fn attach_disk(disk: &Disk) -> Result<()> {
    let target = disk_target(&disk.serial)?;
    modules::load(modules::DISK)?;
    let device = wait_for(&format!("disk {}", disk.serial), || {
        Ok(find_disk(&disk.serial).filter(|device| device.exists()))
    })?;
    if disk.fs_type.is_empty() || is_mount_point(&target)? {
        return Ok(());
    }
    if !matches!(disk.fs_type.as_str(), "squashfs" | "erofs" | "ext4") {
        return Err(Error::Argument {
            field: "disk.fs_type",
            value: disk.fs_type.clone(),
            why: "must be squashfs, erofs, ext4 or empty",
        });
    }
    modules::load(&modules::of_fs(&disk.fs_type))?;
    make_dir(&target)?;
    let device = match disk.verity.as_ref() {
        Some(verity) => verity::open(&disk.serial, &device, verity)?,
        None => device,
    };
    let mut flags = match disk.root {
        true => MsFlags::empty(),
        false => MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
    };
    flags.set(MsFlags::MS_RDONLY, disk.read_only);
    let mounted = mount(
        Some(&device),
        &target,
        Some(disk.fs_type.as_str()),
        flags,
        None::<&str>,
    );
    match mounted {
        // Another call for the same disk was faster.
        Err(nix::Error::EBUSY) if is_mount_point(&target)? => Ok(()),
        result => result.map_err(|source| Error::Mount {
            what: format!("{} disk {}", disk.fs_type, disk.serial),
            target,
            source: source.into(),
        }),
    }
}

/// Unmounts a share and what is mounted below it. One that is not mounted counts as a success.
pub fn detach_share(share: &Share) -> Result<()> {
    let_go(&share_target(&share.tag)?)
}

/// Unmounts a disk. One that is not mounted counts as a success.
pub fn detach_disk(disk: &Disk) -> Result<()> {
    let_go(&disk_target(&disk.serial)?)?;
    verity::close(&disk.serial)
}

/// Brings the number of CPUs that are online to `total`.
pub fn online_cpus(total: u32) -> Result<()> {
    let path = "/sys/devices/system/cpu/online";
    wait_for(&format!("cpu number {total}"), || {
        let online = fs::read_to_string(path).map_err(Error::file("read", path))?;
        let online = parse_cpu_list(&online);
        if online.len() == total as usize {
            return Ok(Some(()));
        }
        let mut cpus: Vec<u32> = names_in("/sys/devices/system/cpu")
            .iter()
            .filter_map(|name| name.strip_prefix("cpu")?.parse().ok())
            .collect();
        cpus.sort_unstable();
        let grow = online.len() < total as usize;
        let wrong: Vec<u32> = if grow {
            let off = cpus.into_iter().filter(|cpu| !online.contains(cpu));
            off.take(total as usize - online.len()).collect()
        } else {
            let on = online.iter().rev().copied();
            on.take(online.len() - total as usize).collect()
        };
        for cpu in wrong {
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/online");
            // A CPU that is just being plugged in may not have its file yet; the next round tries
            // again.
            if let Err(error) = fs::write(&path, if grow { "1" } else { "0" }) {
                log::debug!(cpu, error:%; "cpu not ready");
            }
        }
        Ok(None)
    })
}

/// Waits until the machine has `total` bytes online, counted in memory blocks. The last block may
/// be there only in part.
pub fn online_memory(total: u64) -> Result<()> {
    let path = "/sys/devices/system/memory/block_size_bytes";
    let block = fs::read_to_string(path).map_err(Error::file("read", path))?;
    let block = u64::from_str_radix(block.trim(), 16)
        .unwrap_or(128 << 20)
        .max(1);
    modules::load(modules::MEMORY)?;
    wait_for(&format!("memory of {total} bytes"), || {
        let mut online = 0_u64;
        for name in names_in("/sys/devices/system/memory") {
            let path = Path::new("/sys/devices/system/memory")
                .join(&name)
                .join("state");
            match fs::read_to_string(&path).as_deref().map(str::trim) {
                Ok("online") => online += 1,
                // For a kernel that does not do it by itself.
                Ok("offline") => drop(fs::write(&path, "online")),
                _ => {}
            }
        }
        Ok((online >= total.div_ceil(block)).then_some(()))
    })
}

/// Returns the device node of the disk with this serial, if the kernel has found it.
pub fn find_disk(serial: &str) -> Option<PathBuf> {
    names_in("/sys/block").into_iter().find_map(|name| {
        let found = fs::read_to_string(format!("/sys/block/{name}/serial")).ok()?;
        (found.trim_end_matches(['\n', '\0']) == serial).then(|| Path::new("/dev").join(name))
    })
}

/// Unmounts everything at and below `path`, the deepest first. Returns whether anything was
/// mounted.
pub fn unmount(path: &Path) -> Result<bool> {
    let mut found = false;
    for target in mount_points()?.iter().rev() {
        if target.starts_with(path) {
            umount2(target, MntFlags::MNT_DETACH).map_err(Error::file("unmount", target))?;
            found = true;
        }
    }
    Ok(found)
}

/// Makes the kernel forget directory entries that are not in use. While a share has an entry for
/// what the host mounted below it, that mount stays busy on the host, and there is no call to drop
/// a single entry.
pub fn forget_entries() -> Result<()> {
    let path = "/proc/sys/vm/drop_caches";
    fs::write(path, "2").map_err(Error::file("write", path))
}

/// Unmounts what can be unmounted below `dir`, for the end of the machine. This writes out the
/// unwritten data there.
pub fn unmount_below(dir: &Path) {
    for target in mount_points().unwrap_or_default().iter().rev() {
        if target.starts_with(dir) && target != dir {
            if let Err(error) = umount2(target, MntFlags::empty()) {
                log::debug!(path = target.display().to_string(), error:%; "not unmounted");
            }
        }
    }
}

/// Returns all mount points, in the order in which they were mounted.
fn mount_points() -> Result<Vec<PathBuf>> {
    let path = "/proc/self/mountinfo";
    let text = fs::read_to_string(path).map_err(Error::file("read", path))?;
    Ok(text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| PathBuf::from(unescape(field)))
        .collect())
}

/// Returns whether something is mounted at `path`.
pub fn is_mount_point(path: &Path) -> Result<bool> {
    Ok(mount_points()?.iter().any(|mounted| mounted == path))
}

/// Undoes the octal escapes of /proc/self/mountinfo (proc(5)).
fn unescape(field: &str) -> String {
    let mut text = field.to_string();
    for (code, character) in [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ] {
        text = text.replace(code, character);
    }
    text
}

/// Returns where a share is mounted. Fails for a tag that is not a valid name.
pub fn share_target(tag: &str) -> Result<PathBuf> {
    // virtio spec 5.11.4.
    target(SHARES, "share.tag", tag, 36)
}

/// Returns where a disk is mounted. Fails for a serial that is not a valid name.
pub fn disk_target(serial: &str) -> Result<PathBuf> {
    // virtio spec 5.2.6.2.
    target(DISKS, "disk.serial", serial, 20)
}

fn let_go(target: &Path) -> Result<()> {
    unmount(target)?;
    match fs::remove_dir(target) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::file("remove", target)(error))
        }
        _ => Ok(()),
    }
}

fn target(dir: &str, field: &'static str, name: &str, most: usize) -> Result<PathBuf> {
    let why = match name {
        "" | "." | ".." => "is no name",
        _ if name.len() > most => "is longer than the device can say",
        _ if name.contains(['/', '\0']) => "must not have a slash",
        _ => return Ok(Path::new(dir).join(name)),
    };
    Err(Error::Argument {
        field,
        value: name.to_string(),
        why,
    })
}

fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(Error::file("create directory", path))
}

/// Returns the names in a directory; none if it can't be read.
pub fn names_in(dir: &str) -> BTreeSet<String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}

/// Calls `found` again and again until it returns something, fails, or [`DEADLINE`] has passed.
pub fn wait_for<T>(device: &str, mut found: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = found()? {
            log::debug!(device, ms = start.elapsed().as_millis() as u64; "device there");
            return Ok(value);
        }
        if start.elapsed() >= DEADLINE {
            return Err(Error::NoDevice {
                device: device.to_string(),
                waited: DEADLINE,
            });
        }
        std::thread::sleep(POLL);
    }
}

/// Parses the kernel's list format, such as `0-2,5`.
fn parse_cpu_list(text: &str) -> Vec<u32> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) {
            cpus.extend(first..=last);
        }
    }
    cpus
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_list_with_ranges_is_read() {
        assert_eq!(parse_cpu_list("0-2,5\n"), [0, 1, 2, 5]);
        assert!(parse_cpu_list("\n").is_empty());
    }

    #[test]
    fn target_with_a_way_out_is_refused() {
        for name in ["", ".", "..", "a/b", "../x", "a\0b", &"x".repeat(37)] {
            assert!(target(SHARES, "share.tag", name, 36).is_err(), "{name:?}");
        }
        let good = target(SHARES, "share.tag", "pod", 36).unwrap();
        assert_eq!(good, Path::new("/run/caisson/shares/pod"));
    }

    #[test]
    fn mount_point_with_escapes_is_read() {
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
    }
}
