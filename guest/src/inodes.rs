//! Lets go of files that the guest no longer uses, where the host can't keep many open.
//!
//! The daemon of a shared directory has a descriptor for each file that the guest's kernel remembers, and the kernel
//! forgets only for want of memory. On a host with few descriptors a walk through a large tree would fail with ENFILE.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use crate::devices;

/// A guest meets some 50,000 files a second at the most: a fraction of the room that is left above the mark.
const PERIOD: Duration = Duration::from_millis(50);
/// With so much room only memory limits the guest, and nobody need look.
const PLENTY: u64 = 500_000;
/// Where forgetting does not help, since so many files are in use.
const PAUSE: Duration = Duration::from_secs(1);
/// How many inodes of shares the kernel knows (Documentation/ABI/testing/sysfs-kernel-slab), then the same by memory node.
const INODES: &str = "/sys/kernel/slab/fuse_inode/objects";

/// From now on, has the kernel forget unused files when it knows more than half of `max` inodes; 0 is no limit.
///
/// All shares of a pod come from hosts with one limit, so the first call decides.
pub fn keep_below(max: u64) {
    static WATCHING: AtomicBool = AtomicBool::new(false);
    if max == 0 || max >= PLENTY || WATCHING.swap(true, Ordering::Relaxed) {
        return;
    }
    let many = move || fs::read_to_string(INODES).is_ok_and(|text| known(&text) > max / 2);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(PERIOD).await;
            if many() {
                forget().await;
                if many() {
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    });
}

async fn forget() {
    // Takes as long as there is to forget.
    let forgotten = tokio::task::spawn_blocking(devices::forget_entries).await;
    if !matches!(forgotten, Ok(Ok(()))) {
        log::warn!("forget unused files: {forgotten:?}");
    }
}

fn known(objects: &str) -> u64 {
    let first = objects.split_whitespace().next();
    first.and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::known;

    #[test]
    fn inodes_are_the_first_number() {
        assert_eq!(known("21340 N0=21340\n"), 21340);
        assert_eq!(known(""), 0);
    }
}
