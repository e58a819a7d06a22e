//! Reports that the kernel killed a process of a container for lack of memory.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::sync::Notify;

use crate::{
    cgroup::Cgroup,
    kernel::watch::{Watch, WatchDescriptor},
    Error, Result,
};

/// How many events are kept that the host has not fetched. The oldest are dropped first.
const MAX_EVENTS: usize = 1024;

/// Watches cgroups. Cheap to clone.
#[derive(Clone)]
pub struct Oom {
    shared: Arc<Shared>,
}

struct Shared {
    watch: Watch,
    table: Mutex<Table>,
    event: Notify,
}

#[derive(Default)]
struct Table {
    watched: HashMap<WatchDescriptor, Watched>,
    events: VecDeque<String>,
}

struct Watched {
    container: String,
    cgroup: Cgroup,
    seen: u64,
}

impl Oom {
    /// Starts to watch, on the event loop that this is called from.
    pub fn start() -> Result<Oom> {
        let watch = Watch::start().map_err(Error::system("watch files"))?;
        let oom = Oom {
            shared: Arc::new(Shared {
                watch,
                table: Mutex::default(),
                event: Notify::new(),
            }),
        };
        let reading = oom.clone();
        tokio::spawn(async move {
            loop {
                if let Err(error) = reading.read().await {
                    log::error!(error:%; "watch for out of memory events");
                    return;
                }
            }
        });
        Ok(oom)
    }

    /// Watches a container until [`Oom::forget`]. Without the memory controller there is nothing to
    /// watch.
    pub fn watch(&self, container: &str, cgroup: &Cgroup) {
        let path = cgroup.path().join("memory.events");
        match self.shared.watch.add(&path) {
            Ok(descriptor) => {
                let watched = Watched {
                    container: container.to_string(),
                    seen: cgroup.oom_kills(),
                    cgroup: cgroup.clone(),
                };
                self.lock().watched.insert(descriptor, watched);
            }
            Err(error) => log::warn!(container, error:%; "out of memory events can't be seen"),
        }
    }

    /// Checks a container one last time, and stops watching it.
    pub fn forget(&self, container: &str) {
        let mut table = self.lock();
        let found = table
            .watched
            .iter()
            .find(|(_, watched)| watched.container == container)
            .map(|(descriptor, _)| *descriptor);
        if let Some(descriptor) = found {
            self.look(&mut table, &descriptor);
            table.watched.remove(&descriptor);
            self.shared.watch.remove(descriptor);
        }
    }

    /// Waits for the next event and returns the container's id.
    pub async fn next(&self) -> String {
        loop {
            let event = self.shared.event.notified();
            if let Some(container) = self.lock().events.pop_front() {
                return container;
            }
            event.await;
        }
    }

    async fn read(&self) -> std::io::Result<()> {
        for file in self.shared.watch.changed().await? {
            self.look(&mut self.lock(), &file);
        }
        Ok(())
    }

    fn look(&self, table: &mut Table, descriptor: &WatchDescriptor) {
        let Some(watched) = table.watched.get_mut(descriptor) else {
            return;
        };
        let kills = watched.cgroup.oom_kills();
        if kills > watched.seen {
            watched.seen = kills;
            let container = watched.container.clone();
            log::info!(container; "out of memory");
            if table.events.len() == MAX_EVENTS {
                table.events.pop_front();
            }
            table.events.push_back(container);
            self.shared.event.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        match self.shared.table.lock() {
            Ok(table) => table,
            Err(poisoned) => poisoned.into_inner(),
        }
    }
}
