//! A pseudo-terminal for programs that need one, such as `ctr run --tty`.

use std::{
    fs::File,
    io::{Read, Write},
    os::{fd::OwnedFd, unix::process::CommandExt},
    process::{Child, Command},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::pty::{openpty, Winsize};

use crate::command;

/// A program on its own terminal.
pub struct Terminal {
    child: Child,
    near: File,
    output: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// Starts `command` with a terminal of that size as its controlling terminal.
    pub fn spawn(command: &mut Command, columns: u16, rows: u16) -> Result<Self> {
        let pair = openpty(Some(&size(columns, rows)), None).context("openpty")?;
        let far: OwnedFd = pair.slave;
        command
            .stdin(far.try_clone()?)
            .stdout(far.try_clone()?)
            .stderr(far);
        // SAFETY: setsid and ioctl are async-signal-safe and touch no memory of the parent.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                if libc::ioctl(0, libc::TIOCSCTTY, 0) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        // The far end must be closed here, or reading the near end never finishes.
        command.stdin(std::process::Stdio::null());
        command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        let near = File::from(pair.master);
        let output = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, collected) = (near.try_clone()?, output.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                if let Ok(mut output) = collected.lock() {
                    output.extend_from_slice(&buffer[..length]);
                }
            }
        });
        Ok(Self {
            child,
            near,
            output,
        })
    }

    /// Types on the terminal.
    pub fn write(&mut self, text: &str) -> Result<()> {
        self.near.write_all(text.as_bytes()).context("type")
    }

    /// Changes the terminal's size. SIGWINCH tells the program.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        use std::os::fd::AsRawFd;
        let size = size(columns, rows);
        // SAFETY: TIOCSWINSZ reads one winsize, which `size` is, during the call.
        let done = unsafe { libc::ioctl(self.near.as_raw_fd(), libc::TIOCSWINSZ, &size) };
        nix::errno::Errno::result(done).context("resize").map(drop)
    }

    /// Returns everything shown so far.
    pub fn shown(&self) -> String {
        let output = self
            .output
            .lock()
            .map(|output| output.clone())
            .unwrap_or_default();
        String::from_utf8_lossy(&output).into_owned()
    }

    /// Waits until a text has been shown. Returns everything that was shown.
    pub fn wait_for(&self, text: &str) -> Result<String> {
        command::poll(
            &format!("{text:?} on the terminal"),
            Duration::from_secs(30),
            || Some(self.shown()).filter(|shown| shown.contains(text)),
        )
        .with_context(|| self.shown())
    }

    /// Waits for the program's end. Returns its exit code.
    pub fn wait(&mut self, limit: Duration) -> Result<i32> {
        let status = command::wait(&mut self.child, limit)?;
        let status = status.with_context(|| format!("still runs: {}", self.shown()))?;
        Ok(status.code().unwrap_or(-1))
    }

    /// Returns the program's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn size(columns: u16, rows: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}
