//! The QEMU of a node VM.

use std::{
    fs::{self, File},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender},
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{bail, Context, Result};
use nix::{
    fcntl::{fcntl, FcntlArg, FdFlag},
    sys::{prctl, signal::Signal},
};

/// Debian's own QEMU: it has what a node needs, and emulates SVM.
const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// A cpu with nested paging. (`pcid` is none of the model's that TCG has, and it would say so.)
const CPU: &str = "EPYC-Milan,+svm,+npt,-pcid";
/// Pods are small VMs in it, and tests run several of them at once.
const MEMORY: &str = "5G";
const COMMAND_LINE: &str = "root=/dev/vda rw console=ttyS0 mitigations=off";
/// The port at which Debian's unit starts the agent (qemu-guest-agent.service).
const AGENT_PORT: &str = "org.qemu.guest_agent.0";

/// A running QEMU. It ends when this is dropped, and when this process ends.
pub struct Machine {
    /// Ends QEMU when it is closed.
    end: Option<Sender<()>>,
    /// Closed when QEMU has ended.
    ended: Receiver<()>,
    keeper: Option<JoinHandle<()>>,
    log: PathBuf,
}

impl Machine {
    /// Starts a VM from the folder of a release. What it writes to its disk goes to a file without
    /// a name. Returns it and the connection to its agent. `console` gets what it prints.
    pub fn start(
        release: &Path,
        console: &Path,
        shares: &[(&str, PathBuf)],
    ) -> Result<(Self, UnixStream)> {
        let log = console.with_extension("qemu.log");
        if let Some(dir) = console.parent() {
            fs::create_dir_all(dir)?;
        }
        let (agent, theirs) = UnixStream::pair()?;
        let mut qemu = command(release, console, shares, &theirs);
        qemu.stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?);
        let inherited = OwnedFd::from(theirs);
        let number = inherited.as_raw_fd();
        // SAFETY: both calls are async-signal-safe and touch no memory.
        unsafe {
            qemu.pre_exec(move || {
                prctl::set_pdeathsig(Signal::SIGKILL)?;
                let fd = std::os::fd::BorrowedFd::borrow_raw(number);
                fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
                Ok(())
            });
        }
        let (end, wanted) = channel();
        let (running, ended) = channel();
        let (tell, started) = channel();
        // PR_SET_PDEATHSIG is about the thread that started the process (prctl(2)), and a test's
        // thread ends with the test.
        let keeper = std::thread::spawn(move || {
            let child = qemu.spawn();
            drop(inherited);
            let (told, child) = match child {
                Ok(child) => (Ok(()), Some(child)),
                Err(error) => (Err(error), None),
            };
            let _ = tell.send(told);
            if let Some(child) = child {
                keep(child, &wanted);
            }
            drop(running);
        });
        started.recv().context("start QEMU")?.context(QEMU)?;
        let machine = Self {
            end: Some(end),
            ended,
            keeper: Some(keeper),
            log,
        };
        Ok((machine, agent))
    }

    /// Fails if QEMU has ended.
    pub fn check(&self) -> Result<()> {
        match self.ended.try_recv() {
            Err(std::sync::mpsc::TryRecvError::Disconnected) => {
                let said = fs::read_to_string(&self.log).unwrap_or_default();
                bail!("QEMU has ended: {said}")
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

/// Waits until a process has ended, or ends it when nobody wants it any more.
fn keep(mut child: Child, wanted: &Receiver<()>) {
    while let Ok(None) = child.try_wait() {
        match wanted.recv_timeout(Duration::from_millis(200)) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

fn command(
    release: &Path,
    console: &Path,
    shares: &[(&str, PathBuf)],
    agent: &impl AsRawFd,
) -> Command {
    let mut qemu = Command::new(QEMU);
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-machine", "q35", "-accel", "tcg,thread=multi"])
        .args(["-cpu", CPU, "-smp", "2", "-m", MEMORY])
        .arg("-kernel")
        .arg(release.join("vmlinuz"))
        .arg("-initrd")
        .arg(release.join("initrd"))
        .args(["-append", COMMAND_LINE])
        .arg("-drive")
        .arg(format!(
            "file={},format=raw,if=virtio,snapshot=on",
            release.join("disk").display()
        ))
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"])
        .arg("-chardev")
        .arg(format!("socket,id=agent,fd={}", agent.as_raw_fd()))
        .arg("-device")
        .arg(format!("virtserialport,chardev=agent,name={AGENT_PORT}"));
    for (tag, path) in shares {
        qemu.arg("-virtfs").arg(format!(
            "local,path={},mount_tag={tag},security_model=none,readonly=on,multidevs=remap",
            path.display()
        ));
    }
    qemu
}
