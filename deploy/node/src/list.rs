//! `caisson list`: prints the pods of this node, as the state folder has them.

use anyhow::Result;
use caisson_node::{config::NodeConfig, state};

/// Prints one line for each pod.
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
