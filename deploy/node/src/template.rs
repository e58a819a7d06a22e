//! `caisson template`: makes, lists and removes the templates that VMs start from.

use anyhow::{Context, Result};
use caisson_node::{accelerator, config::NodeConfig, templates};
use clap::Subcommand;

#[derive(Subcommand)]
pub enum Command {
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

pub fn run(command: Command, config: &NodeConfig) -> Result<()> {
    match command {
        Command::Build => build(config),
        Command::List => list(config),
        Command::Remove { names } => names
            .iter()
            .try_for_each(|name| Ok(templates::remove(config, name)?)),
    }
}

fn build(config: &NodeConfig) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("start threads")?;
    runtime.block_on(async {
        let accelerator = accelerator::choose(config).await?;
        let spec = templates::bare(config, accelerator)?;
        templates::make(config, &accelerator::qemu(config), &spec).await?;
        Ok(())
    })
}

fn list(config: &NodeConfig) -> Result<()> {
    println!(
        "{:<18} {:>8} {:<8} {:<36} STATE",
        "NAME", "MIB", "VERSION", "MACHINE"
    );
    for template in templates::list(config)? {
        let state = match templates::is_whole(config, &template) {
            _ if template.about.failed.is_some() => {
                format!(
                    "failed: {}",
                    template.about.failed.clone().unwrap_or_default()
                )
            }
            Ok(true) => "whole".to_owned(),
            Ok(false) => "damaged: remove it".to_owned(),
            Err(error) => error.to_string(),
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
