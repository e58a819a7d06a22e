//! Watches files of the kernel that change by themselves, such as those of a cgroup (inotify(7)).

use std::{
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
    path::Path,
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};
use tokio::io::unix::AsyncFd;

pub use nix::sys::inotify::WatchDescriptor;

/// Files that are watched.
pub struct Watch(AsyncFd<Watcher>);

struct Watcher(Inotify);

impl AsRawFd for Watcher {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watch {
    /// Starts to watch, on the event loop that this is called from. No file is watched yet.
    pub fn start() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        // SAFETY: an open descriptor that is only closed with the value.
        let inotify = unsafe { AsyncFd::register(Watcher(inotify)) }.map_err(io::Error::from)?;
        Ok(Self(inotify))
    }

    /// Adds a file.
    pub fn add(&self, path: &Path) -> io::Result<WatchDescriptor> {
        let inotify = &self.0.get_ref().0;
        Ok(inotify.add_watch(path, AddWatchFlags::IN_MODIFY)?)
    }

    /// Removes a file. The kernel also does when the file goes.
    pub fn remove(&self, file: WatchDescriptor) {
        let _ = self.0.get_ref().0.rm_watch(file);
    }

    /// Waits for changes, and returns the file of each.
    pub async fn changed(&self) -> io::Result<Vec<WatchDescriptor>> {
        loop {
            let mut guard = self.0.readable().await?;
            let read = guard.try_io(|watcher| match watcher.get_ref().0.read_events() {
                Err(Errno::EINTR) => Ok(Vec::new()),
                events => Ok(events?),
            });
            if let Ok(events) = read {
                return Ok(events?.into_iter().map(|event| event.wd).collect());
            }
        }
    }
}
