//! Makes the guest's kernel forget files that it no longer uses, for hosts that can't keep many
//! files open.
//!
//! The daemon of a shared directory holds a descriptor for each file that the guest's kernel
//! remembers, and the kernel forgets files only when it runs short of memory. On a host with few
//! descriptors, walking through a large tree would fail with ENFILE.

use std::{
    arch::x86_64::__cpuid,
    fs::{self, File},
    os::unix::fs::FileExt,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use crate::{Error, Result};

/// How many files a guest meets in a second at most. With half of what is left, it may do so until
/// the number of inodes is checked again. More checks would keep the host of many idle pods busy.
const PACE: u64 = 50_000;
/// The same of an emulated guest, which met 10,000. Each check costs its host half a millisecond.
const EMULATED_PACE: u64 = 25_000;
/// The name that CPUID gives QEMU as an emulator (target/i386/cpu.c, leaf 0x4000_0000).
const EMULATED: &[u8; 12] = b"TCGTCGTCGTCG";
/// The shortest time between two checks.
const LEAST: Duration = Duration::from_millis(50);
/// With a limit this high only memory limits the guest, and the number need not be watched.
const PLENTY: u64 = 500_000;
/// How long to wait if forgetting does not help, since so many files are in use.
const PAUSE: Duration = Duration::from_secs(1);
/// The files that begin with the number of inodes that the kernel knows: those of shares alone
/// (Documentation/ABI/testing/sysfs-kernel-slab), or those of all file systems (proc_sys_fs(5)).
/// Only a kernel with CONFIG_SLUB_DEBUG has the first one.
const INODES: [&str; 2] = [
    "/sys/kernel/slab/fuse_inode/objects",
    "/proc/sys/fs/inode-nr",
];

/// From now on, makes the kernel forget unused files when it knows more than half of `max` inodes.
/// 0 means no limit. There must be a share already.
///
/// All shares of a pod have the same limit, so the first call decides.
pub fn keep_below(max: u64) {
    static WATCHING: AtomicBool = AtomicBool::new(false);
    if max == 0 || max >= PLENTY || WATCHING.swap(true, Ordering::Relaxed) {
        return;
    }
    let Some(table) = INODES.iter().find_map(|path| File::open(path).ok()) else {
        return;
    };
    let pace = match is_emulated() {
        true => EMULATED_PACE,
        false => PACE,
    };
    tokio::spawn(async move {
        loop {
            let known = inodes(&table);
            if known <= max / 2 {
                tokio::time::sleep(next_check(known, max, pace)).await;
                continue;
            }
            forget().await;
            if inodes(&table) > max / 2 {
                tokio::time::sleep(PAUSE).await;
            }
        }
    });
}

fn is_emulated() -> bool {
    let leaf = __cpuid(0x4000_0000);
    [leaf.ebx, leaf.ecx, leaf.edx]
        .map(u32::to_le_bytes)
        .concat()
        == EMULATED
}

/// Returns how long it takes at least until half of what is left is used up.
fn next_check(known: u64, max: u64, pace: u64) -> Duration {
    let left = max.saturating_sub(known) / 2;
    Duration::from_millis(left * 1000 / pace).max(LEAST)
}

/// Returns how many inodes the kernel knows. 0 if it does not say.
fn inodes(table: &File) -> u64 {
    let mut text = [0; 64];
    let length = table.read_at(&mut text, 0).unwrap_or(0);
    known(&String::from_utf8_lossy(&text[..length]))
}

/// Makes the kernel forget directory entries that are not in use. While a share has an entry for
/// what the host mounted below it, that mount stays busy on the host, and there is no call to drop
/// a single entry.
pub fn forget_entries() -> Result<()> {
    let path = "/proc/sys/vm/drop_caches";
    fs::write(path, "2").map_err(Error::file("write", path))
}

async fn forget() {
    // Takes as long as there are entries to forget.
    let forgotten = tokio::task::spawn_blocking(forget_entries).await;
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
    use super::*;

    #[test]
    fn next_check_comes_before_a_guest_knows_too_many() {
        let ms = |known| next_check(known, 20_000, PACE).as_millis();
        assert_eq!(ms(0), 200);
        assert_eq!(ms(10_000), 100);
        assert_eq!(ms(19_990), 50);
        assert_eq!(ms(30_000), 50);
        assert_eq!(next_check(0, 20_000, EMULATED_PACE).as_millis(), 400);
    }

    #[test]
    fn inodes_are_the_first_number() {
        assert_eq!(known("21340 N0=21340\n"), 21340);
        assert_eq!(known("10337\t358\n"), 10337);
        assert_eq!(known(""), 0);
    }
}
