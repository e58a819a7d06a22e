//! `caisson gc`: removes what dead shims and killed `caisson run`s left.

use anyhow::Result;
use caisson_node::{config::NodeConfig, state};

use crate::run::Bundle;

/// Removes what is left, and prints one line for each thing that it removed.
/// What is still running is left alone.
pub fn run(config: &NodeConfig) -> Result<()> {
    for id in Bundle::sweep(config)? {
        println!("removed what `caisson run` left of {id}");
    }
    for pod in state::list(&config.state_dir)? {
        if pod.shim.is_some() {
            continue;
        }
        state::remove(&config.state_dir, &pod.id)?;
        let containers = match &pod.record {
            Ok(Some(record)) => match record.count() {
                (0, 0) => String::new(),
                (live, ended) => format!(" with {} containers", live + ended),
            },
            _ => String::new(),
        };
        println!(
            "removed what a dead shim left of pod {}{containers}",
            pod.id
        );
    }
    Ok(())
}
