//! Asks the host for more memory before the containers run out of it.
//!
//! A container without a memory limit may use what the node has, and its VM begins with little of
//! that. So the cgroup of all containers has a `memory.high` somewhat below the VM's memory. The
//! kernel slows down what takes more, and takes back what it can, such as caches. If most of the
//! memory can't be taken back, the host is asked to give the VM more.

use std::{
    fs,
    io::ErrorKind,
    sync::{
        atomic::{AtomicBool, Ordering},
        Arc,
    },
    time::Duration,
};

use caisson_protocol::agent::MemorySize;
use tokio::sync::Notify;

use crate::{cgroup::Cgroup, kernel::watch::Watch, Error, Result};

/// What is left for the kernel, the agent and what the containers take until more has come, in
/// bytes. A sixteenth of the memory is left beyond that.
const RESERVE: u64 = 64 << 20;
/// The size of a page in bytes.
const PAGE: u64 = 4096;
/// How often it is looked whether the containers need more, at most. A container that reads files
/// fills any memory with caches, and is at the limit all the time.
const PAUSE: Duration = Duration::from_millis(50);

/// The memory for the containers. Cheap to clone.
#[derive(Clone)]
pub struct Room {
    shared: Arc<Shared>,
}

struct Shared {
    cgroup: Cgroup,
    /// Whether the host would give more, and has not been asked yet.
    may_ask: AtomicBool,
    wanted: Notify,
}

impl Room {
    /// Watches the cgroup of all containers, on the event loop that this is called from. Without
    /// the memory controller there is nothing to watch.
    pub fn watch() -> Result<Room> {
        let room = Room {
            shared: Arc::new(Shared {
                cgroup: Cgroup::of_all(),
                may_ask: AtomicBool::new(false),
                wanted: Notify::new(),
            }),
        };
        let watch = Watch::start().map_err(Error::system("watch files"))?;
        let events = room.shared.cgroup.path().join("memory.events.local");
        if watch.add(&events).is_ok() {
            let room = room.clone();
            tokio::spawn(async move {
                loop {
                    if let Err(error) = watch.changed().await {
                        log::error!(error:%; "watch for memory that runs out");
                        return;
                    }
                    room.look();
                    tokio::time::sleep(PAUSE).await;
                }
            });
        }
        Ok(room)
    }

    /// Says that the VM has another size now, and up to which it may grow.
    pub fn set(&self, size: &MemorySize) -> Result<()> {
        let to_come = size.most_bytes.saturating_sub(size.bytes);
        let own = show(to_come)?;
        let may_grow = to_come > 0;
        let high = match may_grow {
            true => {
                let high = own.saturating_sub(RESERVE).saturating_sub(own / 16);
                high.to_string()
            }
            false => "max".to_string(),
        };
        let path = self.shared.cgroup.path().join("memory.high");
        fs::write(&path, high).map_err(Error::file("write", path))?;
        self.shared.may_ask.store(may_grow, Ordering::SeqCst);
        // What is waiting for more may have been over the limit for long enough to be still.
        self.look();
        Ok(())
    }

    /// Waits until the containers need more.
    pub async fn wanted(&self) {
        self.shared.wanted.notified().await;
    }

    fn look(&self) {
        let may_ask = self.shared.may_ask.load(Ordering::SeqCst);
        if may_ask && self.shared.cgroup.is_full_for_good() {
            self.shared.may_ask.store(false, Ordering::SeqCst);
            self.shared.wanted.notify_one();
        }
    }
}

/// Has the kernel count memory that the host will give as memory that the machine has, as far as
/// the kernel is ours (`packaging/machine/kernel.patch`). Returns how much the machine really has.
/// Both are in bytes.
fn show(to_come: u64) -> Result<u64> {
    let path = "/proc/sys/vm/pages_to_come";
    let shown = match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return memory(),
        shown => shown.map_err(Error::file("read", path))?,
    };
    let own = memory()?.saturating_sub(shown.trim().parse().unwrap_or(0) * PAGE);
    let pages = (to_come / PAGE).to_string();
    fs::write(path, pages).map_err(Error::file("write", path))?;
    Ok(own)
}

/// Returns the memory of the machine in bytes (proc(5), `MemTotal`).
fn memory() -> Result<u64> {
    let path = "/proc/meminfo";
    let text = fs::read_to_string(path).map_err(Error::file("read", path))?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    Ok(kib.unwrap_or(0) << 10)
}
