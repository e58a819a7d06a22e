//! Tests whether KVM really works on this host.
//!
//! The presence of `/dev/kvm` is not enough: on some hosts (nested virtualisation by a hypervisor
//! that fakes it) it opens and a VM is made, but no kernel boots. Three such outcomes are known:
//! QEMU aborts on a model-specific register, the VM stops with "KVM internal error" and QEMU stays
//! paused, or the guest crawls for minutes. Where the host is itself a VM, KVM may also work and be
//! slow. So a guest is booted once, which may take a while as long as it makes progress, and the
//! caller remembers the result.

use std::{fs::File, path::Path, time::Duration};

use serde_json::json;
use tokio::time::{sleep, timeout, Instant};

use super::{
    command_line::Purpose,
    machine::{Qemu, QemuConfig},
};
use crate::{driver::end::Said, Accelerator, Result, VmSpec};

/// What the agent prints for a kernel command line with `caisson.probe`, before it powers off.
const OK: &str = "caisson: probe ok";
/// How long a guest may print nothing. Where KVM works, it boots in a tenth of that. Where KVM is
/// emulated too, it boots in 20 to 30 s and prints all the while.
const SILENCE: Duration = Duration::from_secs(5);
/// The time limit of the probe. A guest that has not booted by then is slower than an emulated one.
pub const PROBE_LIMIT: Duration = Duration::from_secs(60);

/// The accelerator to use on this host, and why.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ProbeResult {
    pub accelerator: Accelerator,
    /// The reason, for `caisson check`.
    pub reason: String,
}

/// Boots `spec`'s guest under KVM, without devices and whatever the accelerator in `spec`. Returns
/// within little more than `limit`, and soon if the guest makes no progress.
///
/// Fails only if no VM can be booted either way, e.g. without QEMU or a kernel.
pub async fn probe_kvm(config: &QemuConfig, spec: &VmSpec, limit: Duration) -> Result<ProbeResult> {
    let tcg = |reason: String| {
        Ok(ProbeResult {
            accelerator: Accelerator::Tcg,
            reason,
        })
    };
    let kvm = Path::new("/dev/kvm");
    if let Err(error) = File::options().read(true).write(true).open(kvm) {
        return tcg(format!("{}: {error}", kvm.display()));
    }
    let mut spec = spec.clone();
    spec.accelerator = Accelerator::Kvm;
    (spec.max_cpus, spec.max_memory) = (spec.cpus, spec.memory);
    let started = Instant::now();
    let booted = async {
        let qemu = match Qemu::start(&config.qemu, &spec, Purpose::Probe, None).await {
            Err(error @ crate::Error::File { .. }) => return Err(error),
            Err(error) => return Ok(Err(error.to_string())),
            Ok(qemu) => qemu,
        };
        if let Err(error) = qemu.qmp.execute("cont", json!({})).await {
            return Ok(Err(error.to_string()));
        }
        let mut end = qemu.end.clone();
        let failure = tokio::select! {
            () = printed_ok(&qemu) => return Ok(Ok(())),
            () = silent(|| qemu.console.count(), SILENCE) => {
                let said = qemu.console.text();
                let last = said.lines().last().unwrap_or("nothing");
                format!("it printed nothing for {SILENCE:?}, and {last:?} before")
            }
            how = qemu.child.ended() => how,
            Ok(said) = end.wait_for(Option::is_some) => {
                said.as_ref().map_or("", Said::reason).to_owned()
            }
        };
        // The guest prints and powers off, and QEMU ends, all within a moment.
        match timeout(Duration::from_millis(100), printed_ok(&qemu)).await {
            Ok(()) => Ok(Ok(())),
            Err(_) => Ok(Err(failure)),
        }
    };
    match timeout(limit, booted).await {
        Err(_) => tcg(format!("a guest does not boot under KVM within {limit:?}")),
        Ok(Err(error)) => Err(error),
        Ok(Ok(Err(failure))) => tcg(format!("a guest does not boot under KVM: {failure}")),
        Ok(Ok(Ok(()))) => Ok(ProbeResult {
            accelerator: Accelerator::Kvm,
            reason: format!("a guest booted under KVM in {:?}", started.elapsed()),
        }),
    }
}

/// Waits until a count of lines has not grown for a time.
async fn silent(count: impl Fn() -> u64, limit: Duration) {
    let mut before = count();
    let mut since = Instant::now();
    while since.elapsed() < limit {
        sleep(Duration::from_millis(50)).await;
        let now = count();
        if now != before {
            (before, since) = (now, Instant::now());
        }
    }
}

async fn printed_ok(qemu: &Qemu) {
    while !qemu.console.contains(OK) {
        sleep(Duration::from_millis(5)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns for how long a guest that prints a line `every` so often, `lines` times, is waited
    /// for.
    async fn waited(every: Duration, lines: u64) -> Duration {
        let started = Instant::now();
        let printed = || (started.elapsed().as_millis() / every.as_millis()) as u64;
        silent(|| printed().min(lines), SILENCE).await;
        started.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn guest_that_prints_nothing_is_given_up_soon() {
        let waited = waited(Duration::from_secs(1), 0).await;
        assert!(waited < SILENCE + Duration::from_secs(1), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn slow_guest_is_waited_for_as_long_as_it_prints() {
        let every = SILENCE - Duration::from_secs(1);
        let waited = waited(every, 10).await;
        assert!(waited >= every * 10 + SILENCE, "{waited:?}");
    }
}
