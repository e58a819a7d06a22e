//! Tests `caisson node install` and `uninstall` on real containerds. The test restarts them when
//! they end, as systemd would.
//!
//! Files are compared with their earlier state byte by byte: see [`Snapshot`].

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
    Runtime,
};
use rstest::rstest;

const HANDLER: &str = "installed";
const LIMIT: Duration = Duration::from_secs(300);
/// The text that a node's owner wrote by hand into a configuration.
const BY_HAND: &str =
    "\n# by hand: keep this\n[timeouts] # and\n\t\"io.containerd.timeout.shim.cleanup\"   =  '7s'";

/// Goes from nothing to a pod in a VM, and back to nothing.
#[rstest]
#[case::containerd_1_6(Containerd::V1_6)]
#[case::containerd_1_7(Containerd::V1_7)]
#[case::containerd_2(Containerd::V2)]
fn installed_handler_runs_a_pod_and_uninstall_leaves_nothing(
    #[case] version: Containerd,
) -> Result<()> {
    let site = Site::start(version)?;
    let before = site.snapshot()?;
    let installed = site.run(site.install()?)?.ok()?;
    assert!(
        installed.text().contains("\nself-test   Linux "),
        "{}",
        installed.text()
    );

    let pod = site.node.pod().handler(HANDLER).start()?;
    site.node.image("busybox")?;
    let container = pod.container("busybox").args(["sleep", "1000"]).start()?;
    let host = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    assert_ne!(container.sh("uname -r")?, host.trim());
    let status = site.status()?;
    assert_eq!(status["ready"], true, "{status}");
    assert_eq!(status["pods"][0]["version"], status["version"], "{status}");

    let refused = site.run(site.uninstall()?)?;
    let name = format!("tests/{}", pod.hostname());
    assert!(
        refused.code != 0 && refused.errors().contains(&name),
        "{}",
        refused.errors()
    );
    assert_eq!(container.sh("echo goes on")?, "goes on");
    container.stop(Duration::ZERO)?;
    container.remove()?;
    pod.stop()?;
    pod.remove()?;

    site.run(site.uninstall()?)?.ok()?;
    site.is_as(&before, "uninstalled")
}

#[test]
fn install_a_second_time_changes_nothing() -> Result<()> {
    let site = Site::start(Containerd::from_environment()?)?;
    site.run(site.install_small()?)?.ok()?;
    let (installed, pid) = (site.snapshot()?, site.containerd()?);
    site.run(site.install_small()?)?.ok()?;
    assert_eq!(site.snapshot()?, installed);
    assert_eq!(site.containerd()?, pid, "containerd was restarted");
    Ok(())
}

/// containerd keeps running with what it has read. It would not start with the file that is now on
/// the disk.
#[rstest]
#[case::no_toml("\n[plugins\n")]
#[case::a_type_that_is_wrong("\n[metrics]\naddress = 5\n")]
fn configuration_that_containerd_refuses_is_left_as_it_was(#[case] broken: &str) -> Result<()> {
    let site = Site::start(Containerd::from_environment()?)?;
    let config = site.dir().join("containerd.toml");
    let text = fs::read_to_string(&config)? + broken;
    fs::write(&config, &text)?;
    let (before, pid) = (site.snapshot()?, site.containerd()?);
    let refused = site.run(site.install_small()?)?;
    assert_eq!(refused.code, 1, "{}", refused.text());
    assert_eq!(site.snapshot()?, before);
    assert_eq!(site.containerd()?, pid, "containerd was restarted");
    Ok(())
}

#[test]
fn containerd_that_does_not_come_up_gets_its_old_configuration_back() -> Result<()> {
    let site = Site::start(Containerd::from_environment()?)?;
    let before = fs::read(site.dir().join("containerd.toml"))?;
    // A containerd that can't start with Caisson's handler.
    let config = site.dir().join("containerd.toml");
    let restore = site.replace_containerd(&format!(
        "if grep -q 'runtimes.{HANDLER}' {}; then echo no; exit 1; fi",
        config.display()
    ))?;
    let mut install = site.install_small()?;
    install.args(["--restart-limit", "5"]);
    let failed = site.run(install)?;
    restore()?;
    let errors = failed.errors();
    assert_eq!(failed.code, 1, "{}", failed.text());
    assert!(
        errors.contains("its configuration is as it was and it runs with that"),
        "{errors}"
    );
    assert_eq!(fs::read(&config)?, before);
    site.containerd()?;
    // With a containerd that can, the next install continues from there.
    site.run(site.install_small()?)?.ok()?;
    Ok(())
}

/// containerd 1.x forgets its default runtimes if a file names one.
#[rstest]
#[case::containerd_1_6(Containerd::V1_6)]
#[case::containerd_1_7(Containerd::V1_7)]
#[case::containerd_2(Containerd::V2)]
fn runc_stays_where_the_configuration_names_no_runtime(#[case] version: Containerd) -> Result<()> {
    let site = Site::start(version)?;
    let config = site.dir().join("containerd.toml");
    let text = fs::read_to_string(&config)?;
    let mut table: toml::Table = text.parse()?;
    for (_, plugin) in table["plugins"].as_table_mut().context("plugins")? {
        plugin
            .as_table_mut()
            .map(|plugin| plugin.remove("containerd"));
    }
    fs::write(&config, table.to_string())?;
    site.run(site.install_small()?)?.ok()?;
    let pod = site.node.pod().runtime(Runtime::Runc).start()?;
    pod.stop()?;
    pod.remove()?;
    let before = table.to_string();
    site.run(site.uninstall()?)?.ok()?;
    assert_eq!(fs::read_to_string(&config)?, before);
    Ok(())
}

/// k3s does this: at each start it generates containerd's configuration anew, from a base and what
/// a template adds to it.
#[rstest]
#[case::format_2(Containerd::V1_6, "config.toml.tmpl")]
#[case::format_3(Containerd::V2, "config-v3.toml.tmpl")]
fn generated_configuration_gets_the_handler_by_its_template(
    #[case] version: Containerd,
    #[case] template: &str,
) -> Result<()> {
    let site = Site::start(version)?;
    let config = site.dir().join("containerd.toml");
    let head = "# File generated by k3s. DO NOT EDIT. Use config.toml.tmpl instead.\n";
    let base = format!("{head}{}\n", fs::read_to_string(&config)?);
    let (base_file, template) = (site.dir().join("logs/base"), site.dir().join(template));
    fs::write(&base_file, &base)?;
    fs::write(&config, &base)?;
    let _restore = site.replace_containerd(&format!(
        "cp {} {config}\nif [ -e {template} ]; then grep -v '{{{{' {template} >> {config}; fi",
        base_file.display(),
        config = config.display(),
        template = template.display(),
    ))?;
    let before = site.snapshot()?;
    site.run(site.install_small()?)?.ok()?;
    let added = fs::read_to_string(&template)?;
    assert!(added.starts_with("{{ template \"base\" . }}\n"), "{added}");
    assert_eq!(site.status()?["ready"], true);
    site.run(site.uninstall()?)?.ok()?;
    site.is_as(&before, "uninstalled")
}

#[test]
fn configuration_that_was_changed_since_loses_the_handler_only() -> Result<()> {
    let site = Site::start(Containerd::from_environment()?)?;
    let config = site.dir().join("containerd.toml");
    let text = fs::read_to_string(&config)?;
    site.run(site.install_small()?)?.ok()?;
    let added = "\n# later\n[metrics]\n  grpc_histogram = false\n";
    fs::write(&config, fs::read_to_string(&config)? + added)?;
    site.run(site.uninstall()?)?.ok()?;
    assert_eq!(fs::read_to_string(&config)?, format!("{text}\n{added}"));
    Ok(())
}

/// Tests containerd 2, where a drop-in adds to the runtimes and does not replace them.
#[test]
fn folder_of_imports_gets_a_file_and_the_configuration_is_not_touched() -> Result<()> {
    let site = Site::start(Containerd::V2)?;
    let config = site.dir().join("containerd.toml");
    let imports = format!("imports = [\"{}/conf.d/*.toml\"]\n", site.dir().display());
    fs::write(&config, imports + &fs::read_to_string(&config)?)?;
    let before = site.snapshot()?;
    let text = fs::read(&config)?;
    site.run(site.install_small()?)?.ok()?;
    assert_eq!(fs::read(&config)?, text);
    let drop_in = fs::read_to_string(site.dir().join("conf.d/50-caisson.toml"))?;
    assert!(drop_in.contains(HANDLER), "{drop_in}");
    site.run(site.uninstall()?)?.ok()?;
    site.is_as(&before, "uninstalled")
}

#[test]
fn version_that_a_pod_runs_with_stays_until_the_pod_has_ended() -> Result<()> {
    let site = Site::start(Containerd::from_environment()?)?;
    let before = site.snapshot()?;
    let mut install = site.install()?;
    install.arg("--no-self-test");
    site.run(install)?.ok()?;
    let old = site.status()?["version"].clone();
    let pod = site.node.pod().handler(HANDLER).start()?;
    site.run(site.install_small()?)?.ok()?;
    let status = site.status()?;
    assert_eq!(status["pods"][0]["version"], old, "{status}");
    assert_ne!(status["version"], old, "{status}");
    assert_eq!(
        status["versions"].as_array().map(Vec::len),
        Some(2),
        "{status}"
    );

    let mut force = site.uninstall()?;
    force.arg("--force");
    let left = site.run(force)?;
    assert_eq!(left.code, 1);
    assert!(
        left.errors().contains(old.as_str().context("a version")?),
        "{}",
        left.errors()
    );
    assert!(pod.is_ready()?);
    pod.stop()?;
    pod.remove()?;
    site.run(site.uninstall()?)?.ok()?;
    site.is_as(&before, "uninstalled")
}

/// Kills install with SIGKILL at each system call that changes something, then runs it again and
/// undoes it.
#[test]
fn install_killed_anywhere_goes_on_and_is_taken_back() -> Result<()> {
    let site = Site::start(Containerd::from_environment()?)?;
    let before = site.snapshot()?;
    let kills = site.killed_at_each_call(
        "install",
        || site.install_small(),
        |at| {
            site.run(site.install_small()?)?
                .ok()
                .with_context(|| at.clone())?;
            let status = site.status()?;
            ensure!(status["ready"] == true, "{at}: {status}");
            site.run(site.uninstall()?)?
                .ok()
                .with_context(|| at.clone())?;
            site.is_as(&before, &at)
        },
    )?;
    ensure!(kills > 5, "only {kills} kills");
    Ok(())
}

/// Kills install as above, then undoes it at once.
#[test]
fn install_killed_anywhere_is_taken_back_by_uninstall_alone() -> Result<()> {
    let site = Site::start(Containerd::from_environment()?)?;
    let before = site.snapshot()?;
    site.killed_at_each_call(
        "install",
        || site.install_small(),
        |at| {
            site.run(site.uninstall()?)?
                .ok()
                .with_context(|| at.clone())?;
            site.is_as(&before, &at)
        },
    )?;
    Ok(())
}

#[test]
fn uninstall_killed_anywhere_goes_on() -> Result<()> {
    let site = Site::start(Containerd::from_environment()?)?;
    let before = site.snapshot()?;
    let installed = || {
        site.run(site.install_small()?)?.ok()?;
        site.uninstall()
    };
    let kills = site.killed_at_each_call("uninstall", installed, |at| {
        site.run(site.uninstall()?)?
            .ok()
            .with_context(|| at.clone())?;
        site.is_as(&before, &at)
    })?;
    ensure!(kills > 5, "only {kills} kills");
    Ok(())
}

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
struct Site {
    node: CriNode,
}

impl Site {
    fn start(version: Containerd) -> Result<Self> {
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

    fn dir(&self) -> &Path {
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
        let settings = self.dir().join("small/settings.toml");
        fs::write(settings, "[vm]\ndefault_memory_mib = 300\n")?;
        Ok(())
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

    fn install(&self) -> Result<Command> {
        self.install_from(&paths::dist())
    }

    fn install_small(&self) -> Result<Command> {
        let mut install = self.install_from(&self.dir().join("small"))?;
        install.arg("--no-self-test").arg("--settings");
        install.arg(self.dir().join("small/settings.toml"));
        Ok(install)
    }

    fn uninstall(&self) -> Result<Command> {
        self.command("uninstall")
    }

    fn run(&self, mut command: Command) -> Result<Output> {
        self.node
            .supervised(|| command::run(&mut command, None, LIMIT))
    }

    /// Replaces containerd with a script from its next start on, until the returned function is
    /// called.
    fn replace_containerd(&self, lines: &str) -> Result<impl FnOnce() -> Result<()>> {
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

    fn status(&self) -> Result<serde_json::Value> {
        let mut status = self.command("status")?;
        status.arg("--json");
        Ok(serde_json::from_slice(&self.run(status)?.ok()?.stdout)?)
    }

    /// Returns the process that serves the socket.
    fn containerd(&self) -> Result<i32> {
        use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
        let stream = std::os::unix::net::UnixStream::connect(self.node.socket())?;
        Ok(getsockopt(&stream, PeerCredentials)?.pid())
    }

    /// Kills the command before its first, second, … system call that changes something, and calls
    /// `then` after each kill. Returns the number of kills.
    fn killed_at_each_call(
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

    fn is_as(&self, before: &Snapshot, at: &str) -> Result<()> {
        let now = self.snapshot()?;
        ensure!(now == *before, "{at}: {}", now.since(before));
        Ok(())
    }

    fn snapshot(&self) -> Result<Snapshot> {
        Snapshot::of(self.dir())
    }
}

/// All files and folders of a node that are not containerd's own: mode, owner, and contents or
/// target.
#[derive(Debug, PartialEq, Eq)]
struct Snapshot(BTreeMap<PathBuf, String>);

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
