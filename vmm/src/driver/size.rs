//! The sizes that a VM may have.

use crate::{Error, Result, VmSpec};

/// Refuses more cpus than the VM may have.
pub(crate) fn check_cpus(spec: &VmSpec, total: u32) -> Result<()> {
    if total > spec.max_cpus.max(spec.cpus) {
        return Err(Error::Size {
            wanted: total.into(),
            unit: "cpus",
            rule: format!("at most {} are possible", spec.max_cpus),
        });
    }
    Ok(())
}

/// Refuses more memory than the VM may have.
pub(crate) fn check_memory(spec: &VmSpec, total: u64) -> Result<()> {
    if total > spec.max_memory {
        return Err(Error::Size {
            wanted: total,
            unit: "bytes of memory",
            rule: format!("at most {} are possible", spec.max_memory),
        });
    }
    Ok(())
}
