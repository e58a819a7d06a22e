//! Names the members of the node's pool: VMs that wait for their pods, each with a shim of its own.
//!
//! A member has a state folder as a pod has one, whose name begins with `pool-`. When a pod claims
//! it, the folder takes the pod's name. The shim's module `pool` has the rest.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use caisson_oci::NodeConfig;
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use crate::{
    accelerator, control,
    host::{
        chain::chain,
        error::{FileError, OnFile},
        folder::make_private,
        random,
        size::{host_cpus, host_memory_mib},
    },
    state,
};

/// The cgroup of all members. What a member used there before its pod claimed it stays charged to
/// this cgroup.
pub const CGROUP: &str = "/caisson-pool";

const PREFIX: &str = "pool-";
const LOCK: &str = ".pool";

/// Returns an id for a new member.
pub fn new_id() -> Result<String, FileError> {
    let mut bytes = [0; 8];
    random::fill(&mut bytes)?;
    Ok(format!("{PREFIX}{}", hex::encode(bytes)))
}

/// Whether a state folder's name is a member's.
pub fn is_member(id: &str) -> bool {
    let number = id.strip_prefix(PREFIX).unwrap_or_default();
    number.len() == 16 && number.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Returns the ids of the members that live, sorted, and removes what is left of the others.
pub fn members(state_dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(state_dir) else {
        return Vec::new();
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    let mut ids: Vec<_> = names
        .filter_map(|name| name.into_string().ok())
        .filter(|name| is_member(name))
        .collect();
    ids.retain(|id| {
        let lives = state::lives(state_dir, id);
        if !lives {
            remove(state_dir, id);
        }
        lives
    });
    ids.sort();
    ids
}

/// Whether a member is ready for a pod. Before, it is being born.
pub fn is_ready(state_dir: &Path, id: &str) -> bool {
    is_member(id) && state_dir.join(id).join(control::SOCKET).exists()
}

/// Ends a member, whatever it is doing, and removes what belongs to it.
pub fn remove(state_dir: &Path, id: &str) {
    if let Err(error) = state::remove(state_dir, id) {
        log::info!("{id} of the pool is left behind: {}", chain(&error));
    }
}

/// Identifies all that a member depends on but the pod's wishes: the programs, the guest image and
/// the shape of the VM. A member that was born with another value is stale.
pub fn build(config: &NodeConfig) -> String {
    let program = fs::metadata("/proc/self/exe").map(|meta| {
        // The same file, with the same content.
        (meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec())
    });
    let all = format!(
        "{program:?} {} {:?} {:?} {:?} {} {}",
        accelerator::key(config),
        config.hypervisor,
        config.guest,
        config.vm,
        host_cpus(),
        host_memory_mib(),
    );
    hex::encode(Sha256::digest(all))
}

/// Waits until no other member is being born. Until the lock is dropped, none will be.
pub fn begin_birth(state_dir: &Path) -> Result<Flock<fs::File>, FileError> {
    let path = state_dir.join(LOCK);
    make_private(state_dir).map_err(FileError::file("create state folder", state_dir))?;
    let file = fs::File::create(&path).map_err(FileError::file("open", &path))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| FileError::file("lock", &path)(io::Error::from(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_of_a_member_is_told_from_a_pod_s() {
        assert!(is_member(&new_id().unwrap()));
        for id in ["pool-1", "pool", "web", "pool-00112233445566zz"] {
            assert!(!is_member(id), "{id}");
        }
    }

    #[test]
    fn member_whose_shim_is_gone_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let id = new_id().unwrap();
        fs::create_dir(dir.path().join(&id)).unwrap();
        fs::create_dir(dir.path().join("web")).unwrap();
        assert!(members(dir.path()).is_empty());
        assert!(!dir.path().join(&id).exists());
        assert!(dir.path().join("web").exists());
    }
}
