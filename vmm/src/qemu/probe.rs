//! Tests whether KVM really works on this host.
//!
//! The presence of `/dev/kvm` is not enough: on some hosts (nested virtualisation by a hypervisor
//! that fakes it) it opens and a VM is made, but no kernel boots. Three such outcomes are known:
//! QEMU aborts on a model-specific register, the VM stops with "KVM internal error" and QEMU stays
//! paused, or the guest crawls for minutes. So a guest is booted once, with a time limit, and the
//! caller remembers the result.

use std::{
    fs::File,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::time::{sleep, timeout};

use super::{
    command_line::Purpose,
    machine::{Qemu, QemuConfig},
};
use crate::{driver::end::Said, Accelerator, Result, VmSpec};

/// What the agent prints for a kernel command line with `caisson.probe`, before it powers off.
const OK: &str = "caisson: probe ok";
/// The time limit of the probe. Where KVM works, a guest boots in a tenth of it.
pub const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// The accelerator to use on this host, and why.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ProbeResult {
    pub accelerator: Accelerator,
    /// The reason, for `caisson check`.
    pub reason: String,
}

/// Boots `spec`'s guest under KVM, without devices and whatever the accelerator in `spec`. Returns
/// within little more than `limit`.
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

async fn printed_ok(qemu: &Qemu) {
    while !qemu.console.contains(OK) {
        sleep(Duration::from_millis(5)).await;
    }
}
