//! Obtains the skills that a container asks for: from the store, or with `caisson skill fetch` if
//! they are not there.
//!
//! `[policy]` says which of them a namespace may have. A skill that was fetched for a pod stays
//! with the namespaces of its source. Skills that the operator has added or fetched are for every
//! namespace that `[policy.skills]` names.
//!
//! Another program does the fetching, because the code that speaks to stores and registries is
//! larger than all of the shim, which stays in memory beside each pod.

use std::{process::Stdio, time::Duration};

use caisson_oci::{
    annotations::{SkillRef, SkillWish},
    policy::{Denied, Policy},
    NodeConfig,
};
use futures::future::try_join_all;
use tokio::{process::Command, time::timeout};

use super::{error::SkillError, manifest::Skill, store::SkillStore};
use crate::{
    counters::{Event, SkillRequest},
    host::program,
};

/// The operator's command, which is installed beside the shim.
const PROGRAM: &str = "caisson";
/// The maximum number of bytes kept of its output.
const MAX_MESSAGE: usize = 2000;

/// The party that asks for skills.
#[derive(Debug, Clone, Copy)]
pub enum Asker<'a> {
    /// A pod of this namespace, which the node's policy knows.
    Namespace(&'a str),
    /// The administrator of the node.
    Operator,
}

/// Obtains the skills of a container, each with the name that the container gives it. Those that
/// are missing are all fetched at the same time. `count` gets what came of each.
pub async fn obtain(
    store: &SkillStore,
    config: &NodeConfig,
    wishes: &[SkillWish],
    asker: Asker<'_>,
    count: impl Fn(Event),
) -> Result<Vec<(Option<String>, Skill)>, SkillError> {
    let obtained = wishes.iter().map(|wish| async {
        let found = one(store, config, &wish.skill, asker).await;
        match &found {
            Ok((_, None)) => count(Event::Skill(SkillRequest::Hit)),
            Ok((_, Some(bytes))) => {
                count(Event::Skill(SkillRequest::Fetched));
                count(Event::SkillFetched(*bytes));
            }
            Err(_) => count(Event::Skill(SkillRequest::Failed)),
        }
        Ok((wish.name.clone(), found?.0))
    });
    try_join_all(obtained).await
}

/// Obtains one skill. Returns its size in bytes too, if it had to be fetched.
async fn one(
    store: &SkillStore,
    config: &NodeConfig,
    wanted: &SkillRef,
    asker: Asker<'_>,
) -> Result<(Skill, Option<u64>), SkillError> {
    let (skill, fetched) = match store.get(wanted) {
        Err(SkillError::Missing { .. }) if !config.skills.sources.is_empty() => {
            let sources = asker.sources(config, wanted)?;
            let limit = Duration::from_secs(config.skills.fetch_timeout_secs);
            fetch(wanted, &sources, limit).await?;
            let skill = store.get(wanted)?;
            let size = skill.size;
            (skill, Some(size))
        }
        found => (found?, None),
    };
    asker.check(&config.policy, wanted, &skill)?;
    Ok((skill, fetched))
}

impl Asker<'_> {
    /// The sources that may be asked for a skill; an empty list stands for all of them. Refuses the
    /// skill if the policy allows none of the configured sources.
    fn sources(self, config: &NodeConfig, wanted: &SkillRef) -> Result<Vec<String>, SkillError> {
        let Self::Namespace(namespace) = self else {
            return Ok(Vec::new());
        };
        if let SkillRef::Version { name, version } = wanted {
            let allowed = config
                .policy
                .check_skill(name, Some(version), None, namespace);
            allowed.map_err(|denied| not_allowed(wanted, denied))?;
        }
        let mut refused = None;
        let mut allowed = Vec::new();
        for source in config.skills.sources.keys() {
            match config.policy.check_source(source, namespace) {
                Ok(()) => allowed.push(source.clone()),
                Err(denied) => refused = Some((source, denied)),
            }
        }
        match (allowed.is_empty(), refused) {
            (true, Some((source, denied))) => Err(SkillError::NotFetched {
                wanted: wanted.to_string(),
                reason: format!(
                    "is not in the node's store, and to fetch it from {source} {denied}"
                ),
            }),
            _ => Ok(allowed),
        }
    }

    /// Refuses a skill that the policy reserves for other namespaces.
    fn check(self, policy: &Policy, wanted: &SkillRef, skill: &Skill) -> Result<(), SkillError> {
        let Self::Namespace(namespace) = self else {
            return Ok(());
        };
        let version = skill.version.as_deref();
        policy
            .check_skill(&skill.name, version, Some(&skill.digest), namespace)
            .map_err(|denied| not_allowed(wanted, denied))?;
        let Some(source) = &skill.fetched_from else {
            return Ok(());
        };
        let allowed = policy.check_source(source, namespace);
        allowed.map_err(|denied| SkillError::NotFrom {
            wanted: wanted.to_string(),
            from: source.clone(),
            denied,
        })
    }
}

fn not_allowed(wanted: &SkillRef, denied: Denied) -> SkillError {
    SkillError::NotAllowed {
        wanted: wanted.to_string(),
        denied,
    }
}

/// Fetches a skill from these sources, or from any if the list is empty. What has arrived by
/// `limit` is kept, and the next fetch goes on from there.
async fn fetch(wanted: &SkillRef, sources: &[String], limit: Duration) -> Result<(), SkillError> {
    let failed = |reason: String| SkillError::NotFetched {
        wanted: wanted.to_string(),
        reason,
    };
    let program = program::beside(PROGRAM);
    let mut command = Command::new(&program);
    command
        .args(["skill", "fetch", &wanted.to_string()])
        .args(sources.iter().map(|source| format!("--source={source}")))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let child = command
        .spawn()
        .map_err(|error| failed(format!("start {}: {error}", program.display())))?;
    log::info!(skill:% = wanted; "fetching");
    let Ok(ended) = timeout(limit, child.wait_with_output()).await else {
        return Err(failed(format!(
            "not within {} s (skills.fetch_timeout_secs); the next try goes on from there",
            limit.as_secs()
        )));
    };
    let output = ended.map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.trim().lines().last().unwrap_or_default();
    let last = last.strip_prefix("caisson: ").unwrap_or(last);
    Err(failed(match last {
        "" => format!("caisson skill fetch ended with {}", output.status),
        last => last.chars().take(MAX_MESSAGE).collect(),
    }))
}
