//! The skills that a container asks for: from the store, and what is not there by way of `caisson skill fetch`.
//!
//! Another program, because what speaks to stores and registries is larger than all of the shim, which stays in memory beside
//! each pod.

use std::{path::PathBuf, process::Stdio, time::Duration};

use caisson_oci::{
    annotations::{SkillRef, SkillWish},
    NodeConfig,
};
use futures::future::try_join_all;
use tokio::{process::Command, time::timeout};

use super::{Skill, SkillError, SkillStore};

/// The operator's command, which is installed beside the shim.
const PROGRAM: &str = "caisson";
/// The most that is kept of what it says, in bytes.
const MAX_MESSAGE: usize = 2000;

/// The skills of a container, each with the name that the container gives it. All that are not there are fetched at once.
pub async fn obtain(
    store: &SkillStore,
    config: &NodeConfig,
    wishes: &[SkillWish],
) -> Result<Vec<(Option<String>, Skill)>, SkillError> {
    let obtained = wishes.iter().map(|wish| async {
        let skill = match store.get(&wish.skill) {
            Err(SkillError::Missing { .. }) if !config.skills.sources.is_empty() => {
                let limit = Duration::from_secs(config.skills.fetch_timeout_secs);
                fetch(&wish.skill, limit).await?;
                store.get(&wish.skill)?
            }
            found => found?,
        };
        Ok((wish.name.clone(), skill))
    });
    try_join_all(obtained).await
}

/// Has a skill fetched. What has come by `limit` is kept, and gone on with the next time.
async fn fetch(wanted: &SkillRef, limit: Duration) -> Result<(), SkillError> {
    let failed = |reason: String| SkillError::NotFetched {
        wanted: wanted.to_string(),
        reason,
    };
    let mut command = Command::new(program());
    command
        .args(["skill", "fetch", &wanted.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let child = command
        .spawn()
        .map_err(|error| failed(format!("start {}: {error}", program().display())))?;
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

fn program() -> PathBuf {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|shim| Some(shim.parent()?.join(PROGRAM)));
    beside
        .filter(|path| path.exists())
        .unwrap_or_else(|| PROGRAM.into())
}
