//! Hands a new pod over to a member of the pool.

use std::{path::PathBuf, time::Duration};

use caisson_node::{
    control::{self, Answer, Claim, Request},
    host::chain::chain,
    pool,
};
use caisson_oci::NodeConfig;
use containerd_shim::{cgroup::set_cgroup_and_oom_score, Flags};

/// The environment variable with the address of containerd's socket for events.
pub const TTRPC_ADDRESS: &str = "TTRPC_ADDRESS";

/// The time limit for a member to take a pod over. It has nothing to do but that.
const LIMIT: Duration = Duration::from_secs(1);

/// Makes a member of the pool the shim of a pod, and returns whether there was one. A member that
/// does not answer is killed: it may not serve the pod later, beside another shim.
pub fn claim(config: &NodeConfig, flags: &Flags, socket: &str, bundle: PathBuf) -> bool {
    if config.pool.size == 0 {
        return false;
    }
    let build = pool::build(config);
    let mut members = pool::members(&config.state_dir);
    members.retain(|id| pool::is_ready(&config.state_dir, id));
    for id in members {
        let Some(pid) = caisson_node::state::shim_pid(&config.state_dir.join(&id)) else {
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
        });
        match control::ask(&config.state_dir, &id, &request, LIMIT) {
            Ok(Answer::Claimed) => {
                if let Err(error) = set_cgroup_and_oom_score(pid) {
                    log::info!("place the shim: {error}");
                }
                return true;
            }
            // Another pod was quicker, or it is stale and ends.
            Ok(_) => {}
            Err(error) => {
                log::info!("{id} of the pool does not answer: {}", chain(&error));
                pool::remove(&config.state_dir, &id);
            }
        }
    }
    false
}
