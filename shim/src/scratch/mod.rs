//! Keeps what a pod writes on disks of its VM, instead of in folders that it shares with the host:
//! the root of a container, and an emptyDir.
//!
//! A disk is an ext4 file system in a sparse file of the host, [`image`]. The file lies in the very
//! folder that would otherwise be shared: the upper layer of a container's snapshot, or the
//! emptyDir. So containerd and the kubelet count what the disk takes, and remove it when they
//! remove the folder. The host makes the file system, and never mounts or reads it afterwards.

use std::{collections::HashMap, path::PathBuf};

use caisson_oci::{scratch::Fit, volume::Found};

mod image;
pub mod root;
mod volumes;

pub use image::is_there;
pub use volumes::Volumes;

/// The most disks of a VM that are made for this. A VM has 31 slots; seven are for what every VM
/// has, and the rest for skills, of which each is a disk too.
const MAX_DISKS: usize = 12;

/// Returns what a place fits, in a VM that has `disks` disks.
pub fn with_room(fit: Fit, disks: usize) -> Fit {
    match fit {
        Fit::Free if disks >= MAX_DISKS => Fit::No("would be more than the 12th disk of its VM"),
        fit => fit,
    }
}

/// Leaves as many of the new places as there is room for, in a VM that has `disks` disks.
pub fn leave_room(found: &mut HashMap<PathBuf, Found>, mut disks: usize) {
    let free = found.iter_mut().filter(|(_, found)| found.fit == Fit::Free);
    let mut free: Vec<_> = free.collect();
    free.sort_by_key(|(path, _)| *path);
    for (_, found) in free {
        found.fit = with_room(found.fit, disks);
        disks += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_beyond_the_last_disk_fit_none() {
        let found = |fit| Found {
            fit,
            ..Found::default()
        };
        let mut all: HashMap<PathBuf, Found> = (0..4)
            .map(|number| (format!("/{number}").into(), found(Fit::Free)))
            .collect();
        all.insert("/0/made".into(), found(Fit::Made));
        leave_room(&mut all, MAX_DISKS - 2);
        let fit = |path: &str| all[&PathBuf::from(path)].fit;
        assert_eq!(
            [fit("/0"), fit("/1"), fit("/0/made")],
            [Fit::Free, Fit::Free, Fit::Made]
        );
        assert!(matches!([fit("/2"), fit("/3")], [Fit::No(_), Fit::No(_)]));
    }
}
