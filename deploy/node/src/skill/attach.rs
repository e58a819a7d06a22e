//! `caisson skill attach` and `detach`: ask the pod's shim, through its socket in the state folder,
//! to do it.

use std::time::Duration;

use anyhow::{bail, Context, Result};
use caisson_node::{
    config::NodeConfig,
    control::{self, Answer, Request},
    state,
};

/// The time that plugging and mounting may take, in addition to fetching a skill.
const LIMIT: Duration = Duration::from_secs(60);

/// Has the shim carry out a request. Prints where the skill is or was, one line for each container.
pub fn ask(config: &NodeConfig, pod: &str, request: &Request) -> Result<()> {
    let id = find(config, pod)?;
    let limit = LIMIT + Duration::from_secs(config.skills.fetch_timeout_secs);
    match control::ask(&config.state_dir, &id, request, limit)? {
        Answer::Done { target, containers } => {
            for container in containers {
                println!("{container} {}", target.display());
            }
            Ok(())
        }
        Answer::Failed(reason) => bail!("pod {pod}: {reason}"),
    }
}

/// Returns the id of a pod that is named by id or name.
fn find(config: &NodeConfig, wanted: &str) -> Result<String> {
    let pods = state::list(&config.state_dir)?.into_iter();
    let mut found = pods.filter(|pod| {
        pod.shim.is_some() && (pod.id == wanted || pod.name.as_deref() == Some(wanted))
    });
    let first = found.next();
    let first =
        first.with_context(|| format!("no pod {wanted:?} runs here; see `caisson list`"))?;
    // Two pods have the name while one replaces the other.
    if found.next().is_some() {
        bail!("there are two pods {wanted:?}; say one by its id: see `caisson list`");
    }
    Ok(first.id)
}
