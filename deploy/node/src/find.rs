//! Finds the pod that an operator means.

use anyhow::{bail, Context, Result};
use caisson_node::{config::NodeConfig, state};

/// Returns the id of a pod that runs and is named by id or name.
pub fn running(config: &NodeConfig, wanted: &str) -> Result<String> {
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
