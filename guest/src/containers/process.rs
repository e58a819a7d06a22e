//! One process that the host started: a container's init or an exec.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use caisson_protocol::agent;
use nix::{errno::Errno, fcntl::OFlag, unistd::pipe2};

use super::streams::{Channel, End, Streams};
use crate::{
    kernel::tty,
    launch,
    reaper::{self, Exit, Expected, Reaper},
    runtime::task::{Made, Request},
    Error, Result,
};

/// A process that was started, running or not.
pub struct Process {
    /// The pid in the guest's root pid namespace.
    pub pid: u32,
    /// The exit status, once the process has ended.
    pub exit: Exit,
    pidfd: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
}

impl Process {
    /// Has a runtime process start the process, and offers its streams.
    pub async fn start(
        reaper: &Reaper,
        streams: &Streams,
        request: &Request,
        wanted: &agent::Streams,
    ) -> Result<Process> {
        let expected = reaper.expect();
        if wanted.terminal {
            let made = launch::run(&expected, request, &[]).await?;
            return Process::on_terminal(&expected, streams, made, wanted);
        }
        let null = || {
            std::fs::File::options()
                .read(true)
                .write(true)
                .open("/dev/null")
                .map_err(Error::file("open", "/dev/null"))
        };
        let pipe = |token: u64, input: bool| -> Result<(OwnedFd, Option<OwnedFd>)> {
            if token == 0 {
                return Ok((null()?.into(), None));
            }
            let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(Error::system("make pipes"))?;
            Ok(if input {
                (read, Some(write))
            } else {
                (write, Some(read))
            })
        };
        let (stdin, our_stdin) = pipe(wanted.stdin, true)?;
        let (stdout, our_stdout) = pipe(wanted.stdout, false)?;
        let (stderr, our_stderr) = pipe(wanted.stderr, false)?;
        let stdio = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        let made = launch::run(&expected, request, &stdio).await?;
        drop((stdin, stdout, stderr));
        let process = Process::watch(&expected, &made)?;
        let ends = [
            (wanted.stdin, our_stdin, true),
            (wanted.stdout, our_stdout, false),
            (wanted.stderr, our_stderr, false),
        ];
        for (token, fd, input) in ends {
            if let Some(fd) = fd {
                let channel = Channel::new(fd).map_err(Error::system("use pipes"))?;
                let end = if input {
                    End::Input(channel)
                } else {
                    End::Output(channel)
                };
                streams.offer(token, end, &process.exit);
            }
        }
        Ok(process)
    }

    fn on_terminal(
        expected: &Expected,
        streams: &Streams,
        made: Made,
        wanted: &agent::Streams,
    ) -> Result<Process> {
        let failed = || Error::system::<io::Error>("use the terminal");
        let mut process = Process::watch(expected, &made)?;
        let master = made.terminal.ok_or_else(|| {
            failed()(io::Error::new(
                io::ErrorKind::NotFound,
                "no terminal was made",
            ))
        })?;
        if wanted.stdin != 0 {
            let channel = another(&master).map_err(failed())?;
            streams.offer(wanted.stdin, End::Input(channel), &process.exit);
        }
        if wanted.stdout != 0 {
            let channel = another(&master).map_err(failed())?;
            streams.offer(wanted.stdout, End::Output(channel), &process.exit);
        }
        process.terminal = Some(master);
        Ok(process)
    }

    fn watch(expected: &Expected, made: &Made) -> Result<Process> {
        let pid = made.pid.ok_or(Error::Runtime {
            message: "the runtime process told no pid".to_string(),
        })?;
        let (exit, pidfd) = expected.watch(pid);
        Ok(Process {
            pid: pid as u32,
            exit,
            pidfd,
            terminal: None,
        })
    }

    /// Returns whether the process has ended.
    pub fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Waits until the process has ended, and returns its status.
    pub async fn wait(&self) -> u32 {
        reaper::ended(&self.exit).await
    }

    /// Sends a signal. Fails with `ESRCH` if the process has ended.
    pub fn signal(&self, signal: u32) -> std::result::Result<(), Errno> {
        let Some(pidfd) = self.pidfd.as_ref().filter(|_| !self.has_ended()) else {
            return Err(Errno::ESRCH);
        };
        // SAFETY: an open descriptor, numbers, and no siginfo.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                pidfd.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        Errno::result(result).map(drop)
    }

    /// Sets the size of the terminal. Without a terminal, nothing is done.
    pub fn resize(&self, width: u16, height: u16) -> Result<()> {
        match &self.terminal {
            Some(master) => tty::resize(master, width, height)
                .map_err(Error::system("set the size of the terminal")),
            None => Ok(()),
        }
    }
}

/// Returns a channel with its own descriptor, since the event loop takes each descriptor only once.
fn another(terminal: &OwnedFd) -> io::Result<Channel> {
    Channel::new(terminal.try_clone()?)
}
