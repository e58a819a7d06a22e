//! Opens files that a process has from its start: descriptors 3 and up, in the order that the host
//! gave.
//!
//! They are opened with the guest's own rights and mounts, before this process enters a container's
//! namespaces. They are opened once for each process, so that no two processes share an offset.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use nix::fcntl::{fcntl, FcntlArg};
use pathrs::{
    error::{Error as PathError, ErrorKind},
    flags::OpenFlags,
    Root,
};

use super::{
    error::{Error, Result},
    task::Descriptor,
};

/// The number of the first descriptor.
const FIRST: RawFd = 3;
/// The most descriptors that one process can have.
const MAX: usize = 16;
/// Descriptors that this process opens for itself and keeps have this number or a higher one.
pub const OWN: RawFd = FIRST + MAX as RawFd;

/// Opens the files at their numbers, to stay open when a program is executed. Returns how many
/// there are.
pub(super) fn open(descriptors: &[Descriptor]) -> Result<i32> {
    let numbers = FIRST..OWN;
    if descriptors.len() > numbers.len() {
        let too_many = io::Error::from_raw_os_error(libc::EMFILE);
        return Err(Error::system("open a process' descriptors")(too_many));
    }
    for (number, descriptor) in numbers.zip(descriptors) {
        let opened = open_one(descriptor).and_then(|file| place(file, number));
        opened.map_err(|source| Error::Descriptor {
            origin: descriptor.origin.clone(),
            source,
        })?;
    }
    Ok(descriptors.len() as i32)
}

fn open_one(descriptor: &Descriptor) -> io::Result<File> {
    let root = Root::open(&descriptor.directory).map_err(system)?;
    let found = root.resolve(&descriptor.name).map_err(system)?;
    // Opening a FIFO would wait, and opening a device may do anything.
    let kind = nix::sys::stat::fstat(&found)?.st_mode & libc::S_IFMT;
    if kind != libc::S_IFREG {
        return Err(io::Error::other("it is not a file"));
    }
    found.reopen(OpenFlags::O_RDONLY).map_err(system)
}

fn place(file: File, number: RawFd) -> io::Result<()> {
    // SAFETY: takes a number and changes nothing.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0 && file.as_raw_fd() != number {
        return Err(io::Error::other(format!("descriptor {number} is taken")));
    }
    // Moved away first, since the file may happen to be at the number already.
    let away = fcntl(&file, FcntlArg::F_DUPFD_CLOEXEC(OWN))?;
    // SAFETY: fcntl(2) just returned this descriptor, and nothing else owns it.
    let away = unsafe { OwnedFd::from_raw_fd(away) };
    drop(file);
    // SAFETY: an open descriptor, and a number that no value owns, as checked above. The copy is
    // not close-on-exec.
    match unsafe { libc::dup2(away.as_raw_fd(), number) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Returns the system's own error, if there is one.
fn system(error: PathError) -> io::Error {
    match error.kind() {
        ErrorKind::OsError(Some(errno)) => io::Error::from_raw_os_error(errno),
        _ => io::Error::other(error),
    }
}
