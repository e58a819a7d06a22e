//! `caisson skill fetch` and `push`: copy skills between the node's store and the sources that its
//! configuration names.

mod fetch;
mod source;

use anyhow::{Context, Result};
use caisson_node::{
    config,
    skills::{Skill, SkillStore},
};
use caisson_oci::{annotations::SkillRef, config::NodeConfig};
use clap::Subcommand;

#[derive(Subcommand)]
pub enum Command {
    /// Gets a skill from the configured sources, where the store does not have it
    Fetch {
        /// sha256:HEX or NAME@VERSION
        skill: SkillRef,
        /// Asks this source only; the skill is then for the namespaces that may use the source
        #[arg(long, value_name = "NAME")]
        source: Vec<String>,
    },
    /// Publishes a skill of the store to a configured source
    Push {
        /// sha256:HEX or NAME@VERSION
        skill: SkillRef,
        /// Which of [skills.sources]
        source: String,
    },
}

/// Runs the command. Prints `sha256:HEX` of the skill.
pub async fn run(command: &Command) -> Result<()> {
    let config = config::load()?;
    let store = SkillStore::new(&config.store_dir);
    let skill = match command {
        Command::Fetch { skill, source } => {
            fetch::fetch(&store, &config.skills, skill, source).await?
        }
        Command::Push { skill, source } => push(&store, &config, skill, source).await?,
    };
    println!("sha256:{}", skill.digest);
    Ok(())
}

async fn push(
    store: &SkillStore,
    config: &NodeConfig,
    wanted: &SkillRef,
    source: &str,
) -> Result<Skill> {
    let skill = store.get(wanted)?;
    // A skill that is damaged here must not be published elsewhere.
    store.verify(&skill)?;
    let configured = config.skills.sources.get(source);
    let to = configured.with_context(|| format!("no source {source:?} in [skills.sources]"))?;
    // Each node records for itself which source it has the skill from.
    let published = Skill {
        fetched_from: None,
        ..skill.clone()
    };
    let pushed = async {
        let to = source::open(source, to)?;
        to.put(&published, &store.path(&skill)).await
    };
    let pushed = pushed.await;
    pushed.with_context(|| format!("push {} to {source}", skill.name))?;
    Ok(skill)
}
