//! `caisson check`: prints one screen that says what this node has for running VMs, and what to do
//! where it falls short.

mod host;
mod line;
mod program;

use std::{
    fs::{self, File},
    os::unix::net::UnixStream,
    path::Path,
    process::ExitCode,
};

use anyhow::{Context, Result};
use caisson_node::{
    accelerator::{self, EMULATION},
    config::{self, Accelerator, ConfigError, NodeConfig, RUNTIME},
    host::chain::chain,
};
use clap::Args;
use nix::unistd::geteuid;

use self::{
    line::{Line, Standing},
    program::{numbers, on_path, version},
};
use crate::shim::{Launch, PROGRAM};

/// The oldest QEMU that Caisson is tested with.
const MIN_QEMU: (u32, u32) = (7, 2);
const CONTAINERD: &str = "/run/containerd/containerd.sock";

#[derive(Args)]
pub struct Arguments {
    /// Prints the lines as JSON
    #[arg(long)]
    json: bool,
}

/// Checks everything and prints it. The exit code is 1 when something fails.
pub fn run(arguments: &Arguments, config: Result<NodeConfig, ConfigError>) -> Result<ExitCode> {
    let mut lines = vec![configuration(&config)];
    // Without a configuration, the rest is checked with the defaults.
    let config = config.unwrap_or_default();
    lines.extend([
        host::cpu(),
        kvm(&config)?,
        qemu(&config),
        daemon(
            "virtiofsd",
            "hypervisor.virtiofsd",
            &config.hypervisor.virtiofsd,
        ),
        vsock(&config),
        guest(&config),
        templates(&config),
        shim(),
        containerd(),
        host::cgroups(),
        host::user_namespaces(),
        host::network(&config),
        host::egress(&config),
        host::shared_memory(),
        host::state(&config),
        host::users(&config),
        host::homes(),
    ]);
    lines.extend(presets(&config));
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&lines)?);
    } else {
        lines.iter().for_each(show);
    }
    let failed = lines.iter().any(|line| line.standing == Standing::Fail);
    Ok(ExitCode::from(u8::from(failed)))
}

fn show(line: &Line) {
    let standing = match line.standing {
        Standing::Ok => "ok",
        Standing::Warn => "warn",
        Standing::Fail => "FAIL",
    };
    println!("{standing:<4}  {:<13}  {}", line.name, line.found);
    if let Some(todo) = &line.todo {
        println!("{:21}→ {todo}", "");
    }
}

fn configuration(config: &Result<NodeConfig, ConfigError>) -> Line {
    const NAME: &str = "configuration";
    if let Err(error) = config {
        return Line::fail(
            NAME,
            chain(error),
            "correct the file; every key has a default",
        );
    }
    match config::files() {
        Ok(files) if files.is_empty() => Line::ok(
            NAME,
            format!("no file at {}: the defaults hold", config::path().display()),
        ),
        Ok(files) => {
            let names: Vec<_> = files
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            Line::ok(NAME, names.join(", "))
        }
        Err(error) => Line::fail(NAME, chain(&error), "make it readable"),
    }
}

fn kvm(config: &NodeConfig) -> Result<Line> {
    let name = "kvm";
    if config.hypervisor.accelerator == Accelerator::Tcg {
        return Ok(Line::warn(
            name,
            format!(
                "not looked at: hypervisor.accelerator = \"tcg\", guests are emulated, {EMULATION}"
            ),
            "set it to \"kvm\" for guests that KVM keeps apart and that run several times faster",
        ));
    }
    if !geteuid().is_root() {
        return Ok(Line::fail(
            name,
            "can't be probed",
            "run `caisson check` as root",
        ));
    }
    let runtime = tokio::runtime::Runtime::new().context("start threads")?;
    let only_kvm = config.hypervisor.accelerator == Accelerator::Kvm;
    Ok(match runtime.block_on(accelerator::probe(config)) {
        Ok(result) if result.accelerator == caisson_vmm::Accelerator::Kvm => {
            Line::ok(name, format!("accelerator kvm: {}", result.reason))
        }
        Ok(result) if only_kvm => Line::fail(
            name,
            result.reason,
            format!("hypervisor.accelerator = \"kvm\" needs it; \"auto\" falls back to emulation, {EMULATION}"),
        ),
        Ok(result) => Line::warn(
            name,
            format!("accelerator tcg: {}; guests are emulated, {EMULATION}", result.reason),
            "for guests that are not trusted give this machine hardware virtualisation and set hypervisor.accelerator = \"kvm\"",
        ),
        Err(error) => Line::fail(
            name,
            format!("no guest can be booted: {}", chain(&error)),
            "see the lines below for what is missing",
        ),
    })
}

fn qemu(config: &NodeConfig) -> Line {
    let path = &config.hypervisor.qemu;
    let todo = "apt-get install qemu-system-x86, or set hypervisor.qemu";
    let version = match version(path) {
        Ok(version) => version,
        Err(error) => return Line::fail("qemu", error, todo),
    };
    let found = format!("{} {version}", path.display());
    match numbers(&version) {
        Some(numbers) if numbers >= MIN_QEMU => Line::ok("qemu", found),
        Some(_) => Line::fail(
            "qemu",
            found,
            format!("{}.{} or later is needed", MIN_QEMU.0, MIN_QEMU.1),
        ),
        None => Line::warn(
            "qemu",
            found,
            "its version is not to be read; 7.2 or later is needed",
        ),
    }
}

fn daemon(name: &'static str, key: &str, path: &Path) -> Line {
    match version(path) {
        Ok(version) => Line::ok(name, format!("{} {version}", path.display())),
        Err(error) => Line::fail(
            name,
            error,
            format!("install Caisson's own (libexec/ of the release), or set {key}"),
        ),
    }
}

fn vsock(config: &NodeConfig) -> Line {
    let device = Path::new("/dev/vhost-vsock");
    match File::options().read(true).write(true).open(device) {
        Ok(_) => Line::ok("vsock", format!("{}: the host's kernel", device.display())),
        Err(_) => daemon(
            "vsock",
            "hypervisor.vsock_daemon",
            &config.hypervisor.vsock_daemon,
        ),
    }
}

fn guest(config: &NodeConfig) -> Line {
    let name = "guest image";
    let image = config::guest_image(config);
    for file in [&image.kernel, &image.initramfs] {
        if let Err(error) = File::open(file) {
            return Line::fail(
                name,
                format!("{}: {error}", file.display()),
                "install Caisson's guest image there, or set [guest] in the configuration",
            );
        }
    }
    let manifest = fs::read(image.kernel.with_file_name("manifest.json")).unwrap_or_default();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap_or_default();
    let release = manifest["kernel_release"].as_str();
    let found = format!(
        "{}, Linux {}",
        image.kernel.display(),
        release.unwrap_or("of unknown release: no manifest.json beside it")
    );
    match &image.modules {
        Some(modules) if modules.exists() => Line::ok(name, found),
        _ => Line::warn(
            name,
            format!("{found}, no modules.squashfs"),
            "put it beside the kernel for containers that load kernel modules",
        ),
    }
}

fn templates(config: &NodeConfig) -> Line {
    let name = "templates";
    if !config.vm.templates {
        return Line::ok(name, "none: vm.templates = false, every VM boots");
    }
    match caisson_node::templates::list(config) {
        Ok(found) if found.is_empty() => Line::ok(
            name,
            "none yet: one is made after the first pod's start, or by `caisson template build`",
        ),
        Ok(found) => {
            let mib: u64 = found.iter().map(|template| template.used >> 20).sum();
            Line::ok(name, format!("{}, {mib} MiB", found.len()))
        }
        Err(error) => Line::warn(name, chain(&error), "make the folder readable"),
    }
}

/// Says of each preset what its pods have, and whether this node can run them.
fn presets(config: &NodeConfig) -> Vec<Line> {
    let names = config.presets.keys();
    names.map(|name| preset(config, name)).collect()
}

fn preset(node: &NodeConfig, name: &str) -> Line {
    const NAME: &str = "preset";
    let config = match node.with_preset(name) {
        Ok(config) => config,
        Err(error) => return Line::fail(NAME, error.to_string(), "correct the file"),
    };
    if config.hypervisor.accelerator == Accelerator::Kvm {
        if let Err(why) = works_by_kvm(&config) {
            return Line::fail(
                NAME,
                format!("{name}: {why}"),
                "give this machine hardware virtualisation, or run its pods on other nodes",
            );
        }
    }
    let limit = |value: Option<u64>, unit: &str| {
        value.map_or_else(|| "no limit".to_owned(), |value| format!("{value}{unit}"))
    };
    Line::ok(
        NAME,
        format!(
            "{name}: cpus {}, memory {}",
            limit(config.vm.limit_cpus.map(u64::from), ""),
            limit(config.vm.limit_memory_mib, " MiB"),
        ),
    )
}

/// Tries whether VMs that may run by KVM only do so.
fn works_by_kvm(config: &NodeConfig) -> Result<(), String> {
    if !geteuid().is_root() {
        return Err("KVM can't be probed: run `caisson check` as root".to_owned());
    }
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    let chosen = runtime.block_on(accelerator::choose(config));
    chosen.map(drop).map_err(|error| chain(&error))
}

fn shim() -> Line {
    let name = "shim";
    match (on_path(PROGRAM), Launch::program()) {
        (Some(path), _) => Line::ok(name, format!("{}, for runtime {RUNTIME}", path.display())),
        (None, beside) if beside.exists() => Line::warn(
            name,
            format!("{}, not on PATH", beside.display()),
            "put it into a folder of containerd's PATH; `caisson run` finds it",
        ),
        _ => Line::fail(
            name,
            format!("no {PROGRAM} on PATH or beside this program"),
            "install it, e.g. to /usr/local/bin",
        ),
    }
}

fn containerd() -> Line {
    let name = "containerd";
    let program = on_path("containerd");
    let version = program.as_deref().map(version);
    let version = match version {
        Some(Ok(version)) => version,
        Some(Err(error)) => error,
        None => "not on PATH".to_owned(),
    };
    match UnixStream::connect(CONTAINERD) {
        Ok(_) => Line::ok(name, format!("{version}; {CONTAINERD} answers")),
        Err(error) => Line::warn(
            name,
            format!("{version}; {CONTAINERD}: {error}"),
            "`caisson run` needs none; for Kubernetes or ctr install and start it",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preset_is_told_with_its_limits() {
        let text = "[presets.small.vm]\nlimit_cpus = 2\nlimit_memory_mib = 1024".to_owned();
        let config = NodeConfig::parse(&[("config.toml".to_owned(), text)]).unwrap();
        let lines = presets(&config);
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].standing, Standing::Ok);
        assert_eq!(lines[0].found, "small: cpus 2, memory 1024 MiB");
    }

    #[test]
    fn guest_image_that_is_not_there_fails_with_what_to_do() {
        let config = NodeConfig {
            store_dir: "/no/such/store".into(),
            ..NodeConfig::default()
        };
        let line = guest(&config);
        assert_eq!(line.standing, Standing::Fail);
        assert!(line.found.contains("/no/such/store/guest/vmlinux") && line.todo.is_some());
    }
}
