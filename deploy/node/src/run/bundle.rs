//! Makes and removes the OCI bundle of one `caisson run`, `<store_dir>/run/<id>/`. It is on disk,
//! since an image is unpacked into it, and in a known place, so that the next run and `caisson gc`
//! find what a killed run left.
//!
//! ```text
//! ../.lock      held while bundles are made or looked through
//! lock          held as long as the run lives: if it can be locked, the run is dead
//! config.json   for the shim
//! rootfs/       the image, unpacked
//! events.sock   where the shim publishes its events
//! log, stdin, stdout, stderr   FIFOs
//! ```

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::{fs::DirBuilderExt, net::UnixStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use caisson_node::{config::NodeConfig, state};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::{
        signal::{kill, Signal},
        socket::{getsockopt, sockopt::PeerCredentials},
    },
    unistd::Pid,
};
use sha2::{Digest, Sha256};

/// The containerd namespace of what `caisson run` starts; homes are kept by namespace.
pub const NAMESPACE: &str = "caisson-run";
/// How long a killed shim may take to go away.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// A bundle. Dropping it removes everything of the run from the host, including the shim and its VM
/// if they are still alive.
#[derive(Debug)]
pub struct Bundle {
    pub id: String,
    path: PathBuf,
    state_dir: PathBuf,
    _lock: Flock<File>,
}

impl Bundle {
    /// Makes a bundle's folder under a new random id.
    pub fn create(config: &NodeConfig) -> Result<Self> {
        let runs = runs(config);
        let _making = lock_all(&runs)?;
        let mut random = [0; 6];
        File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut random))
            .context("read /dev/urandom")?;
        let id = format!("run-{}", hex::encode(random));
        let path = runs.join(&id);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("create {}", path.display()))?;
        let lock = lock_file(&path.join("lock"), FlockArg::LockExclusiveNonblock)?
            .context("a new bundle is locked")?;
        Ok(Self {
            id,
            path,
            state_dir: config.state_dir.clone(),
            _lock: lock,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of a file of the bundle.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Removes what killed runs left, and returns their ids.
    pub fn sweep(config: &NodeConfig) -> Result<Vec<String>> {
        let runs = runs(config);
        if !runs.exists() {
            return Ok(Vec::new());
        }
        let mut dead = Vec::new();
        {
            let _looking = lock_all(&runs)?;
            for entry in fs::read_dir(&runs).with_context(|| runs.display().to_string())? {
                let entry = entry.with_context(|| runs.display().to_string())?;
                let Ok(id) = entry.file_name().into_string() else {
                    continue;
                };
                if !id.starts_with("run-") || !entry.path().is_dir() {
                    continue;
                }
                let lock = entry.path().join("lock");
                if let Some(lock) = lock_file(&lock, FlockArg::LockExclusiveNonblock)? {
                    dead.push((id, lock));
                }
            }
        }
        let mut removed = Vec::new();
        for (id, _lock) in dead {
            remove(&config.state_dir, &id, &runs.join(&id))?;
            removed.push(id);
        }
        Ok(removed)
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.state_dir, &self.id, &self.path) {
            eprintln!("caisson: leaving {} behind: {error:#}", self.path.display());
        }
    }
}

/// Returns the socket of the shim that runs with a bundle (containerd-shim, `socket_address`:
/// /run/containerd/s/ and the sha256 of containerd's own socket, the namespace and the id).
fn shim_socket(id: &str, bundle: &Path) -> PathBuf {
    let name = bundle
        .join(crate::shim::CONTAINERD)
        .join(NAMESPACE)
        .join(id);
    let digest = Sha256::digest(name.display().to_string());
    Path::new("/run/containerd/s").join(hex::encode(digest))
}

/// Removes everything of a run. Idempotent.
fn remove(state_dir: &Path, id: &str, bundle: &Path) -> Result<()> {
    let socket = shim_socket(id, bundle);
    kill_listener(&socket);
    state::remove(state_dir, id)?;
    for result in [fs::remove_file(&socket), fs::remove_dir_all(bundle)] {
        match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", bundle.display()))
            }
            _ => {}
        }
    }
    Ok(())
}

/// Kills the process that listens on a socket, if there is one: a shim without a pod has no state
/// folder through which it could be found.
fn kill_listener(socket: &Path) {
    let Ok(connection) = UnixStream::connect(socket) else {
        return;
    };
    let Ok(peer) = getsockopt(&connection, PeerCredentials) else {
        return;
    };
    if kill(Pid::from_raw(peer.pid()), Signal::SIGKILL).is_ok() {
        // The process's end of the connection closes with it.
        let deadline = Instant::now() + KILL_LIMIT;
        while UnixStream::connect(socket).is_ok() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn runs(config: &NodeConfig) -> PathBuf {
    config.store_dir.join("run")
}

fn lock_all(runs: &Path) -> Result<Flock<File>> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(runs)
        .with_context(|| format!("create {}", runs.display()))?;
    lock_file(&runs.join(".lock"), FlockArg::LockExclusive)?.context("the lock is not to be had")
}

/// Locks a file. Returns `None` if another process holds the lock and `how` says not to wait.
fn lock_file(path: &Path, how: FlockArg) -> Result<Option<Flock<File>>> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("open {}", path.display()))?;
    match Flock::lock(file, how) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error).with_context(|| format!("lock {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path) -> NodeConfig {
        NodeConfig {
            state_dir: dir.join("state"),
            store_dir: dir.join("store"),
            ..NodeConfig::default()
        }
    }

    #[test]
    fn bundle_of_a_run_that_lives_is_not_swept() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let bundle = Bundle::create(&config).unwrap();
        assert_eq!(Bundle::sweep(&config).unwrap(), Vec::<String>::new());
        assert!(bundle.path().is_dir());
        let path = bundle.path().to_owned();
        drop(bundle);
        assert!(!path.exists());
    }

    #[test]
    fn bundle_of_a_killed_run_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let left = runs(&config).join("run-0123");
        fs::create_dir_all(left.join("rootfs/etc")).unwrap();
        assert_eq!(Bundle::sweep(&config).unwrap(), ["run-0123"]);
        assert!(!left.exists());
    }
}
