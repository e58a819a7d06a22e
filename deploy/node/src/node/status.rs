//! `caisson node status`: prints what is installed, whether containerd has the handler, and which
//! version each pod runs with.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use caisson_node::{accelerator, config, pool, state};
use caisson_vmm::Accelerator;
use clap::Args;
use serde::Serialize;

use super::{containerd::Containerd, install::config_file, payload, record::Record};

#[derive(Args)]
pub struct Arguments {
    /// Prints it as JSON
    #[arg(long)]
    json: bool,
    /// containerd's socket [default: the one that install used]
    #[arg(long, value_name = "PATH")]
    containerd_socket: Option<PathBuf>,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Status {
    /// Whether the running containerd has the handler and a version is in place.
    ready: bool,
    /// `<version>-<digest>` of the version that new pods start with.
    version: Option<String>,
    /// All versions that are installed.
    versions: Vec<String>,
    prefix: Option<PathBuf>,
    handler: Option<String>,
    /// The presets that have a handler of their own.
    presets: Vec<String>,
    /// The file that the handler is in.
    containerd_config: Option<PathBuf>,
    /// Whether the running containerd has the handler, and those of the presets.
    containerd_has_handler: bool,
    /// Why that cannot be known.
    containerd_error: Option<String>,
    /// `kvm` or `tcg`; `None` before the first VM.
    accelerator: Option<&'static str>,
    pods: Vec<Pod>,
}

#[derive(Debug, Serialize)]
struct Pod {
    id: String,
    /// The `namespace/name` of a Kubernetes pod.
    name: Option<String>,
    /// The preset that it has.
    preset: Option<String>,
    /// The name of the version's folder, or the shim's program where that is elsewhere.
    version: String,
}

/// Prints the status.
pub fn run(arguments: &Arguments) -> Result<()> {
    let containerd = Containerd::find(arguments.containerd_socket.as_deref());
    let config = config::load_with(&config_file(containerd.as_ref().ok()), None)?;
    let record = Record::of(&config.store_dir)?;
    let elsewhere = |record: &&Record| {
        let found = containerd
            .as_ref()
            .is_ok_and(|found| found.socket == record.socket);
        arguments.containerd_socket.is_none() && !found
    };
    let containerd = match record.as_ref().filter(elsewhere) {
        Some(record) => Containerd::find(Some(&record.socket)),
        None => containerd,
    };
    let prefix = record.as_ref().map(|record| record.prefix.clone());
    let handler = record.as_ref().map(|record| record.handler.clone());
    let handlers = containerd.and_then(|containerd| containerd.handlers());
    let wanted = record.as_ref().map(Record::handlers);
    let has = handlers.map(|names| {
        let wanted = wanted.iter().flatten();
        handler.is_some() && wanted.clone().all(|name| names.contains(name))
    });
    let (has, error) = match has {
        Ok(has) => (has, None),
        Err(error) => (false, Some(format!("{error:#}"))),
    };
    let version = prefix.as_deref().and_then(payload::current_name);
    let presets = record.as_ref().map(|record| record.presets.clone());
    let edit = record.and_then(|record| record.containerd);
    let status = Status {
        ready: has && version.is_some(),
        versions: prefix.as_deref().map(payload::names).unwrap_or_default(),
        version,
        handler,
        presets: presets.unwrap_or_default(),
        containerd_config: edit.map(|edit| edit.file),
        containerd_has_handler: has,
        containerd_error: error,
        accelerator: accelerator::known(&config).map(name),
        pods: pods(&config, prefix.as_deref())?,
        prefix,
    };
    match arguments.json {
        true => println!("{}", serde_json::to_string_pretty(&status).context("JSON")?),
        false => show(&status),
    }
    Ok(())
}

fn pods(config: &config::NodeConfig, prefix: Option<&std::path::Path>) -> Result<Vec<Pod>> {
    let prefix = prefix.and_then(|prefix| prefix.canonicalize().ok());
    let version = |shim: u32| {
        let program = fs::read_link(format!("/proc/{shim}/exe")).ok()?;
        let inside = prefix
            .as_deref()
            .and_then(|prefix| payload::version_of(prefix, &program));
        Some(inside.unwrap_or_else(|| program.display().to_string()))
    };
    let pods = state::list(&config.state_dir)?.into_iter();
    Ok(pods
        .filter(|pod| !pool::is_member(&pod.id))
        .filter_map(|pod| {
            Some(Pod {
                version: version(pod.shim?)?,
                preset: pod.record.ok().flatten().and_then(|record| record.preset),
                id: pod.id,
                name: pod.name,
            })
        })
        .collect())
}

fn name(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "tcg",
    }
}

fn show(status: &Status) {
    let line = |name: &str, found: &str| println!("{name:<12} {found}");
    let Some(prefix) = &status.prefix else {
        return line("installed", "no");
    };
    let version = status.version.as_deref().unwrap_or("none");
    line("version", &format!("{version}, in {}", prefix.display()));
    let handler = status.handler.as_deref().unwrap_or_default();
    if !status.presets.is_empty() {
        line("presets", &status.presets.join(", "));
    }
    let file = status.containerd_config.as_deref();
    let file = file.map_or_else(
        || "in no file".to_owned(),
        |file| format!("in {}", file.display()),
    );
    line("handler", &format!("{handler}, {file}"));
    line(
        "containerd",
        match (&status.containerd_error, status.containerd_has_handler) {
            (Some(error), _) => error,
            (None, true) => "has it",
            (None, false) => "has it not",
        },
    );
    line(
        "accelerator",
        status
            .accelerator
            .unwrap_or("not known before the first VM"),
    );
    for pod in &status.pods {
        let name = pod.name.as_deref().unwrap_or(&pod.id);
        let preset = pod.preset.iter().map(|preset| format!(", preset {preset}"));
        let preset: String = preset.collect();
        line("pod", &format!("{name}, {}{preset}", pod.version));
    }
}
