//! Caisson's runtime handler and what it has in the configuration.

use std::path::PathBuf;

use caisson_node::config::RUNTIME;
use toml_edit::{value, Array, Table};

/// A runtime handler, as a RuntimeClass names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handler {
    /// The RuntimeClass' `handler`.
    pub name: String,
    /// The shim's program.
    pub shim: PathBuf,
    /// Whether the runtime's type is the program: containerd 1.6 ignores `runtime_path` (1.6.20,
    /// `WithRuntimePath` in task_opts.go).
    pub by_type: bool,
}

/// Returns the handler's table.
pub fn settings(handler: &Handler) -> Table {
    let ours = || value(Array::from_iter(["caisson.dev/*"]));
    let mut table = Table::new();
    let shim = value(handler.shim.display().to_string());
    if handler.by_type {
        table.insert("runtime_type", shim);
    } else {
        table.insert("runtime_type", value(RUNTIME));
        table.insert("runtime_path", shim);
    }
    table.insert("privileged_without_host_devices", value(true));
    table.insert("pod_annotations", ours());
    table.insert("container_annotations", ours());
    table
}
