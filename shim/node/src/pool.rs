//! Names the members of the node's pool: VMs that wait for their pods, each with a shim of its own.
//!
//! A member has a state folder as a pod has one, whose name begins with `pool-`. When a pod claims
//! it, the folder takes the pod's name. The shim's module `pool` has the rest.

use std::{collections::BTreeMap, fs, io, os::unix::fs::MetadataExt, path::Path};

use caisson_oci::{config::Vm, NodeConfig};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use crate::{
    accelerator,
    config::PRESET_ENV,
    control,
    host::{
        chain::chain,
        error::{FileError, OnFile},
        folder::make_private,
        random,
        size::{host_cpus, host_memory_mib},
    },
    state, templates,
};

/// The cgroup of all members. Each has one of its own below it.
pub const CGROUP: &str = "/caisson-pool";
/// The most memory that a member may use before its pod claims it, in bytes: that of the guest, and
/// as much again for the processes of its VM. A member that needs more is killed.
pub const MEMBER_LIMIT: u64 = 2 * (templates::SIZE.memory_mib << 20);

const PREFIX: &str = "pool-";
/// The name of the lock in the folder of all state.
pub const LOCK: &str = ".pool";
/// The environment variables of one shim (its preset, and those of containerd, pkg/shim/util.go,
/// `Command`) and of one run of containerd (systemd.exec(5)).
const OF_ONE_RUN: [&str; 7] = [
    PRESET_ENV,
    "TTRPC_ADDRESS",
    "GRPC_ADDRESS",
    "NAMESPACE",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "SYSTEMD_EXEC_PID",
];

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

/// Returns the ids of the members that live, sorted.
pub fn members(state_dir: &Path) -> Vec<String> {
    let mut ids = folders(state_dir);
    ids.retain(|id| state::lives(state_dir, id));
    ids
}

/// Removes what is left of members that are dead. No member may be being born meanwhile, see
/// [`begin_birth`].
pub fn remove_dead(state_dir: &Path) {
    for id in folders(state_dir) {
        if !state::lives(state_dir, &id) {
            remove(state_dir, &id);
        }
    }
}

fn folders(state_dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(state_dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut ids: Vec<_> = names.filter(|name| is_member(name)).collect();
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

/// Ends all members.
pub fn remove_all(state_dir: &Path) {
    for id in members(state_dir) {
        remove(state_dir, &id);
    }
}

/// Identifies all that a member depends on but the pod's wishes: the programs, the guest image, the
/// shape of the VM, and the surroundings that its shim has from the process that bore it. A member
/// with another value than the process that asks for it is stale. For a preset with other settings
/// of these, the value is another too: the node's members don't fit its pods.
pub fn build(config: &NodeConfig) -> String {
    let program = fs::metadata("/proc/self/exe").map(|meta| {
        // The same file, with the same content.
        (meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec())
    });
    let cgroups = fs::read_to_string("/proc/self/cgroup");
    let namespaces = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"]
        .map(|name| fs::read_link(format!("/proc/self/ns/{name}")));
    let environment: BTreeMap<_, _> = std::env::vars_os()
        .filter(|(name, _)| !OF_ONE_RUN.iter().any(|of_one| name == of_one))
        .collect();
    let vm = Vm {
        // A pod's containers come after the claim.
        limit_cpus: None,
        limit_memory_mib: None,
        ..config.vm.clone()
    };
    let all = format!(
        "{program:?} {cgroups:?} {namespaces:?} {environment:?} {} {:?} {:?} {:?} {} {}",
        accelerator::key(config),
        config.hypervisor,
        config.guest,
        vm,
        host_cpus(),
        host_memory_mib(),
    );
    hex::encode(Sha256::digest(all))
}

/// Takes the right to bear a member, until the lock is dropped. `None` if another process has it.
pub fn begin_birth(state_dir: &Path) -> Result<Option<Flock<fs::File>>, FileError> {
    let path = state_dir.join(LOCK);
    make_private(state_dir).map_err(FileError::file("create state folder", state_dir))?;
    let file = fs::File::create(&path).map_err(FileError::file("open", &path))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(FileError::file("lock", &path)(io::Error::from(error))),
    }
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
    fn build_is_another_where_the_vm_is_and_not_where_the_policy_is() {
        let text = "[presets.vm.vm]\nmax_memory_mib = 1024\n\
                    [presets.limits]\nvm.limit_cpus = 1\npolicy.privileges = []";
        let node = NodeConfig::parse(&[("c".to_owned(), text.to_owned())]).unwrap();
        let of = |preset| build(&node.with_preset(preset).unwrap());
        assert_eq!(of("limits"), build(&node));
        assert_ne!(of("vm"), build(&node));
    }

    #[test]
    fn member_whose_shim_is_gone_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let id = new_id().unwrap();
        fs::create_dir(dir.path().join(&id)).unwrap();
        fs::create_dir(dir.path().join("web")).unwrap();
        assert!(members(dir.path()).is_empty());
        remove_dead(dir.path());
        assert!(!dir.path().join(&id).exists());
        assert!(dir.path().join("web").exists());
    }

    #[test]
    fn members_are_born_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = begin_birth(dir.path()).unwrap();
        assert!(first.is_some());
        assert!(begin_birth(dir.path()).unwrap().is_none());
        drop(first);
        assert!(begin_birth(dir.path()).unwrap().is_some());
    }
}
