//! Asks the shim of the pod that an operator means, through its socket in the state folder.

use std::time::Duration;

use anyhow::{bail, Context, Result};
use caisson_node::{
    config::NodeConfig,
    control::{self, Answer, Request},
    state::{self, Found},
};

/// Returns the answer of the shim of a pod that is named by id or name, and the pod. The limit is
/// for the answer. An answer that something failed is an error.
pub fn ask(
    config: &NodeConfig,
    pod: &str,
    request: &Request,
    limit: Duration,
) -> Result<(Found, Answer)> {
    let found = running(config, pod)?;
    match control::ask(&config.state_dir, &found.id, request, limit)? {
        Answer::Failed(reason) => bail!("pod {pod}: {reason}"),
        answer => Ok((found, answer)),
    }
}

/// Returns the pod that runs and is named by id or name.
fn running(config: &NodeConfig, wanted: &str) -> Result<Found> {
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
    Ok(first)
}
