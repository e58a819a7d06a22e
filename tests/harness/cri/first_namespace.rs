//! Runs programs as root in the guest's first mount namespace, where the agent and the top of the
//! share are. A privileged container gets there by the kernel's pattern for core dumps.

use std::time::Duration;

use anyhow::Result;

use super::Container;
use crate::command;

/// How long a script may take.
const SOON: Duration = Duration::from_secs(20);

/// Runs a script as root in the guest's first mount namespace, where the top of the share is. The
/// script runs as the handler of a core dump (core(5)). `$B` is busybox, `$R` the container's root,
/// `$F` a file in it. Returns what the script prints.
pub fn run(container: &Container<'_>, script: &str) -> Result<String> {
    let root = format!("/run/caisson/shares/pod/{}/own-root", container.id());
    let script = format!(
        "exec > {root}/said 2>&1\nB={root}/bin/busybox R={root} F={root}/script\n{script}\n\
         $B mv {root}/said {root}/done"
    );
    // The pattern may have at most 127 bytes, so a glob finds the script by the shape of its path.
    let line = format!(
        "cat > /s <<'END'\n{script}\nEND\n\
         rm -f /done; cp /s /script; cp /bin/busybox /sh; \
         echo '|{root}/sh -c .${{IFS}}/r*/*/*/*/*/*/s' > /proc/sys/kernel/core_pattern && \
         sh -c 'kill -SEGV $$'; true"
    );
    container.sh(&line)?;
    command::poll("the script in the guest's first namespace", SOON, || {
        container.sh("cat /done && rm -f /done /s").ok()
    })
}
