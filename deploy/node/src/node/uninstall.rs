//! `caisson node uninstall`: undoes what install did. What pods made (skills, homes) stays.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{bail, ensure, Context, Result};
use caisson_node::{
    cgroup,
    config::{self, NodeConfig},
    pool, state, templates,
};
use clap::Args;
use nix::unistd::geteuid;

use super::{
    containerd::{wait_for, Containerd, Restart},
    files,
    install::config_file,
    payload,
    record::{self, traces, Store},
    settings,
    switch::{restart_again, take_out},
};

#[derive(Args)]
pub struct Arguments {
    /// containerd's socket [default: the one that install used]
    #[arg(long, value_name = "PATH")]
    containerd_socket: Option<PathBuf>,
    /// How containerd is restarted: systemd:UNIT, signal or none [default: as install did]
    #[arg(long, value_name = "HOW")]
    restart: Option<Restart>,
    /// How long containerd may take to come up, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    restart_limit: u64,
    /// Also where pods run in VMs: they go on until they end, and no new ones start
    #[arg(long)]
    force: bool,
}

/// Undoes everything and prints a line for each step. Having nothing to undo is no error.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(geteuid().is_root(), "caisson node uninstall needs root");
    let containerd = Containerd::find(arguments.containerd_socket.as_deref()).ok();
    let config_file = config_file(containerd.as_ref());
    let config = config::load_with(&config_file, None)?;
    let Some(store) = Store::open(&config.store_dir)? else {
        return finish(&config, &config_file);
    };
    let Some(mut record) = store.load()? else {
        return finish(&config, &config_file);
    };
    let socket = arguments.containerd_socket.clone();
    let socket = socket.unwrap_or_else(|| record.socket.clone());
    let containerd = match containerd {
        Some(found) if found.socket == socket => Some(found),
        _ => Containerd::find(Some(&socket)).ok(),
    };
    if !arguments.force {
        let pods = pods(&config, &record.prefix)?;
        ensure!(
            pods.is_empty(),
            "pods run in VMs: {}; drain the node first, or say --force and let them run to their end",
            pods.join(", ")
        );
    }
    let restart = arguments
        .restart
        .clone()
        .unwrap_or_else(|| record.restart.clone());
    let file = record.containerd.as_ref().map(|edit| edit.file.clone());
    let pending = take_out(&store, &mut record)?;
    if let Some(file) = file {
        println!(
            "handler     {} is out of {}",
            record.handlers().join(", "),
            file.display()
        );
    }
    if pending && containerd.is_some() && restart != Restart::None {
        restart_again(&socket, &restart)?;
        let limit = Duration::from_secs(arguments.restart_limit);
        wait_for(
            &socket,
            containerd.as_ref().map(Containerd::identity),
            &[],
            limit,
        )
        .context("containerd, with its configuration as it was before install, did not come up")?;
        println!("containerd  has come up without it");
    } else if pending {
        println!("containerd  was not restarted");
    }
    record.containerd = None;
    store.save(&record)?;

    // No pod can claim them any more.
    pool::remove_all(&config.state_dir);
    cgroup::remove_if_empty(Path::new(pool::CGROUP));
    templates::remove_all(&config)?;
    // Any shim that is looked for from here on started before.
    for name in payload::remove_unused(&record.prefix, None)? {
        println!("removed     version {name}");
    }
    let used = payload::used(&record.prefix);
    if !used.is_empty() {
        let left = used
            .iter()
            .map(|(name, pids)| format!("version {name}, which processes {pids:?} run from"));
        let left: Vec<_> = left.collect();
        bail!(
            "all is taken back but {}; run it again when the pods have ended",
            left.join(", ")
        );
    }
    payload::unlink_presets(&record.prefix, &[])?;
    let current = payload::current(&record.prefix);
    files::remove(&files::part(&current))?;
    files::remove(&current).with_context(|| format!("remove {}", current.display()))?;
    for path in traces(&config.state_dir, &config.store_dir) {
        if !record.found.contains(&path) {
            remove_trace(&path)?;
        }
    }
    let part = files::part(&settings::path(&config_file));
    files::remove(&part).with_context(|| format!("remove {}", part.display()))?;
    let (around, others): (Vec<_>, Vec<_>) = record
        .made
        .iter()
        .rev()
        .partition(|dir| store.dir.starts_with(dir));
    for dir in others {
        files::remove_empty(dir)?;
    }
    // From here on, only what `finish` looks for is known.
    store.remove()?;
    for dir in around {
        files::remove_empty(dir)?;
    }
    finish(&config, &config_file)
}

/// Removes what goes last, so that the record is found as long as there is something in it to do.
fn finish(config: &NodeConfig, config_file: &Path) -> Result<()> {
    let node = config.store_dir.join("node");
    if node.exists() {
        record::remove_dir(&node)?;
        files::remove_empty(&config.store_dir)?;
    }
    let kept: Vec<_> = ["skills", "homes"]
        .map(|name| config.store_dir.join(name))
        .into();
    for dir in kept.iter().filter(|dir| holds_something(dir)) {
        println!("kept        {}, which pods made", dir.display());
    }
    if settings::remove(config_file)? {
        println!("removed     {}", settings::path(config_file).display());
    }
    println!("uninstalled");
    Ok(())
}

/// Removes a file, or a folder if it is empty.
fn remove_trace(path: &Path) -> Result<()> {
    if path.is_dir() {
        return files::remove_empty(path).map(drop);
    }
    files::remove(path).with_context(|| format!("remove {}", path.display()))
}

fn holds_something(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
}

/// Returns the pods whose shims run from the prefix, by name where they have one.
fn pods(config: &NodeConfig, prefix: &Path) -> Result<Vec<String>> {
    let ours: Vec<u32> = payload::used(prefix).into_values().flatten().collect();
    let pods = state::list(&config.state_dir)?.into_iter();
    let pods = pods.filter(|pod| !pool::is_member(&pod.id));
    let running = pods.filter(|pod| pod.shim.is_some_and(|shim| ours.contains(&shim)));
    Ok(running.map(|pod| pod.name.unwrap_or(pod.id)).collect())
}
