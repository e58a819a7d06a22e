//! Keeps the files that a pod's virtiofs daemons have open below the host's limit.
//!
//! A daemon has each file open that the guest's kernel remembers, and the kernel forgets files only
//! when it runs short of memory. On a host where a process may have few files open, walking through
//! a large tree would fail with ENFILE. The host counts, since that keeps no idle guest awake.

use std::{convert::Infallible, time::Duration};

use caisson_node::host::chain::chain;
use caisson_vmm::Accelerator;

use crate::{agent::Agent, machine::Machine};

/// How many files a guest meets in a second at most: one that is emulated, which met 10,000, and
/// one that is not. With half of what is left, it may do so until they are counted again. More
/// counts would keep the host of many idle pods busy.
const EMULATED_PACE: u64 = 25_000;
const PACE: u64 = 50_000;
/// The shortest time between two counts.
const LEAST: Duration = Duration::from_millis(50);
/// With a limit this high only memory limits the guest, and nobody needs to count.
const PLENTY: u64 = 500_000;
/// How long to wait if forgetting does not help, since so many files are in use.
const PAUSE: Duration = Duration::from_secs(1);

/// Has the guest forget unused files whenever a daemon has more than half of what it may have open.
/// Never resolves.
pub async fn keep_few(machine: &Machine, agent: &Agent) -> Infallible {
    let vm = &machine.vm;
    let most = caisson_vmm::max_open_files();
    let pace = match machine.accelerator {
        Accelerator::Tcg => EMULATED_PACE,
        Accelerator::Kvm => PACE,
    };
    if most >= PLENTY {
        return std::future::pending().await;
    }
    loop {
        // A VM that has ended has none open.
        let open = vm.open_files().await.unwrap_or(0);
        if open <= most / 2 {
            tokio::time::sleep(next_count(open, most, pace)).await;
            continue;
        }
        if let Err(error) = agent.forget_files().await {
            log::debug!("forget unused files: {}", chain(&error));
        }
        if vm.open_files().await.unwrap_or(0) > most / 2 {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Returns how long it takes at least until half of what is left is used up.
fn next_count(open: u64, most: u64, pace: u64) -> Duration {
    let left = most.saturating_sub(open) / 2;
    Duration::from_millis(left * 1000 / pace).max(LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_count_comes_before_too_many_are_open() {
        let ms = |open| next_count(open, 20_000, PACE).as_millis();
        assert_eq!(ms(0), 200);
        assert_eq!(ms(10_000), 100);
        assert_eq!(ms(19_990), 50);
        assert_eq!(ms(30_000), 50);
        assert_eq!(next_count(0, 20_000, EMULATED_PACE).as_millis(), 400);
    }
}
