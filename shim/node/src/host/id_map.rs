//! Maps the owners of files, which are different in a pod than on the host (`hostUsers: false`), by
//! mounts with a user namespace (mount_setattr(2), Linux 5.12; the kernel decides for which file
//! systems).

use std::{io, os::fd::OwnedFd};

use caisson_oci::IdMap;
use caisson_vmm::user_namespace;

/// Creates a user namespace with these mappings.
pub fn namespace(ids: &IdMap) -> io::Result<OwnedFd> {
    user_namespace::with_maps(&ids.uid_map(), &ids.gid_map())
}

/// Removes `uidmap=` and `gidmap=` from a mount's options and returns a user namespace with their
/// mappings. No file system knows these options; containerd's snapshotters set them
/// (core/mount/mount_linux.go). Fails with a reason if one of the two is invalid or missing.
pub fn take(options: &mut Vec<String>) -> Result<Option<io::Result<OwnedFd>>, String> {
    let mut maps = [None, None];
    for (map, key) in maps.iter_mut().zip(["uidmap=", "gidmap="]) {
        if let Some(at) = options.iter().position(|option| option.starts_with(key)) {
            *map = Some(lines(&options.remove(at)[key.len()..])?);
        }
    }
    match maps {
        [None, None] => Ok(None),
        [Some(uids), Some(gids)] => Ok(Some(user_namespace::with_maps(&uids, &gids))),
        _ => Err("one of uidmap and gidmap is missing".to_owned()),
    }
}

/// Converts `0:100000:65536,...` to the format of `/proc/<pid>/uid_map`.
fn lines(text: &str) -> Result<String, String> {
    let mut lines = String::new();
    for part in text.split(',') {
        let numbers: Vec<u32> = part.split(':').map_while(|n| n.parse().ok()).collect();
        match (&numbers[..], part.matches(':').count()) {
            ([inside, outside, size], 2) => {
                lines.push_str(&format!("{inside} {outside} {size}\n"));
            }
            _ => return Err(format!("{part:?} is no mapping of ids")),
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapping_of_a_mount_option_is_that_of_a_file() {
        assert_eq!(lines("0:100000:65536").unwrap(), "0 100000 65536\n");
        assert_eq!(lines("0:1:2,3:4:5").unwrap(), "0 1 2\n3 4 5\n");
        for wrong in ["", "0:1", "0:1:2:3", "0:x:1", "-1:0:1"] {
            lines(wrong).unwrap_err();
        }
    }

    #[test]
    fn options_without_mappings_stay_and_half_a_mapping_is_refused() {
        let mut options = vec!["lowerdir=/a".to_owned(), "index=off".to_owned()];
        assert!(take(&mut options).unwrap().is_none());
        assert_eq!(options.len(), 2);
        options.push("uidmap=0:100000:65536".to_owned());
        assert!(take(&mut options).is_err());
    }
}
