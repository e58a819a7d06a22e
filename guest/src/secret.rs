//! Asks the host, on the console, for the machine's secret (see [`caisson_protocol::secret`]).
//!
//! Only this process has the secret in its memory: a helper that the agent executes starts with
//! empty memory.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Write},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::Path,
    time::{Duration, Instant},
};

use caisson_protocol::secret::{BY_DAEMON, BY_KERNEL, LENGTH, MARKER};
use nix::{
    poll::{poll, PollFd, PollFlags, PollTimeout},
    sys::termios::{
        tcflush, tcgetattr, tcsetattr, FlushArg, InputFlags, LocalFlags, SetArg,
        SpecialCharacterIndices,
    },
};

use crate::{Error, Result};

/// How long the host has to answer. It answers within a millisecond, unless it is out of memory or
/// swapping. The guest's start may take no longer than the host's `vm.boot_timeout_secs`, 60 s.
const LIMIT: Duration = Duration::from_secs(60);
/// How long to wait before asking again: a line of the kernel may have come into the middle of the
/// question.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// The name of the file from which the fake agent reads its secret.
const FILE: &str = "secret";

/// What the host tells a machine.
#[derive(Clone)]
pub struct Secret {
    pub bytes: [u8; LENGTH],
    /// True if the host's kernel carries the connections, so that those of the shim come from a
    /// reserved port.
    pub by_kernel: bool,
}

impl Secret {
    fn parse(told: &[u8; 1 + LENGTH]) -> Option<Secret> {
        let (carrier, bytes) = told.split_first()?;
        let by_kernel = match *carrier {
            BY_KERNEL => true,
            BY_DAEMON => false,
            _ => return None,
        };
        Some(Secret {
            bytes: bytes.try_into().ok()?,
            by_kernel,
        })
    }

    /// Reads the secret of a fake from a file in its directory, and removes the file.
    pub fn of_fake(dir: &Path) -> Result<Secret> {
        let path = dir.join(FILE);
        let told = fs::read(&path).map_err(Error::file("read", &path))?;
        fs::remove_file(&path).map_err(Error::file("remove", &path))?;
        let told = told.as_slice().try_into().ok();
        told.and_then(Secret::parse).ok_or_else(unreadable)
    }
}

/// Asks the question, waits for the answer and returns the secret.
pub fn ask(console: &str) -> Result<Secret> {
    let console = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
        .open(console)
        .map_err(Error::file("open", console))?;
    take_bytes_as_they_are(&console).map_err(Error::system("prepare the console"))?;
    write_question(&console)?;
    let mut told = [0; 1 + LENGTH];
    let mut length = 0;
    let end = Instant::now() + LIMIT;
    while length < told.len() {
        if Instant::now() >= end {
            return Err(Error::Slow {
                what: "the host's answer with the machine's secret",
                waited: LIMIT,
            });
        }
        match (&console).read(&mut told[length..]) {
            Ok(0) => return Err(unreadable()),
            Ok(read) => length += read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if !readable(&console).map_err(Error::system("read the console"))? && length == 0 {
                    write_question(&console)?;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::system("read the console")(error)),
        }
    }
    Secret::parse(&told).ok_or_else(unreadable)
}

/// Turns off echo, line editing, signals and conversion of the input. The output stays as it was.
fn take_bytes_as_they_are(console: &File) -> nix::Result<()> {
    let mut terminal = tcgetattr(console)?;
    terminal.input_flags = InputFlags::empty();
    terminal.local_flags = LocalFlags::empty();
    terminal.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
    terminal.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
    tcsetattr(console, SetArg::TCSANOW, &terminal)?;
    tcflush(console, FlushArg::TCIFLUSH)
}

fn write_question(mut console: &File) -> Result<()> {
    let written = console.write_all(format!("{MARKER}\n").as_bytes());
    written.map_err(Error::system("ask for the secret"))
}

/// Returns whether input has come within [`ASK_AGAIN`].
fn readable(console: &File) -> nix::Result<bool> {
    let mut polled = [PollFd::new(console.as_fd(), PollFlags::POLLIN)];
    let limit = PollTimeout::try_from(ASK_AGAIN).unwrap_or(PollTimeout::MAX);
    Ok(poll(&mut polled, limit)? > 0)
}

fn unreadable() -> Error {
    Error::Argument {
        field: "the machine's secret",
        value: String::new(),
        why: "is not what the agent expects: shim and guest image are of different versions",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_says_the_secret_and_who_carries_connections() {
        let mut told = [7; 1 + LENGTH];
        for (first, by_kernel) in [(BY_KERNEL, Some(true)), (BY_DAEMON, Some(false)), (0, None)] {
            told[0] = first;
            let secret = Secret::parse(&told);
            assert_eq!(secret.as_ref().map(|secret| secret.by_kernel), by_kernel);
            assert!(secret.is_none_or(|secret| secret.bytes == [7; LENGTH]));
        }
    }
}
