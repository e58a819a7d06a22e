//! The file of the node's counters. It is in the folder of all state, so it is gone after a reboot,
//! and the counters begin at 0 as those of the kernel do.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::Path,
    time::Duration,
};

use tokio::time::{sleep, Instant};

use super::data::{Counters, Event};
use crate::host::{
    error::{FileError, OnFile},
    file,
};

/// The name of the counters' file in the folder of all state.
pub const FILE: &str = ".counters.json";
/// The name of the lock that whoever counts holds meanwhile.
pub const LOCK: &str = ".counters";
/// The longest wait for the lock, which is held for the time of writing a small file.
const LIMIT: Duration = Duration::from_secs(2);
/// The time between two tries to get it.
const PAUSE: Duration = Duration::from_millis(5);

/// Counts events of a shim.
///
/// # Errors
/// If the file can't be written, or another process holds the lock for too long. The events are not
/// counted then.
pub async fn add(state_dir: &Path, events: &[Event]) -> Result<(), FileError> {
    let _lock = lock(&state_dir.join(LOCK)).await?;
    let path = state_dir.join(FILE);
    let mut counters = read(state_dir)?;
    for event in events {
        counters.count(*event);
    }
    let text = serde_json::to_vec(&counters)
        .map_err(|error| FileError::file("write", &path)(error.into()))?;
    file::replace(&path, &text)
}

/// Returns the counters of the node. Before anything has been counted, and where the file is none,
/// all are 0.
pub fn read(state_dir: &Path) -> Result<Counters, FileError> {
    let path = state_dir.join(FILE);
    match fs::read(&path) {
        Ok(text) => Ok(serde_json::from_slice(&text).unwrap_or_default()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Counters::default()),
        Err(error) => Err(FileError::file("read", path)(error)),
    }
}

async fn lock(path: &Path) -> Result<File, FileError> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(FileError::file("open", path))?;
    let end = Instant::now() + LIMIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < end => sleep(PAUSE).await,
            Err(error) => return Err(FileError::file("lock", path)(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::SkillRequest;

    const HIT: Event = Event::Skill(SkillRequest::Hit);

    #[tokio::test(flavor = "current_thread")]
    async fn events_of_many_are_all_counted() {
        let dir = tempfile::tempdir().unwrap();
        let counts = (0..20).map(|_| add(dir.path(), &[HIT, HIT]));
        futures::future::try_join_all(counts).await.unwrap();
        let counters = read(dir.path()).unwrap();
        assert_eq!(counters.skill_requests(SkillRequest::Hit), 40);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn file_that_is_no_counters_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "{").unwrap();
        add(dir.path(), &[HIT]).await.unwrap();
        let counters = read(dir.path()).unwrap();
        assert_eq!(counters.skill_requests(SkillRequest::Hit), 1);
    }

    #[test]
    fn node_without_a_file_has_counted_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), Counters::default());
    }

    #[tokio::test(start_paused = true)]
    async fn lock_that_another_does_not_give_back_is_waited_for_so_long_and_no_longer() {
        let dir = tempfile::tempdir().unwrap();
        let held = File::create(dir.path().join(LOCK)).unwrap();
        held.lock().unwrap();
        let began = Instant::now();
        let error = add(dir.path(), &[HIT]).await.unwrap_err().to_string();
        assert!(error.starts_with("lock "), "{error}");
        assert!(began.elapsed() >= LIMIT && began.elapsed() < LIMIT + 2 * PAUSE);
    }
}
