//! `caisson skill attach` and `detach`: ask the pod's shim, through its socket in the state folder,
//! to do it.

use std::time::Duration;

use anyhow::{bail, Result};
use caisson_node::{
    config::NodeConfig,
    control::{self, Answer, Request},
};

use crate::find;

/// The time that plugging and mounting may take, in addition to fetching a skill.
const LIMIT: Duration = Duration::from_secs(60);

/// Has the shim carry out a request. Prints where the skill is or was, one line for each container.
pub fn ask(config: &NodeConfig, pod: &str, request: &Request) -> Result<()> {
    let id = find::running(config, pod)?;
    let limit = LIMIT + Duration::from_secs(config.skills.fetch_timeout_secs);
    match control::ask(&config.state_dir, &id, request, limit)? {
        Answer::Done { target, containers } => {
            for container in containers {
                println!("{container} {}", target.display());
            }
            Ok(())
        }
        Answer::Failed(reason) => bail!("pod {pod}: {reason}"),
        Answer::Trace(_) => bail!("pod {pod}: its shim answers something else"),
    }
}
