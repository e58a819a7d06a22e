//! What the pod's containers use.

use std::time::Duration;

use caisson_protocol::agent::StatsResponse;

use super::base::Pod;
use crate::{error::Result, limits, stats};

impl Pod {
    /// Returns what a container uses, within a second. A sandbox uses nothing, like a pause
    /// container that does nothing. What the VM itself uses is in the pod's cgroup on the host.
    pub async fn stats(&self, id: &str) -> Result<StatsResponse> {
        let container = self.container(id)?;
        if container.is_sandbox() {
            return Ok(StatsResponse::default());
        }
        let (machine, id) = (self.machine(id)?, id.to_owned());
        let ask = || async move { Ok(machine.agent().await?.stats(&id).await?) };
        // If one container is already waiting for its numbers, the caller need not wait for those
        // of the others too.
        let is_silent = self.lock().values().any(|other| other.stats.is_overdue());
        let wait = match is_silent {
            true => Duration::ZERO,
            false => limits::STATS_WAIT,
        };
        container.stats.get(wait, ask).await
    }

    /// The total usage of the pod's containers.
    pub async fn sandbox_stats(&self) -> Result<StatsResponse> {
        let ids: Vec<String> = self.lock().keys().cloned().collect();
        // All at once, so that a slow container delays no other.
        let all = futures::future::join_all(ids.iter().map(|id| self.stats(id))).await;
        let mut sum = StatsResponse::default();
        for (id, stats) in ids.iter().zip(all) {
            match stats {
                Ok(stats) => stats::add(&mut sum, &stats),
                // The container has ended meanwhile, or has not reported anything yet.
                Err(error) => log::debug!(container = id; "{}", error.chain()),
            }
        }
        Ok(sum)
    }
}
