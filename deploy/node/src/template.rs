//! `caisson template`: makes, lists and removes the templates that VMs start from.

use std::process::{Command, Stdio};

use anyhow::{ensure, Context, Result};
use caisson_node::{config::NodeConfig, templates};
use clap::Subcommand;

use crate::shim::Launch;

#[derive(Subcommand)]
pub enum Action {
    /// Makes the template of this node's VMs, unless there is one
    Build,
    /// Lists the templates of this node, and whether each is as it was made
    List,
    /// Removes templates; VMs that started from them go on
    Remove {
        /// The name in the list
        #[arg(required = true)]
        names: Vec<String>,
    },
}

pub fn run(action: Action, config: &NodeConfig) -> Result<()> {
    match action {
        Action::Build => {
            build()?;
            list(config)
        }
        Action::List => list(config),
        Action::Remove { names } => names
            .iter()
            .try_for_each(|name| Ok(templates::remove(config, name)?)),
    }
}

/// Has the shim make it, as it does for a pod.
fn build() -> Result<()> {
    let program = Launch::program();
    let mut build = Command::new(&program);
    let built = build
        .args(["-id", "template", templates::ACTION])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {}", program.display()))?;
    let said = String::from_utf8_lossy(&built.stderr);
    ensure!(built.status.success(), "{}", said.trim());
    Ok(())
}

fn list(config: &NodeConfig) -> Result<()> {
    println!(
        "{:<18} {:>8} {:<8} {:<36} STATE",
        "NAME", "MIB", "VERSION", "MACHINE"
    );
    for template in templates::list(config)? {
        let state = match (&template.about.failed, &template.about.untranslated) {
            (Some(why), _) => format!("failed: {why}"),
            (None, untranslated) => match (templates::is_whole(config, &template), untranslated) {
                (Err(error), _) => error.to_string(),
                (Ok(false), _) => "damaged: remove it".to_owned(),
                (Ok(true), Some(why)) => format!("whole, without translations: {why}"),
                (Ok(true), None) => "whole".to_owned(),
            },
        };
        let templates::Template { key, about, used } = template;
        println!(
            "{key:<18} {:>8} {:<8} {:<36} {state}",
            used >> 20,
            about.version,
            about.shape
        );
    }
    Ok(())
}
