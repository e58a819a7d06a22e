//! `caisson list`: the pods of this node, from the state folder.

use anyhow::Result;
use caisson_shim::{config::NodeConfig, state};

/// Prints one line a pod.
pub fn run(config: &NodeConfig) -> Result<()> {
    println!("{:<40} {:>8}  VM", "POD", "SHIM");
    for pod in state::list(&config.state_dir)? {
        let shim = pod
            .shim
            .map_or_else(|| "gone".to_owned(), |pid| pid.to_string());
        let processes: Vec<_> = pod
            .processes
            .iter()
            .map(|(role, pid)| format!("{role} {pid}"))
            .collect();
        let name = pod.name.as_deref().unwrap_or_default();
        println!("{:<40} {shim:>8}  {}  {name}", pod.id, processes.join(", "));
    }
    Ok(())
}
