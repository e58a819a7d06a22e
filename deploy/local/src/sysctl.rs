//! Saves the kernel settings that a kubelet changes for the whole machine (kubelet,
//! `pkg/kubelet/cm`, `setupKernelTunables`), and restores them afterwards.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};

use crate::layout::Layout;

const CHANGED: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];
const KEPT: &str = "sysctl.json";

/// Writes down the settings in force.
pub fn keep(layout: &Layout) -> Result<()> {
    let values: BTreeMap<_, _> = CHANGED
        .iter()
        .filter_map(|name| {
            Some((
                name,
                fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?,
            ))
        })
        .collect();
    fs::write(layout.path(KEPT), serde_json::to_string(&values)?)
        .context("keep the kernel's settings")
}

/// Restores what was written down, unless another kubelet, which wants the settings as they are,
/// runs on the machine.
pub fn restore(layout: &Layout) -> Result<()> {
    let Ok(kept) = fs::read(layout.path(KEPT)) else {
        return Ok(());
    };
    if another_kubelet() {
        return Ok(());
    }
    // A file that was not written to its end is from before the kubelet's start.
    let Ok(values) = serde_json::from_slice::<BTreeMap<String, String>>(&kept) else {
        return Ok(());
    };
    for (name, value) in values
        .iter()
        .filter(|(name, _)| CHANGED.contains(&name.as_str()))
    {
        let path = Path::new("/proc/sys").join(name);
        if fs::read_to_string(&path).is_ok_and(|now| now != *value) {
            fs::write(&path, value).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// Returns whether any kubelet runs on this machine.
pub fn another_kubelet() -> bool {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut names = entries.filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok());
    names.any(|name| name.trim() == "kubelet")
}
