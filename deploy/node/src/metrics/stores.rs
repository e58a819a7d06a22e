//! What the node's stores hold: skills, homes, templates, and the memory of the pool.

use std::path::Path;

use anyhow::Result;
use caisson_node::{
    cgroup, config::NodeConfig, homes::HomeStore, pool, skills::SkillStore, templates,
};

use super::family::Family;

/// Returns the metrics of the stores.
pub fn families(config: &NodeConfig) -> Result<Vec<Family>> {
    let skills = SkillStore::new(&config.store_dir).list()?;
    let stored: u64 = skills.iter().map(|skill| skill.size).sum();
    let templates = templates::list(config)?;
    let saved: u64 = templates.iter().map(|template| template.used).sum();
    let usable = templates.iter().filter(|t| t.about.failed.is_none());
    let charged = cgroup::charged_memory(Path::new(pool::CGROUP))?;
    let one = |name, help, value| Family::gauge(name, help).with(&[], value);
    let mut families = vec![
        one(
            "caisson_skills",
            "Skills in the node's store.",
            skills.len() as f64,
        ),
        one(
            "caisson_skill_store_bytes",
            "Size of the skills in the node's store.",
            stored as f64,
        ),
        one(
            "caisson_templates",
            "Templates that VMs can start from.",
            usable.count() as f64,
        ),
        one(
            "caisson_template_bytes",
            "Space that templates take on the node's disk.",
            saved as f64,
        ),
        one(
            "caisson_pool_memory_bytes",
            "Memory of the VMs that wait for pods, which no pod accounts for.",
            charged as f64,
        ),
    ];
    families.extend(homes(config)?);
    Ok(families)
}

fn homes(config: &NodeConfig) -> Result<Vec<Family>> {
    let store = HomeStore::new(config);
    let (usage, stored) = (store.usage()?, store.stored()?);
    let persistent = usage.node.saturating_sub(usage.ephemeral);
    let mut budget = Family::gauge(
        "caisson_home_budget_bytes",
        "What the capacities of all homes may add up to (homes.node_budget_mib), if that is limited.",
    );
    if let Some(mib) = store.limits().node() {
        budget = budget.with(&[], mib as f64 * f64::from(1 << 20));
    }
    Ok(vec![
        Family::gauge("caisson_homes", "Persistent homes of the node.")
            .with(&[], stored.count as f64),
        Family::gauge(
            "caisson_home_capacity_bytes",
            "Capacity of the node's homes, those that pods have claimed included.",
        )
        .with(&[("kind", "persistent")], persistent as f64)
        .with(&[("kind", "ephemeral")], usage.ephemeral as f64),
        Family::gauge(
            "caisson_home_used_bytes",
            "Space that persistent homes take on the node's disk.",
        )
        .with(&[], stored.used as f64),
        budget,
    ])
}
