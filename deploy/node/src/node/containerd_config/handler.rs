//! Caisson's runtime handlers and what each has in the configuration.

use std::path::{Path, PathBuf};

use caisson_node::config::{preset_of, RUNTIME};
use toml_edit::{value, Array, Item, Table};

use crate::shim::PROGRAM;

/// The only runtime type whose program containerd 2.x asks for its features: user namespaces and
/// recursive read-only mounts (2.1, internal/cri/server/service.go, `introspectRuntimeFeatures`). A
/// kubelet refuses pods that want them from a handler without.
const ASKED: &str = "io.containerd.runc.v2";

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

/// Returns the handler's table. `there` is the handler as the configuration has it already.
pub fn settings(handler: &Handler, there: Option<&Item>) -> Table {
    let ours = || value(Array::from_iter(["caisson.dev/*"]));
    // containerd 2.x starts a shim that makes the sandboxes by its type alone (2.1,
    // plugins/sandbox/controller.go).
    let makes_sandboxes = there.and_then(|there| text(there, "sandboxer")) == Some("shim");
    let mut table = Table::new();
    let shim = value(handler.shim.display().to_string());
    if handler.by_type || makes_sandboxes {
        table.insert("runtime_type", shim);
    } else {
        table.insert("runtime_type", value(ASKED));
        table.insert("runtime_path", shim);
    }
    table.insert("privileged_without_host_devices", value(true));
    table.insert("pod_annotations", ours());
    table.insert("container_annotations", ours());
    table
}

/// Returns whether a handler of the configuration is Caisson's, by whichever way it names it.
pub fn is_ours(there: &Item) -> bool {
    let is_program = |key| {
        text(there, key).is_some_and(|path| {
            Path::new(path).ends_with(PROGRAM) || preset_of(path.as_ref()).is_some()
        })
    };
    runtime_type(there) == RUNTIME || is_program("runtime_type") || is_program("runtime_path")
}

/// Returns a handler's `runtime_type`, or an empty text where it has none.
pub fn runtime_type(there: &Item) -> &str {
    text(there, "runtime_type").unwrap_or_default()
}

fn text<'i>(there: &'i Item, key: &str) -> Option<&'i str> {
    there.get(key).and_then(Item::as_str)
}
