//! `caisson skill attach` and `detach`: ask the pod's shim, through its socket in the state folder,
//! to do it.

use std::time::Duration;

use anyhow::{bail, Result};
use caisson_node::{
    config::NodeConfig,
    control::{Answer, Request},
};

use crate::ask;

/// The time that plugging and mounting may take, in addition to fetching a skill.
const LIMIT: Duration = Duration::from_secs(60);

/// Has the shim carry out a request. Prints where the skill is or was, one line for each container.
pub fn ask(config: &NodeConfig, pod: &str, request: &Request) -> Result<()> {
    let limit = LIMIT + Duration::from_secs(config.skills.fetch_timeout_secs);
    let (_, Answer::Done { target, containers }) = ask::ask(config, pod, request, limit)? else {
        bail!("pod {pod}: its shim answers something else");
    };
    for container in containers {
        println!("{container} {}", target.display());
    }
    Ok(())
}
