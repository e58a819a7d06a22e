//! Finds devices in sysfs, and waits for those that the host has just plugged in.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{Error, Result};

/// How long a device may take to appear after the host plugged it in.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// How long [`wait_for`] waits before it looks again.
pub const POLL: Duration = Duration::from_millis(5);

/// Returns the device node of the disk with this serial, if the kernel has found it.
pub fn find_disk(serial: &str) -> Option<PathBuf> {
    names_in("/sys/block").into_iter().find_map(|name| {
        let found = fs::read_to_string(format!("/sys/block/{name}/serial")).ok()?;
        (found.trim_end_matches(['\n', '\0']) == serial).then(|| Path::new("/dev").join(name))
    })
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
