//! A node to install Caisson to, and what is compared of it.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{symlink, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{ensure, Context, Result};
use caisson_tests::{
    command::{self, Output},
    cri::CriNode,
    node::caisson,
    paths::{self, Containerd},
};

/// The handler that the tests install.
pub const HANDLER: &str = "installed";
/// The limit for one run of a command.
pub const LIMIT: Duration = Duration::from_secs(300);
/// The text that a node's owner wrote by hand into a configuration.
const BY_HAND: &str =
    "\n# by hand: keep this\n[timeouts] # and\n\t\"io.containerd.timeout.shim.cleanup\"   =  '7s'";

/// Returns a command that is killed before a given call, counted by `number`, of a system call.
fn traced(command: Command, call: &str, number: u32, dir: &Path) -> Command {
    let mut traced = Command::new("strace");
    traced.arg("-o").arg(dir.join("logs/strace"));
    traced.args(["-e", &format!("inject={call}:signal=KILL:when={number}")]);
    traced.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => traced.env(name, value),
            None => traced.env_remove(name),
        };
    }
    traced
}

/// A containerd with CRI, a hand-edited configuration and a place to install to.
pub struct Site {
    pub node: CriNode,
}

impl Site {
    pub fn start(version: Containerd) -> Result<Self> {
        let node = CriNode::start_version_with(version, |config| {
            // These settings come from the release.
            config["guest"] = serde_json::json!({});
            for key in ["virtiofsd", "vsock_daemon"] {
                config["hypervisor"]
                    .as_object_mut()
                    .map(|table| table.remove(key));
            }
            // No result of a probe is remembered.
            config["hypervisor"]["accelerator"] = "tcg".into();
        })?;
        let _ = fs::remove_file(node.store_dir().join("accelerator.json"));
        let config = node.dir().join("containerd.toml");
        fs::write(&config, fs::read_to_string(&config)? + BY_HAND)?;
        let site = Self { node };
        site.small_release()?;
        Ok(site)
    }

    pub fn dir(&self) -> &Path {
        self.node.dir()
    }

    /// Makes a release that is quick to copy. Its shim and daemons are never run.
    fn small_release(&self) -> Result<()> {
        for file in [
            "bin/caisson",
            "bin/caisson-remote",
            "bin/containerd-shim-caisson-v2",
            "libexec/virtiofsd",
            "libexec/vhost-device-vsock",
            "guest/vmlinux",
            "guest/initramfs.cpio",
        ] {
            let path = self.dir().join("small").join(file);
            fs::create_dir_all(path.parent().context("a folder")?)?;
            fs::write(path, file)?;
        }
        self.set("[vm]\ndefault_memory_mib = 300\n[presets.small.vm]\nlimit_cpus = 1\n")
    }

    /// Changes the settings that are installed.
    pub fn set(&self, settings: &str) -> Result<()> {
        Ok(fs::write(self.dir().join("small/settings.toml"), settings)?)
    }

    fn command(&self, what: &str) -> Result<Command> {
        let mut command = caisson(&self.node)?;
        // containerd's environment has the variable.
        command.env_remove("CAISSON_CONFIG");
        command
            .args(["node", what, "--containerd-socket"])
            .arg(self.node.socket());
        Ok(command)
    }

    fn install_from(&self, release: &Path) -> Result<Command> {
        let mut install = self.command("install")?;
        install.args(["--restart", "signal", "--handler", HANDLER, "--prefix"]);
        install
            .arg(self.dir().join("prefix"))
            .arg("--from")
            .arg(release);
        Ok(install)
    }

    pub fn install(&self) -> Result<Command> {
        self.install_from(&paths::dist())
    }

    pub fn install_small(&self) -> Result<Command> {
        self.install_with_settings(&self.dir().join("small"))
    }

    /// Installs a release with the settings, without a self-test.
    pub fn install_with_settings(&self, release: &Path) -> Result<Command> {
        let mut install = self.install_from(release)?;
        install.arg("--no-self-test").arg("--settings");
        install.arg(self.dir().join("small/settings.toml"));
        Ok(install)
    }

    pub fn uninstall(&self) -> Result<Command> {
        self.command("uninstall")
    }

    pub fn run(&self, mut command: Command) -> Result<Output> {
        self.node
            .supervised(|| command::run(&mut command, None, LIMIT))
    }

    /// Replaces containerd with a script from its next start on, until the returned function is
    /// called.
    pub fn replace_containerd(&self, lines: &str) -> Result<impl FnOnce() -> Result<()>> {
        let program = self.dir().join(self.node.tag());
        let real = fs::read_link(&program)?;
        fs::remove_file(&program)?;
        let script = format!("#!/bin/sh\n{lines}\nexec {} \"$@\"\n", real.display());
        fs::write(&program, script)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        Ok(move || {
            fs::remove_file(&program)?;
            Ok(symlink(real, &program)?)
        })
    }

    pub fn status(&self) -> Result<serde_json::Value> {
        let mut status = self.command("status")?;
        status.arg("--json");
        Ok(serde_json::from_slice(&self.run(status)?.ok()?.stdout)?)
    }

    /// Returns the process that serves the socket.
    pub fn containerd(&self) -> Result<i32> {
        use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
        let stream = std::os::unix::net::UnixStream::connect(self.node.socket())?;
        Ok(getsockopt(&stream, PeerCredentials)?.pid())
    }

    /// Kills the command before its first, second, … system call that changes something, and calls
    /// `then` after each kill. Returns the number of kills.
    pub fn killed_at_each_call(
        &self,
        what: &str,
        make: impl Fn() -> Result<Command>,
        then: impl Fn(String) -> Result<()>,
    ) -> Result<u32> {
        // With CAISSON_TEST_FULL, tries every call; otherwise every fourth.
        let step = match std::env::var_os("CAISSON_TEST_FULL") {
            Some(_) => 1,
            None => 4,
        };
        let calls = [
            "mkdir", "fsync", "rename", "symlink", "unlink", "unlinkat", "rmdir", "kill",
        ];
        let mut kills = 0;
        for call in calls {
            for number in (1..).step_by(step) {
                let output = self.run(traced(make()?, call, number, self.dir()))?;
                let at = format!("{what} killed at {call} {number}");
                ensure!([0, 137].contains(&output.code), "{at}: {}", output.errors());
                then(at)?;
                if output.code == 0 {
                    break;
                }
                kills += 1;
            }
        }
        Ok(kills)
    }

    pub fn is_as(&self, before: &Snapshot, at: &str) -> Result<()> {
        let now = self.snapshot()?;
        ensure!(now == *before, "{at}: {}", now.since(before));
        Ok(())
    }

    pub fn snapshot(&self) -> Result<Snapshot> {
        Snapshot::of(self.dir())
    }
}

/// All files and folders of a node that are not containerd's own: mode, owner, and contents or
/// target.
#[derive(Debug, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<PathBuf, String>);

impl Snapshot {
    fn of(dir: &Path) -> Result<Self> {
        let containerds = [
            "root",
            "run",
            "logs",
            "opt",
            "small",
            "cni",
            "c.sock",
            "c.sock.ttrpc",
            "shims",
        ];
        let mut found = BTreeMap::new();
        let mut next = vec![dir.to_owned()];
        while let Some(folder) = next.pop() {
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                let relative = path.strip_prefix(dir)?.to_owned();
                if containerds.iter().any(|name| relative == Path::new(name)) {
                    continue;
                }
                let metadata = fs::symlink_metadata(&path)?;
                // The tests' own templates, which the harness lends the node.
                if metadata.is_symlink() && relative == Path::new("store/templates") {
                    continue;
                }
                let what = if metadata.is_dir() {
                    next.push(path);
                    String::new()
                } else if metadata.is_symlink() {
                    fs::read_link(&path)?.display().to_string()
                } else if metadata.is_file() {
                    String::from_utf8_lossy(&fs::read(&path)?).into_owned()
                } else {
                    continue;
                };
                let owner = (metadata.uid(), metadata.gid());
                found.insert(relative, format!("{:o} {owner:?} {what}", metadata.mode()));
            }
        }
        Ok(Self(found))
    }

    /// Describes the differences, for an error.
    fn since(&self, before: &Self) -> String {
        let differs = |path: &&PathBuf| self.0.get(*path) != before.0.get(*path);
        let mut paths: Vec<_> = self
            .0
            .keys()
            .chain(before.0.keys())
            .filter(differs)
            .collect();
        paths.dedup();
        format!("{paths:?}")
    }
}
