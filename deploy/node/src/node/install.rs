//! `caisson node install`: puts a release onto the node, tests it, and adds a runtime handler for
//! it to containerd.
//!
//! Every step checks whether it has been done already. So a run after a killed one continues it,
//! and a run after a complete one changes nothing.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{anyhow, ensure, Context, Result};
use caisson_node::{
    config::{self, NodeConfig, CONFIG_ENV},
    pool, state,
};
use clap::Args;
use nix::unistd::geteuid;

use super::{
    containerd::{wait_for, Containerd, Restart},
    containerd_config::Handler,
    files, layout,
    payload::{self, Payload},
    record::{preset_handler, traces, Record, Store},
    self_test, settings,
    switch::{restart_again, take_out, Outcome, Switch},
};

#[derive(Args)]
pub struct Arguments {
    /// A release: a folder with bin, libexec and guest [default: the one that this program is in]
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Where versions are put
    #[arg(long, value_name = "DIR", default_value = "/opt/caisson", value_parser = absolute)]
    prefix: PathBuf,
    /// containerd's configuration [default: the one that the running containerd was started with]
    #[arg(long, value_name = "FILE", value_parser = absolute)]
    containerd_config: Option<PathBuf>,
    /// containerd's socket [default: containerd's own, or that of k3s, RKE2, k0s or MicroK8s]
    #[arg(long, value_name = "PATH", value_parser = absolute)]
    containerd_socket: Option<PathBuf>,
    /// How containerd is restarted: systemd:UNIT, signal (SIGTERM, and whoever
    /// started it starts it again) or none [default: its systemd unit, else signal]
    #[arg(long, value_name = "HOW")]
    restart: Option<Restart>,
    /// How long containerd may take to come up, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    restart_limit: u64,
    /// The runtime handler's name, as a RuntimeClass has it
    #[arg(long, value_name = "NAME", default_value = "sandbox", value_parser = label)]
    handler: String,
    /// Settings of this node: becomes config.d/50-node.toml beside Caisson's configuration.
    /// Without it what is there stays. Each of its presets gets the handler NAME-PRESET
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// Does not try whether a VM runs
    #[arg(long)]
    no_self_test: bool,
}

/// Runs all steps and prints a line for each.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(geteuid().is_root(), "caisson node install needs root");
    let limit = Duration::from_secs(arguments.restart_limit);
    let socket = arguments.containerd_socket.as_deref();
    let containerd = match Containerd::find(socket) {
        Ok(containerd) => containerd,
        Err(error) => recover(limit).with_context(|| format!("{error:#}"))?,
    };
    containerd.handlers()?;
    let main = arguments
        .containerd_config
        .as_deref()
        .unwrap_or(&containerd.config);
    step(
        "containerd",
        &format!("{}, {}", containerd.version()?, main.display()),
    );

    let config_file = config_file(Some(&containerd));
    let config = wanted(arguments, &config_file)?;
    let qemu = &config.hypervisor.qemu;
    ensure!(
        qemu.is_file(),
        "no QEMU at {}: install a release that has its own (`make release`) or the node's (Debian, Ubuntu: qemu-system-x86; Fedora, RHEL: qemu-kvm), or set hypervisor.qemu",
        qemu.display()
    );
    let from = match &arguments.from {
        Some(from) => from.clone(),
        None => own_release()?,
    };
    let payload = Payload::read(&from)?;
    layout::check(&arguments.prefix, main)?;

    let (store, made) = Store::create(&config.store_dir)?;
    let restart = arguments
        .restart
        .clone()
        .unwrap_or_else(|| containerd.restart());
    let mut record = match store.load()? {
        Some(record) => continued(record, arguments)?,
        None => Record {
            prefix: arguments.prefix.clone(),
            handler: arguments.handler.clone(),
            presets: Vec::new(),
            socket: containerd.socket.clone(),
            restart: restart.clone(),
            made: Vec::new(),
            found: found(&config),
            containerd: None,
        },
    };
    let presets = presets(&config)?;
    let handlers = handlers(
        arguments,
        &presets,
        containerd.version()?.starts_with("1.6."),
    )?;
    let switch = Switch {
        store: &store,
        containerd: &containerd,
        config: main,
        handlers: &handlers,
        restart: &restart,
        limit,
    };
    // The plan is checked before anything is changed.
    if let Err(error) = switch.plan(&record) {
        if store.load()?.is_none() {
            store.remove()?;
            for dir in made.iter().rev() {
                files::remove_empty(dir)?;
            }
        }
        return Err(error);
    }
    record.restart.clone_from(&restart);
    record.socket.clone_from(&containerd.socket);
    record.add_made(made);
    let versions = payload::versions_dir(&arguments.prefix);
    record.add_made(files::missing(&versions));
    let gone = std::mem::take(&mut record.presets).into_iter();
    let gone = gone.filter(|preset| !presets.contains(preset));
    record.presets = presets.iter().cloned().chain(gone).collect();
    store.save(&record)?;

    fs::create_dir_all(&versions).with_context(|| format!("create {}", versions.display()))?;
    let copied = payload.install(&arguments.prefix)?;
    let dir = payload.dir(&arguments.prefix);
    step(
        if copied { "copied" } else { "there" },
        &dir.display().to_string(),
    );

    if let Some(file) = &arguments.settings {
        let path = settings::path(&config_file);
        record.add_made(files::missing(path.parent().unwrap_or(Path::new("/"))));
        store.save(&record)?;
        settings::write(&config_file, &settings_text(file)?)?;
        step(
            "settings",
            &settings::path(&config_file).display().to_string(),
        );
    }
    if arguments.no_self_test {
        step("self-test", "left out");
    } else {
        let said = self_test::run(&dir, &config_file, &store.self_test())?;
        step("self-test", &said);
    }
    if payload::current_name(&arguments.prefix).as_ref() != Some(&payload.name) {
        let target = Path::new("versions").join(&payload.name);
        files::link(&payload::current(&arguments.prefix), &target)?;
    }
    step("current", &payload.name);
    payload::link_presets(&arguments.prefix, &presets)?;
    if !presets.is_empty() {
        step("presets", &presets.join(", "));
    }
    // They have what was installed before. The next pods have new ones made.
    pool::remove_all(&config.state_dir);

    let outcome = switch.put_in(&mut record)?;
    let file = record
        .containerd
        .as_ref()
        .map(|edit| edit.file.display().to_string());
    let file = file.unwrap_or_default();
    let names: Vec<_> = handlers.iter().map(|h| format!("{:?}", h.name)).collect();
    let names = names.join(", ");
    let said = match outcome {
        Outcome::AsItWas => format!("{names} is there, in {file}"),
        Outcome::InForce => format!("{names} is in {file}, containerd has come up with it"),
        Outcome::Written => format!("{names} is in {file}: restart containerd"),
    };
    step("handler", &said);
    for preset in payload::unlink_presets(&arguments.prefix, &presets)? {
        step("removed", &format!("preset {preset}, which no pod has"));
    }
    record.presets = presets;
    store.save(&record)?;
    for name in payload::remove_unused(&arguments.prefix, Some(&payload.name))? {
        step("removed", &format!("version {name}, which no pod uses"));
    }
    println!("installed: {}", payload.name);
    Ok(())
}

/// Returns the node's handler and those of its presets.
fn handlers(arguments: &Arguments, presets: &[String], by_type: bool) -> Result<Vec<Handler>> {
    let mut handlers = vec![Handler {
        name: arguments.handler.clone(),
        shim: payload::shim(&arguments.prefix),
        by_type,
    }];
    for preset in presets {
        let name = preset_handler(&arguments.handler, preset);
        label(&name)
            .map_err(|error| anyhow!("the handler {name:?} of the preset {preset}: {error}"))?;
        handlers.push(Handler {
            name,
            shim: payload::link_of(&arguments.prefix, preset),
            by_type,
        });
    }
    Ok(handlers)
}

/// Returns the presets that are to have a handler and a link: those of the configuration, and those
/// that pods still have. containerd needs both for a pod's next container.
fn presets(config: &NodeConfig) -> Result<Vec<String>> {
    let mut presets: BTreeSet<_> = config.presets.keys().cloned().collect();
    for pod in state::list(&config.state_dir)? {
        let record = pod.record.ok().flatten();
        presets.extend(record.and_then(|record| record.preset));
    }
    Ok(presets.into_iter().collect())
}

/// Returns the main file of Caisson's configuration: the one that the environment names, the one
/// that containerd's environment names, or the default.
pub fn config_file(containerd: Option<&Containerd>) -> PathBuf {
    let of_containerd = containerd.and_then(|containerd| containerd.caisson_config.clone());
    match env::var_os(CONFIG_ENV) {
        Some(path) => path.into(),
        None => of_containerd.unwrap_or_else(config::path),
    }
}

/// Returns the configuration as it will be.
fn wanted(arguments: &Arguments, config_file: &Path) -> Result<NodeConfig> {
    let now = config::load_with(config_file, None)?;
    let Some(file) = &arguments.settings else {
        return Ok(now);
    };
    let text = settings_text(file)?;
    let wanted = config::load_with(config_file, Some((&settings::path(config_file), &text)))?;
    ensure!(
        wanted.store_dir == now.store_dir || Record::of(&now.store_dir)?.is_none(),
        "{} sets another store_dir than {}: uninstall first",
        file.display(),
        now.store_dir.display()
    );
    Ok(wanted)
}

fn settings_text(file: &Path) -> Result<String> {
    files::read_text(file)?.with_context(|| format!("no {}", file.display()))
}

/// Checks that this run continues what was installed, instead of installing something beside it.
fn continued(record: Record, arguments: &Arguments) -> Result<Record> {
    ensure!(
        record.prefix == arguments.prefix && record.handler == arguments.handler,
        "installed in {} with the handler {:?}: uninstall that first",
        record.prefix.display(),
        record.handler
    );
    Ok(record)
}

fn found(config: &NodeConfig) -> Vec<PathBuf> {
    let mut found = traces(&config.state_dir, &config.store_dir);
    found.retain(|path| path.exists());
    found
}

/// Recovers from a run that was killed while containerd did not come up: puts the configuration
/// back to what it was.
fn recover(limit: Duration) -> Result<Containerd> {
    let config = config::load_with(&config_file(None), None)?;
    let store = Store::open(&config.store_dir)?.context("containerd has to run")?;
    let mut record = store.load()?.context("containerd has to run")?;
    let half = record
        .containerd
        .as_ref()
        .is_some_and(|edit| !edit.in_force);
    ensure!(half, "containerd has to run");
    take_out(&store, &mut record)?;
    record.containerd = None;
    store.save(&record)?;
    step(
        "containerd",
        "is down, by a change that was broken off: taken back",
    );
    restart_again(&record.socket, &record.restart)?;
    wait_for(&record.socket, None, &[], limit)
}

/// Returns the release that this program belongs to.
fn own_release() -> Result<PathBuf> {
    let own = env::current_exe().context("this program's path")?;
    let dir = own.parent().and_then(Path::parent);
    dir.map(Path::to_owned).context("this program's folder")
}

fn step(what: &str, found: &str) {
    println!("{what:<11} {found}");
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    path.is_absolute()
        .then_some(path)
        .ok_or_else(|| "it has to be an absolute path".to_owned())
}

/// Checks that a handler's name is what Kubernetes wants: a DNS label (RFC 1123).
fn label(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let fits = (1..=63).contains(&text.len()) && text.chars().all(plain);
    match fits && !text.starts_with('-') && !text.ends_with('-') {
        true => Ok(text.to_owned()),
        false => Err("lower case letters, digits and - only, as a RuntimeClass has it".to_owned()),
    }
}
