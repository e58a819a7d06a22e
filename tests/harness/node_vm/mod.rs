//! A Debian node in a VM of its own, with what the tests' machine need not have: systemd as PID 1,
//! a unified cgroup hierarchy, and KVM.
//!
//! ```no_run
//! use caisson_tests::node_vm::{Debian, NodeVm};
//!
//! let node = NodeVm::boot(Debian::V12)?;
//! assert_eq!(node.sh("systemctl is-active containerd")?, "active");
//! node.reboot()?;
//! # anyhow::Ok(())
//! ```
//!
//! The VM is emulated, and so is the SVM of its cpu, by which its KVM works: what it shows is that
//! things work, never how fast. Nothing that it writes to its disk lives longer than the VM.
//!
//! - [`agent`]: runs programs in the VM; [`machine`]: its QEMU.

mod agent;
mod machine;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{bail, ensure, Context, Result};

use self::{agent::Agent, machine::Machine};
use crate::{
    command::{self, Output},
    paths,
};

/// How long a command may take. It ends what hangs; an emulated node on a busy machine is slow.
pub const LIMIT: Duration = Duration::from_secs(300);
/// How long a boot or a reboot may take, a stop of all services included.
const BOOT: Duration = Duration::from_secs(400);

/// A release of Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Debian {
    /// Linux 6.1, systemd 252, containerd 1.6.
    V12,
    /// Linux 6.12, systemd 257, containerd 1.7.
    V13,
}

impl Debian {
    /// Returns the release that `CAISSON_TEST_DEBIAN` names: `12` (the default) or `13`.
    pub fn from_environment() -> Result<Self> {
        match std::env::var("CAISSON_TEST_DEBIAN").as_deref() {
            Ok("12") | Err(_) => Ok(Self::V12),
            Ok("13") => Ok(Self::V13),
            Ok(other) => bail!("CAISSON_TEST_DEBIAN={other}: none of 12 and 13"),
        }
    }

    fn number(self) -> &'static str {
        match self {
            Self::V12 => "12",
            Self::V13 => "13",
        }
    }

    /// Returns the folder of the release's disk, kernel and initrd.
    fn dir(self) -> Result<PathBuf> {
        let dir = paths::target().join("cache/node-vm").join(self.number());
        ensure!(
            dir.join("disk").exists(),
            "no {}: cargo xtask node-vm {}",
            dir.display(),
            self.number()
        );
        Ok(dir)
    }
}

/// A running node VM. Dropping it ends it, and so does the end of this process.
pub struct NodeVm {
    agent: Agent,
    machine: Machine,
    debian: Debian,
}

impl NodeVm {
    /// Boots a release as it is after its installation. The build folder and the checkout are
    /// mounted at the paths that they have here; what is written to them stays in the VM.
    pub fn boot(debian: Debian) -> Result<Self> {
        let started = Instant::now();
        let (machine, agent) = Machine::start(&debian.dir()?, &console_log(debian), &shares())?;
        let node = Self {
            agent: Agent::new(agent)?,
            machine,
            debian,
        };
        node.wait_for_boot(|_| true)
            .with_context(|| format!("boot Debian {}", debian.number()))?;
        node.mount_shares()?;
        println!("Debian {} up in {:.0?}", debian.number(), started.elapsed());
        Ok(node)
    }

    /// Returns the node's release.
    pub fn debian(&self) -> Debian {
        self.debian
    }

    /// Runs a script by bash as root. Returns its output without the white space around it. A
    /// status other than 0 is an error with all of its output.
    pub fn sh(&self, script: &str) -> Result<String> {
        let output = self.run(script, LIMIT)?;
        Ok(output.ok().with_context(|| script.to_owned())?.line())
    }

    /// Runs a script by bash as root. A script that takes longer than `limit` is killed, which is
    /// an error.
    pub fn run(&self, script: &str, limit: Duration) -> Result<Output> {
        self.agent
            .run(script, limit)
            .map_err(|error| error.context(self.console()))
    }

    /// Runs a script repeatedly until it succeeds. Returns what it printed then.
    pub fn poll(&self, what: &str, script: &str) -> Result<String> {
        let mut last = None;
        command::poll(what, LIMIT, || match self.sh(script) {
            Ok(line) => Some(line),
            Err(error) => {
                std::thread::sleep(Duration::from_secs(1));
                last = Some(error);
                None
            }
        })
        .map_err(|error| match last {
            Some(last) => last.context(error),
            None => error,
        })
    }

    /// Reboots the node in good order, as `systemctl reboot` does.
    pub fn reboot(&self) -> Result<()> {
        self.boot_again("sleep 1; systemctl --no-block reboot")
    }

    /// Reboots the node at once, as after a power failure: nothing is stopped or written out.
    pub fn power_cut(&self) -> Result<()> {
        self.boot_again("sleep 1; echo b >/proc/sysrq-trigger")
    }

    fn boot_again(&self, script: &str) -> Result<()> {
        let before = self.sh(BOOT_ID)?;
        self.agent.begin(script)?;
        self.wait_for_boot(|boot_id| boot_id != before)
            .context("reboot")?;
        self.mount_shares()
    }

    /// Waits until systemd has started what it starts at a boot whose id is a wanted one.
    fn wait_for_boot(&self, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let script = format!("{BOOT_ID}; systemctl is-system-running --wait >/dev/null; true");
        let up = command::poll("the node to be up", BOOT, || {
            self.machine.check().err().map(Err).or_else(|| {
                std::thread::sleep(Duration::from_secs(1));
                let output = self.agent.run(&script, BOOT).ok()?;
                wanted(&output.line()).then_some(Ok(()))
            })
        });
        up.and_then(|up| up)
            .map_err(|error| error.context(self.console()))
    }

    /// Mounts the host's folders, each below a layer that takes what is written.
    fn mount_shares(&self) -> Result<()> {
        for (tag, path) in shares() {
            let path = path.display();
            // What is read stays in the VM's page cache: the host's files do not change meanwhile.
            self.sh(&format!(
                "set -e; lower=/run/shares/{tag}; upper=/var/lib/shares/{tag}
                mkdir -p $lower $upper/upper $upper/work {path}
                mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose \
                    {tag} $lower
                mount -t overlay -o lowerdir=$lower,upperdir=$upper/upper,workdir=$upper/work \
                    overlay {path}"
            ))?;
        }
        Ok(())
    }

    /// Returns the end of what the node has printed on its console, for an error.
    fn console(&self) -> String {
        let path = console_log(self.debian);
        let text = std::fs::read(&path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(15)..].join("\n");
        format!("the node's console ({}):\n{last}", path.display())
    }
}

const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";

fn console_log(debian: Debian) -> PathBuf {
    let name = format!("node-vm-{}-{}.log", debian.number(), std::process::id());
    paths::target().join("log").join(name)
}

/// The host's folders that a node VM gets, by their tags. The second may lie in the first.
fn shares() -> [(&'static str, PathBuf); 2] {
    let whole = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    [
        ("workspace", whole(&paths::workspace())),
        ("target", whole(&paths::target())),
    ]
}
