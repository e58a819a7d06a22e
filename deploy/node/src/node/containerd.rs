//! Handles the containerd that runs on the node: finds its process, has it read a configuration,
//! asks it for its runtime handlers, and restarts it.

use std::{
    fmt, fs,
    os::unix::{net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Output},
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{bail, ensure, Context, Result};
use caisson_node::config::CONFIG_ENV;
use nix::{
    sys::{
        signal::{kill, Signal},
        socket::{getsockopt, sockopt::PeerCredentials},
    },
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use super::{
    layout::SOCKETS,
    program::{last_lines, output},
};
use crate::remote;

const DEFAULT_CONFIG: &str = "/etc/containerd/config.toml";
/// The limit for one run of a program that only reads.
const CALL_LIMIT: Duration = Duration::from_secs(15);
/// The limit for a process to end after SIGTERM, or for systemctl: k3s is up only when its API
/// server is.
const STOP_LIMIT: Duration = Duration::from_secs(180);

/// How containerd is restarted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Restart {
    /// With `systemctl restart` of this unit.
    Systemd(String),
    /// With SIGTERM; its supervisor starts it again.
    Signal,
    /// Not by Caisson.
    None,
}

impl FromStr for Restart {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("systemd:")) {
            ("signal", _) => Ok(Self::Signal),
            ("none", _) => Ok(Self::None),
            (_, Some(unit)) if !unit.is_empty() && !unit.starts_with('-') => {
                Ok(Self::Systemd(unit.to_owned()))
            }
            _ => Err(format!("{text:?} is none of systemd:UNIT, signal and none")),
        }
    }
}

impl TryFrom<String> for Restart {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Restart> for String {
    fn from(restart: Restart) -> Self {
        restart.to_string()
    }
}

impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Systemd(unit) => write!(f, "systemd:{unit}"),
            Self::Signal => write!(f, "signal"),
            Self::None => write!(f, "none"),
        }
    }
}

/// The process that serves containerd's socket.
#[derive(Debug)]
pub struct Containerd {
    pub socket: PathBuf,
    pub pid: i32,
    /// The path of the configuration that it reads.
    pub config: PathBuf,
    /// The configuration of Caisson that its shims read, where it is not the default.
    pub caisson_config: Option<PathBuf>,
    /// The systemd unit that it runs in.
    unit: Option<String>,
    arguments: Vec<String>,
    started: Option<u64>,
}

impl Containerd {
    /// Finds the process by its socket, or by the usual sockets where none is named.
    pub fn find(socket: Option<&Path>) -> Result<Self> {
        let Some(socket) = socket else {
            let found = SOCKETS
                .iter()
                .find_map(|socket| Self::at(Path::new(socket)).ok());
            return found.with_context(|| {
                format!(
                    "no containerd answers at {}: say with --containerd-socket where one is",
                    SOCKETS.join(" or ")
                )
            });
        };
        Self::at(socket)
    }

    fn at(socket: &Path) -> Result<Self> {
        let what = || format!("containerd does not answer at {}", socket.display());
        let stream = UnixStream::connect(socket).with_context(what)?;
        let pid = getsockopt(&stream, PeerCredentials)
            .with_context(what)?
            .pid();
        ensure!(
            pid > 0,
            "containerd at {} is in another pid namespace",
            socket.display()
        );
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let arguments = strings(&proc.join("cmdline"))?;
        let environment = strings(&proc.join("environ"))?;
        let caisson_config = environment.iter().find_map(|variable| {
            variable
                .strip_prefix(CONFIG_ENV)?
                .strip_prefix('=')
                .map(PathBuf::from)
        });
        let cwd = fs::read_link(proc.join("cwd")).unwrap_or_else(|_| "/".into());
        let config = config_argument(&arguments).unwrap_or_else(|| DEFAULT_CONFIG.to_owned());
        Ok(Self {
            socket: socket.to_owned(),
            pid,
            config: cwd.join(config),
            caisson_config,
            unit: unit(&fs::read_to_string(proc.join("cgroup")).unwrap_or_default()),
            arguments,
            started: started(pid),
        })
    }

    /// Returns how it is restarted where this is not specified.
    pub fn restart(&self) -> Restart {
        let systemd = Path::new("/run/systemd/system").exists();
        match self.unit.clone().filter(|_| systemd) {
            Some(unit) => Restart::Systemd(unit),
            None => Restart::Signal,
        }
    }

    /// Returns its version, such as `1.6.20`.
    pub fn version(&self) -> Result<String> {
        let output = self.run(&["--version"])?;
        // containerd github.com/containerd/containerd v2.1.4 REVISION
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text
            .split_whitespace()
            .nth(2)
            .context("containerd --version")?;
        Ok(version.trim_start_matches('v').to_owned())
    }

    /// Returns the format of a configuration that does not name its version.
    pub fn format(&self) -> Result<i64> {
        Ok(if self.version()?.starts_with("1.") {
            2
        } else {
            3
        })
    }

    /// Returns what containerd makes of a configuration, with all imports and the defaults. An
    /// error has containerd's own words.
    pub fn dump(&self, config: &Path) -> Result<String> {
        let config = config.to_str().context("a path that is no text")?;
        let output = self.run(&["-c", config, "config", "dump"])?;
        ensure!(
            output.status.success(),
            "containerd says: {}",
            last_lines(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs the very program that serves the socket, even where the file on disk has been replaced.
    fn run(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(format!("/proc/{}/exe", self.pid));
        // k3s is one program with many names.
        command.arg0(self.arguments.first().map_or("containerd", String::as_str));
        command.args(arguments);
        output(&mut command, CALL_LIMIT).context("run containerd's program")
    }

    /// Returns whether it is still the same process.
    pub fn is_running(&self) -> bool {
        self.started.is_some() && started(self.pid) == self.started
    }

    /// Returns the runtime handlers that its CRI plugin has.
    pub fn handlers(&self) -> Result<Vec<String>> {
        handlers(&self.socket)
    }

    /// Stops or restarts it, as `how` says.
    pub fn stop_or_restart(&self, how: &Restart) -> Result<()> {
        match how {
            Restart::None => Ok(()),
            Restart::Systemd(unit) => systemctl_restart(unit),
            Restart::Signal => {
                match kill(Pid::from_raw(self.pid), Signal::SIGTERM) {
                    Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                    Err(error) => bail!("SIGTERM to containerd, process {}: {error}", self.pid),
                }
                let end = Instant::now() + STOP_LIMIT;
                while self.is_running() {
                    ensure!(
                        Instant::now() < end,
                        "containerd, process {}, does not end",
                        self.pid
                    );
                    thread::sleep(Duration::from_millis(20));
                }
                Ok(())
            }
        }
    }
}

/// Restarts a unit.
pub fn systemctl_restart(unit: &str) -> Result<()> {
    // A unit that failed too often does not start again until its failures are reset.
    let _ = output(
        Command::new("systemctl").args(["reset-failed", unit]),
        CALL_LIMIT,
    );
    let mut command = Command::new("systemctl");
    let output = output(command.args(["restart", unit]), STOP_LIMIT)?;
    let errors = last_lines(&output.stderr);
    ensure!(
        output.status.success(),
        "systemctl restart {unit}: {errors}"
    );
    Ok(())
}

/// Returns the last lines that a unit logged.
pub fn journal(unit: &str) -> Option<String> {
    let mut command = Command::new("journalctl");
    command.args(["--no-pager", "--output=cat", "--lines=5", "--unit", unit]);
    let output = output(&mut command, CALL_LIMIT).ok()?;
    let text = last_lines(&output.stdout);
    (output.status.success() && !text.is_empty()).then_some(text)
}

/// Waits until a process other than `old` serves the socket and Kubernetes can use it, with the
/// handlers that are named.
pub fn wait_for(
    socket: &Path,
    old: Option<(i32, Option<u64>)>,
    wanted: &[String],
    limit: Duration,
) -> Result<Containerd> {
    let end = Instant::now() + limit;
    loop {
        let look = || {
            let found = Containerd::at(socket)?;
            ensure!(
                old != Some((found.pid, found.started)),
                "containerd, process {}, goes on as it was",
                found.pid
            );
            let handlers = found.handlers()?;
            if let Some(handler) = wanted.iter().find(|name| !handlers.contains(name)) {
                bail!("containerd answers, but has no handler {handler:?}");
            }
            Ok(found)
        };
        match look() {
            Ok(found) => return Ok(found),
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(200)),
        }
    }
}

impl Containerd {
    /// Returns what tells this process from a later one.
    pub fn identity(&self) -> (i32, Option<u64>) {
        (self.pid, self.started)
    }
}

/// Asks for the runtime handlers by `caisson-remote`, which has the client for containerd.
fn handlers(socket: &Path) -> Result<Vec<String>> {
    let mut command = remote::program();
    command.args(["node", "handlers", "--containerd-socket"]);
    let said = output(command.arg(socket), CALL_LIMIT)
        .context("ask containerd for its handlers (caisson-remote belongs beside caisson)")?;
    ensure!(
        said.status.success(),
        "{}",
        last_lines(&said.stderr).trim_start_matches("caisson: ")
    );
    serde_json::from_slice(&said.stdout).context("the handlers that caisson-remote prints")
}

/// Returns the path given to `-c` or `--config`, in any way that Go's flags can be written.
fn config_argument(arguments: &[String]) -> Option<String> {
    let names = ["-c", "--c", "-config", "--config"];
    let mut rest = arguments.iter().skip(1);
    while let Some(argument) = rest.next() {
        if names.contains(&argument.as_str()) {
            return rest.next().cloned();
        }
        let value = argument
            .split_once('=')
            .filter(|(name, _)| names.contains(name));
        if let Some((_, value)) = value {
            return Some(value.to_owned());
        }
    }
    None
}

/// Returns the service that `/proc/PID/cgroup` (cgroups(7)) names: in systemd's hierarchy, or in
/// the only one.
fn unit(cgroups: &str) -> Option<String> {
    let lines = cgroups.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        (controllers.is_empty() || controllers == "name=systemd").then_some(path)
    });
    let units = lines.flat_map(|path| path.rsplit('/'));
    units
        .filter(|name| name.ends_with(".service"))
        .map(str::to_owned)
        .next()
}

/// Returns field 22 of `/proc/<pid>/stat` (proc(5)), or `None` for a process that has gone or is a
/// zombie.
fn started(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let gone = matches!(*fields.first()?, "Z" | "X");
    fields.get(19)?.parse().ok().filter(|_| !gone)
}

fn strings(path: &Path) -> Result<Vec<String>> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let strings = bytes
        .split(|byte| *byte == 0)
        .filter(|bytes| !bytes.is_empty());
    Ok(strings
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(arguments: &[&str]) -> Option<String> {
        config_argument(
            &arguments
                .iter()
                .map(|a| (*a).to_owned())
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn config_is_found_in_every_way_to_write_it() {
        assert_eq!(found(&["containerd"]), None);
        assert_eq!(
            found(&["containerd", "-l", "debug", "-c", "/a"]),
            Some("/a".into())
        );
        assert_eq!(found(&["containerd", "--config=/b"]), Some("/b".into()));
        assert_eq!(found(&["containerd", "-config", "c"]), Some("c".into()));
    }

    #[test]
    fn unit_is_that_of_systemds_hierarchy() {
        assert_eq!(
            unit("0::/system.slice/containerd.service\n"),
            Some("containerd.service".into())
        );
        let both = "4:memory:/x.service\n1:name=systemd:/system.slice/k3s.service\n0::/\n";
        assert_eq!(unit(both), Some("k3s.service".into()));
        assert_eq!(unit("0::/user.slice/session-1.scope\n"), None);
    }

    #[test]
    fn restart_is_read_as_it_is_written() {
        for text in ["signal", "none", "systemd:containerd.service"] {
            assert_eq!(text.parse::<Restart>().unwrap().to_string(), text);
        }
        assert!("systemd:".parse::<Restart>().is_err() && "systemd:-x".parse::<Restart>().is_err());
    }
}
