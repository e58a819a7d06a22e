//! Runs work inside a network namespace of the host.
//!
//! Sockets and taps belong to the namespace of the thread that made them. So what is opened inside
//! a namespace stays in it wherever it is used later.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::sched::{unshare, CloneFlags};
use tokio::sync::oneshot;

use super::error::NetworkError;

/// A pod's network namespace. It lives as long as this value, even without its name.
#[derive(Debug, Clone)]
pub struct Namespace {
    path: PathBuf,
    file: Arc<File>,
}

impl Namespace {
    /// Opens the namespace that `path` names. Refuses the host's own.
    pub fn open(path: &Path) -> Result<Self, NetworkError> {
        let failed = |source| NetworkError::Namespace {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let own = Path::new("/proc/self/ns/net").metadata().map_err(failed)?;
        let other = file.metadata().map_err(failed)?;
        if (own.dev(), own.ino()) == (other.dev(), other.ino()) {
            return Err(NetworkError::HostNamespace(path.to_owned()));
        }
        Ok(Self {
            path: path.to_owned(),
            file: Arc::new(file),
        })
    }

    /// Makes a namespace that nobody else has.
    pub async fn empty() -> Result<Self, NetworkError> {
        let path = PathBuf::from("/proc/thread-self/ns/net");
        let new = path.clone();
        let make = move || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open(new)
        };
        match on_a_thread(make).await {
            Ok(file) => Ok(Self {
                path,
                file: Arc::new(file),
            }),
            Err(source) => Err(NetworkError::Namespace { path, source }),
        }
    }

    /// Returns a descriptor of the namespace.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Does blocking work inside the namespace, on a thread of its own.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
    ) -> Result<T, NetworkError> {
        let file = self.file.clone();
        let inside = move || {
            // SAFETY: a descriptor that is open for the call, and a number.
            let entered = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
            match entered {
                0 => Ok(work()),
                _ => Err(io::Error::last_os_error()),
            }
        };
        on_a_thread(inside)
            .await
            .map_err(|source| NetworkError::Namespace {
                path: self.path.clone(),
                source,
            })?
    }
}

/// Does blocking work on a thread that ends with it: one that has been in another namespace can't
/// be reused.
async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (done, result) = oneshot::channel();
    let thread = std::thread::Builder::new().name("netns".to_owned());
    // The caller may have gone away; then what was made undoes itself.
    thread.spawn(move || drop(done.send(work())))?;
    let died = |_| Err(io::Error::other("the thread inside it died"));
    result.await.unwrap_or_else(died)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespace_of_the_host_is_refused() {
        let refused = Namespace::open(Path::new("/proc/self/ns/net"));
        assert!(matches!(refused, Err(NetworkError::HostNamespace(_))));
    }

    #[test]
    fn namespace_that_is_not_there_is_named() {
        let error = Namespace::open(Path::new("/run/netns/no such")).unwrap_err();
        assert!(error.to_string().contains("/run/netns/no such"), "{error}");
    }

    #[tokio::test]
    async fn file_that_is_no_namespace_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let namespace = Namespace::open(file.path()).unwrap();
        assert!(namespace.run(|| Ok(())).await.is_err());
    }
}
