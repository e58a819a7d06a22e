//! `caisson check`: one screen that says what this node has for running VMs, and what to do where it falls short.

use std::{
    env,
    fs::{self, File},
    io::Read,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use caisson_shim::{
    accelerator,
    config::{self, Accelerator, NodeConfig},
    RUNTIME,
};
use clap::Args;
use nix::unistd::{access, geteuid, AccessFlags};
use serde::Serialize;

use crate::shim::{Launch, PROGRAM};

/// The oldest QEMU that this is tested with.
const MIN_QEMU: (u32, u32) = (7, 2);
/// How long a program may take to say its version.
const VERSION_LIMIT: Duration = Duration::from_secs(5);
const CONTAINERD: &str = "/run/containerd/containerd.sock";

#[derive(Args)]
pub struct Arguments {
    /// Prints the lines as JSON
    #[arg(long)]
    json: bool,
}

/// How a thing stands. Only `Fail` keeps VMs from running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Standing {
    Ok,
    Warn,
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Line {
    standing: Standing,
    name: &'static str,
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    todo: Option<String>,
}

/// Looks at everything and prints it. The exit code is 1 when something fails.
pub fn run(
    arguments: &Arguments,
    config: Result<NodeConfig, caisson_shim::Error>,
) -> Result<ExitCode> {
    let mut lines = vec![configuration(&config)];
    // The rest is looked at with what holds when no configuration is there.
    let config = config.unwrap_or_default();
    lines.extend([
        cpu(),
        kvm(&config)?,
        qemu(&config),
        daemon(
            "virtiofsd",
            "hypervisor.virtiofsd",
            &config.hypervisor.virtiofsd,
        ),
        vsock(&config),
        guest(&config),
        shim(),
        containerd(),
        cgroups(),
        shared_memory(),
        state(&config),
        users(&config),
    ]);
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

impl Line {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            standing: Standing::Ok,
            name,
            found: found.into(),
            todo: None,
        }
    }

    fn warn(name: &'static str, found: impl Into<String>, todo: impl Into<String>) -> Self {
        Self {
            standing: Standing::Warn,
            todo: Some(todo.into()),
            ..Self::ok(name, found)
        }
    }

    fn fail(name: &'static str, found: impl Into<String>, todo: impl Into<String>) -> Self {
        Self {
            standing: Standing::Fail,
            ..Self::warn(name, found, todo)
        }
    }
}

fn configuration(config: &Result<NodeConfig, caisson_shim::Error>) -> Line {
    const NAME: &str = "configuration";
    if let Err(error) = config {
        return Line::fail(
            NAME,
            error.chain(),
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
        Err(error) => Line::fail(NAME, error.chain(), "make it readable"),
    }
}

fn cpu() -> Line {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim())
    };
    let model = value("model name").unwrap_or("unknown model");
    let count = thread::available_parallelism().map_or(1, usize::from);
    let flags = value("flags").unwrap_or_default();
    let flag = flags.split(' ').find(|flag| matches!(*flag, "vmx" | "svm"));
    let found = format!("{model}, {count} cpus");
    match flag {
        Some(flag) => Line::ok("cpu", format!("{found}, {flag}")),
        None => Line::warn(
            "cpu",
            format!("{found}, no hardware virtualisation"),
            "turn it on in the firmware, or nested virtualisation in the cloud's settings",
        ),
    }
}

fn kvm(config: &NodeConfig) -> Result<Line> {
    let name = "kvm";
    if config.hypervisor.accelerator == Accelerator::Tcg {
        return Ok(Line::warn(
            name,
            "not looked at: hypervisor.accelerator = \"tcg\", guests are emulated",
            "set it to \"auto\" for guests that run several times faster where KVM works",
        ));
    }
    if !geteuid().is_root() {
        return Ok(Line::fail(
            name,
            "can't be probed",
            "run `caisson check` as root",
        ));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("start threads")?;
    let only_kvm = config.hypervisor.accelerator == Accelerator::Kvm;
    Ok(match runtime.block_on(accelerator::probe(config)) {
        Ok(result) if result.accelerator == caisson_vmm::Accelerator::Kvm => {
            Line::ok(name, format!("accelerator kvm: {}", result.reason))
        }
        Ok(result) if only_kvm => Line::fail(
            name,
            result.reason,
            "hypervisor.accelerator = \"kvm\" needs it; \"auto\" falls back to emulation",
        ),
        Ok(result) => Line::warn(
            name,
            format!("accelerator tcg (emulation): {}", result.reason),
            "guests run, several times slower; give this machine hardware virtualisation",
        ),
        Err(error) => Line::fail(
            name,
            format!("no guest can be booted: {}", error.chain()),
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

fn cgroups() -> Line {
    let root = Path::new("/sys/fs/cgroup");
    let found = if root.join("cgroup.controllers").exists() {
        "v2"
    } else if root.join("unified").exists() {
        "hybrid: v1 with v2 at /sys/fs/cgroup/unified"
    } else if fs::read_dir(root).is_ok_and(|mut entries| entries.next().is_some()) {
        "v1"
    } else {
        return Line::warn(
            "cgroups",
            "none mounted",
            "limits hold inside the guests only",
        );
    };
    Line::ok("cgroups", found)
}

fn shared_memory() -> Line {
    let name = "/dev/shm";
    match nix::sys::statvfs::statvfs(name) {
        Ok(fs) => {
            let mib = |blocks: u64| (blocks * fs.fragment_size()) >> 20;
            let (size, free) = (mib(fs.blocks()), mib(fs.blocks_available()));
            Line::ok(
                name,
                format!("{size} MiB, {free} MiB free; guests' memory does not lie there"),
            )
        }
        Err(error) => Line::warn(name, error.to_string(), "mount a tmpfs there"),
    }
}

fn state(config: &NodeConfig) -> Line {
    let name = "state";
    for dir in [&config.state_dir, &config.store_dir] {
        // It is made when it is needed.
        let there = dir
            .ancestors()
            .find(|dir| dir.exists())
            .unwrap_or(Path::new("/"));
        if let Err(error) = access(there, AccessFlags::W_OK) {
            return Line::fail(
                name,
                format!("{}: {error}", there.display()),
                "make it writable, or set state_dir and store_dir",
            );
        }
    }
    let (state, store) = (config.state_dir.display(), config.store_dir.display());
    Line::ok(name, format!("{state} and {store} can be written"))
}

fn users(config: &NodeConfig) -> Line {
    let name = "users";
    let base = u64::from(config.hypervisor.uid_base);
    let end = base + u64::from(config.hypervisor.uid_count);
    let found = format!("{base} to {} for VMs", end - 1);
    let todo = "set hypervisor.uid_base to a range that nobody else uses";
    // passwd(5): name:password:uid:…; subuid(5): name:first:count
    for (file, first, count) in [
        ("/etc/passwd", 2, None),
        ("/etc/group", 2, None),
        ("/etc/subuid", 1, Some(2)),
        ("/etc/subgid", 1, Some(2)),
    ] {
        let text = fs::read_to_string(file).unwrap_or_default();
        for row in text.lines() {
            let fields: Vec<_> = row.split(':').collect();
            let number = |field: usize| fields.get(field)?.parse::<u64>().ok();
            let Some(from) = number(first) else { continue };
            let to = from + count.map_or(Some(1), number).unwrap_or(1);
            if from < end && base < to {
                return Line::warn(
                    name,
                    format!("{found}; {file} gives some to {}", fields[0]),
                    todo,
                );
            }
        }
    }
    Line::ok(name, found)
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let mut places = env::split_paths(&path).map(|dir| dir.join(program));
    places.find(|place| access(place, AccessFlags::X_OK).is_ok() && place.is_file())
}

/// What follows the name in the first line of `--version`, or why there is none.
fn version(program: &Path) -> Result<String, String> {
    let failed = |what: &str| Err(format!("{}: {what}", program.display()));
    let started = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(error) => return failed(&error.to_string()),
    };
    let deadline = Instant::now() + VERSION_LIMIT;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => break,
            Ok(Some(status)) => return failed(&format!("--version: {status}")),
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
            _ => {
                // It may have ended meanwhile.
                let _ = child.kill().and_then(|()| child.wait());
                return failed("does not say its version");
            }
        }
    }
    let mut text = String::new();
    if let Some(stdout) = child.stdout.take() {
        let read = stdout.take(4096).read_to_string(&mut text);
        if let Err(error) = read {
            return failed(&error.to_string());
        }
    }
    let line = text.lines().next().unwrap_or_default();
    let start = line.find(|c: char| c.is_ascii_digit()).unwrap_or(0);
    Ok(line[start..].trim().to_owned())
}

/// The first two numbers of a version.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(numbers("7.2.15 (Debian 1:7.2)"), Some((7, 2)));
        assert!(numbers("10.0.2") >= Some(MIN_QEMU));
        assert!(numbers("6.9") < Some(MIN_QEMU));
        assert_eq!(numbers("unknown"), None);
    }

    #[test]
    fn program_that_is_not_there_is_named() {
        let error = version(Path::new("/no/such/program")).unwrap_err();
        assert!(error.contains("/no/such/program"), "{error}");
    }

    #[test]
    fn user_range_that_others_have_is_seen() {
        let mut config = NodeConfig::default();
        assert_eq!(users(&config).standing, Standing::Ok);
        (config.hypervisor.uid_base, config.hypervisor.uid_count) = (60_000, 10_000);
        // nobody, 65534
        assert_eq!(users(&config).standing, Standing::Warn);
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
