//! `caisson egress`: prints what a pod may open connections to, and what came of it.

use std::time::Duration;

use anyhow::{bail, Result};
use caisson_node::{
    config::NodeConfig,
    control::{Answer, Request},
};

use crate::ask;

/// The time limit for the shim's answer.
const LIMIT: Duration = Duration::from_secs(10);

/// Prints the egress and the number of frames that were dropped, one line each.
pub fn run(config: &NodeConfig, pod: &str) -> Result<()> {
    let (_, Answer::Egress { allows, denied }) = ask::ask(config, pod, &Request::Egress, LIMIT)?
    else {
        bail!("pod {pod}: its shim answers something else");
    };
    println!("{allows}\ndenied: {denied}");
    Ok(())
}
