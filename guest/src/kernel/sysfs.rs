//! Finds devices in sysfs, and waits for those that the host has just plugged in.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use netlink_sys::{protocols::NETLINK_KOBJECT_UEVENT, Socket, SocketAddr};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use crate::{Error, Result};

/// How long a device may take to appear after the host plugged it in.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// How long [`wait_for`] waits for a report before it looks all the same.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Returns the device node of the disk with this serial, if the kernel has found it and it can be
/// opened.
pub fn find_disk(serial: &str) -> Option<PathBuf> {
    let node = names_in("/sys/block").into_iter().find_map(|name| {
        let found = fs::read_to_string(format!("/sys/block/{name}/serial")).ok()?;
        (found.trim_end_matches(['\n', '\0']) == serial).then(|| Path::new("/dev").join(name))
    });
    node.filter(|node| is_complete(node))
}

/// Whether a block device is more than a name. The kernel makes a disk's files and its node before
/// it lets anybody open it; until then that fails with ENXIO (`device_add_disk` in block/genhd.c).
/// It reports the disk when that has ended.
fn is_complete(node: &Path) -> bool {
    match File::open(node) {
        Err(error) => !matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENOENT)),
        Ok(_) => true,
    }
}

/// Returns the names in a directory; none if it can't be read.
pub fn names_in(dir: &str) -> BTreeSet<String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}

/// Calls `found` now, and whenever the kernel reports something of a device of the subsystem, until
/// it returns something. Fails if `found` fails, or after [`DEADLINE`].
pub fn wait_for<T>(
    subsystem: &str,
    device: &str,
    found: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    let found = wait_within(DEADLINE, subsystem, found)?;
    let found = found.ok_or_else(|| Error::NoDevice {
        device: device.to_string(),
        waited: DEADLINE,
    })?;
    log::debug!(device, ms = start.elapsed().as_millis() as u64; "device there");
    Ok(found)
}

/// Like [`wait_for`], but returns `None` after the limit.
pub fn wait_within<T>(
    limit: Duration,
    subsystem: &str,
    mut found: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    let end = Instant::now() + limit;
    // Before the first look, so that nothing is missed.
    let reports = Reports::listen().map_err(Error::system("listen for devices"))?;
    loop {
        if let Some(value) = found()? {
            return Ok(Some(value));
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        reports
            .wait(subsystem, left.min(LOOK_AGAIN))
            .map_err(Error::system("listen for devices"))?;
    }
}

/// What the kernel reports of devices (netlink(7), `NETLINK_KOBJECT_UEVENT`).
struct Reports {
    socket: Socket,
}

impl Reports {
    /// The group to which the kernel sends them.
    const KERNEL: u32 = 1;

    fn listen() -> io::Result<Reports> {
        let mut socket = Socket::new(NETLINK_KOBJECT_UEVENT)?;
        socket.bind(&SocketAddr::new(0, Self::KERNEL))?;
        socket.set_non_blocking(true)?;
        Ok(Reports { socket })
    }

    /// Waits for a report of a device of the subsystem, or for the limit.
    fn wait(&self, subsystem: &str, limit: Duration) -> io::Result<()> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let mut polled = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            // A wait that is too short ends in another look.
            let milliseconds = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            match poll(&mut polled, milliseconds) {
                Ok(0) => return Ok(()),
                Ok(_) if self.has(subsystem)? => return Ok(()),
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads what has been reported, and returns whether the subsystem was in it.
    fn has(&self, subsystem: &str) -> io::Result<bool> {
        let mut has = false;
        loop {
            match self.socket.recv_from_full() {
                Ok((report, _)) => has |= is_of(&report, subsystem),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(has),
                    // There were more than the socket holds.
                    Some(libc::ENOBUFS) => has = true,
                    Some(libc::EINTR) => {}
                    _ => return Err(error),
                },
            }
        }
    }
}

/// Whether a report is of a device of the subsystem: its lines end with a NUL.
fn is_of(report: &[u8], subsystem: &str) -> bool {
    let mut lines = report.split(|byte| *byte == 0);
    lines.any(|line| line.strip_prefix(b"SUBSYSTEM=") == Some(subsystem.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_is_of_the_subsystem_that_it_names() {
        let report = b"add@/devices/x\0ACTION=add\0SUBSYSTEM=block\0SEQNUM=7\0";
        assert!(is_of(report, "block"));
        assert!(!is_of(report, "net"));
        assert!(!is_of(report, "bloc"));
        assert!(!is_of(b"", ""));
    }

    /// Opening a socket fails with ENXIO, as opening a disk does that the kernel still makes.
    #[test]
    fn node_that_cannot_be_opened_yet_is_no_disk() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, disk) = (dir.path().join("socket"), dir.path().join("disk"));
        let _bound = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        fs::write(&disk, "").unwrap();
        assert!(!is_complete(&socket));
        assert!(!is_complete(&dir.path().join("nothing")));
        assert!(is_complete(&disk));
    }

    #[test]
    fn what_is_not_there_is_given_up_after_the_limit() {
        let mut looks = 0;
        let limit = Duration::from_millis(50);
        let found = wait_within(limit, "block", || {
            looks += 1;
            Ok(None::<()>)
        });
        assert!(matches!(found, Ok(None)));
        assert!(looks >= 2);
    }
}
