//! Hands a new pod over to a member of the pool.

use std::{io, path::PathBuf, time::Duration};

use caisson_node::{
    control::{self, Answer, Claim, Request},
    host::{error::FileError, processes::kill_and_wait},
    pool, state,
};
use caisson_oci::NodeConfig;
use containerd_shim::{cgroup::set_cgroup_and_oom_score, Flags};

/// The environment variable with the address of containerd's socket for events.
pub const TTRPC_ADDRESS: &str = "TTRPC_ADDRESS";

/// The time limit for a member to take a pod over. It has nothing to do but that.
const LIMIT: Duration = Duration::from_secs(1);

/// Makes a member of the pool the shim of a pod, and returns whether there was one. `config` is the
/// pod's, which differs from the node's if the pod has a preset.
///
/// A member that does not answer in time is killed, with what it may have done for the pod by then:
/// it may not serve the pod later, beside another shim.
pub fn claim(
    node: &NodeConfig,
    config: &NodeConfig,
    flags: &Flags,
    socket: &str,
    bundle: PathBuf,
) -> bool {
    if config.pool.size == 0 {
        return false;
    }
    let state_dir = &config.state_dir;
    let (build, fits) = (pool::build(node), pool::build(config));
    let mut members = pool::members(state_dir);
    members.retain(|id| pool::is_ready(state_dir, id));
    for id in members {
        let Some(pid) = state::shim_pid(&state_dir.join(&id)) else {
            continue;
        };
        let request = Request::Claim(Claim {
            id: flags.id.clone(),
            namespace: flags.namespace.clone(),
            bundle: bundle.clone(),
            socket: socket.to_owned(),
            ttrpc_address: std::env::var(TTRPC_ADDRESS).unwrap_or_default(),
            debug: flags.debug,
            build: build.clone(),
            fits: fits.clone(),
            preset: config.preset.clone(),
        });
        match control::ask(state_dir, &id, &request, LIMIT) {
            Ok(Answer::Claimed) => {
                if let Err(error) = set_cgroup_and_oom_score(pid) {
                    log::info!("place the shim: {error}");
                }
                return true;
            }
            Err(error) if is_late(&error) => {
                kill_and_wait(&[pid]);
                // It has one of the two names. What is alive under the pod's is another pod.
                pool::remove(state_dir, &id);
                if !state::lives(state_dir, &flags.id) {
                    pool::remove(state_dir, &flags.id);
                }
            }
            // Another pod was quicker, or it is stale and ends.
            Ok(_) | Err(_) => {}
        }
    }
    false
}

fn is_late(error: &FileError) -> bool {
    matches!(
        error.source.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}
