//! A container's cgroup (v2): lists, freezes and kills its processes, and reads its statistics.
//!
//! Limits need the conversions of the OCI spec, so [`crate::runtime`] sets them.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use caisson_protocol::agent::{IoStat, StatsResponse};

use crate::{Error, Result};

/// The mount point of cgroup v2.
pub const MOUNT_POINT: &str = "/sys/fs/cgroup";

/// The cgroup in which those of all containers are.
pub const ALL: &str = "/containers";

/// How long freezing and emptying may take.
const DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// The cgroup of one container.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Returns the cgroup at this path below the mount point. It need not exist (yet).
    pub fn new(mount_point: &Path, path: &Path) -> Cgroup {
        Cgroup {
            path: mount_point.join(path.strip_prefix("/").unwrap_or(path)),
        }
    }

    /// Returns the cgroup in which those of all containers are.
    pub fn of_all() -> Cgroup {
        Cgroup::new(Path::new(MOUNT_POINT), Path::new(ALL))
    }

    /// Returns the cgroup's directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns every process in the cgroup and in those below it. A cgroup that does not exist has
    /// none.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let mut pids = Vec::new();
        for dir in self.tree()? {
            let path = dir.join("cgroup.procs");
            match fs::read_to_string(&path) {
                Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
                // The cgroup has been removed meanwhile, or is a threaded one.
                Err(error) if gone(&error) || error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
                Err(error) => return Err(Error::file("read", path)(error)),
            }
        }
        Ok(pids)
    }

    /// Kills everything in the cgroup, including what is frozen.
    pub fn kill(&self) -> Result<()> {
        let path = self.path.join("cgroup.kill");
        match fs::write(&path, "1") {
            Err(error) if !gone(&error) => Err(Error::file("write", path)(error)),
            _ => Ok(()),
        }
    }

    /// Sets `cpu.max`. Without the cpu controller, nothing is limited.
    pub fn limit_cpu(&self, limit: &str) -> Result<()> {
        let path = self.path.join("cpu.max");
        match fs::write(&path, limit) {
            Err(error) if !gone(&error) => Err(Error::file("write", path)(error)),
            _ => Ok(()),
        }
    }

    /// Freezes or thaws the cgroup, and waits until it is done.
    pub async fn freeze(&self, frozen: bool) -> Result<()> {
        let path = self.path.join("cgroup.freeze");
        let word = if frozen { "1" } else { "0" };
        fs::write(&path, word).map_err(Error::file("write", &path))?;
        let events = self.path.join("cgroup.events");
        let start = Instant::now();
        loop {
            let text = fs::read_to_string(&events).map_err(Error::file("read", &events))?;
            if flat(&text).get("frozen").copied() == Some(u64::from(frozen)) {
                return Ok(());
            }
            if start.elapsed() > DEADLINE {
                // A half-frozen container is worse than one that is not frozen.
                let _ = fs::write(&path, "0");
                return Err(Error::Slow {
                    what: "freeze the container",
                    waited: DEADLINE,
                });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Kills what is left and removes the cgroup with those below it. One that does not exist
    /// counts as a success.
    pub async fn remove(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            self.kill()?;
            let mut left = None;
            for dir in self.tree()?.iter().rev() {
                match fs::remove_dir(dir) {
                    Err(error) if !gone(&error) => left = Some(Error::file("remove", dir)(error)),
                    _ => {}
                }
            }
            match left {
                None => return Ok(()),
                Some(error) if start.elapsed() > DEADLINE => return Err(error),
                Some(_) => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// Returns the statistics. A controller that does not exist contributes none.
    pub fn stats(&self) -> Result<StatsResponse> {
        Ok(StatsResponse {
            cpu_stat: flat(&self.read("cpu.stat")?),
            memory_stat: flat(&self.read("memory.stat")?),
            memory_events: flat(&self.read("memory.events")?),
            memory_current: number(&self.read("memory.current")?),
            memory_max: number(&self.read("memory.max")?),
            swap_current: number(&self.read("memory.swap.current")?),
            swap_max: number(&self.read("memory.swap.max")?),
            pids_current: number(&self.read("pids.current")?),
            pids_max: number(&self.read("pids.max")?),
            io_stat: self.read("io.stat")?.lines().filter_map(io_line).collect(),
            ..Default::default()
        })
    }

    /// Returns how many processes the kernel has killed here for lack of memory.
    pub fn oom_kills(&self) -> u64 {
        let text = self.read("memory.events").unwrap_or_default();
        flat(&text).get("oom_kill").copied().unwrap_or(0)
    }

    /// Whether most of the memory up to `memory.high` is in use and can't be taken back, as caches
    /// can.
    pub fn is_full_for_good(&self) -> bool {
        let read = |name| self.read(name).unwrap_or_default();
        let (high, used) = (
            number(&read("memory.high")),
            number(&read("memory.current")),
        );
        let stat = flat(&read("memory.stat"));
        let of = |key| stat.get(key).copied().unwrap_or(0);
        let files = of("file").saturating_sub(of("shmem"));
        let kept = used.saturating_sub(files + of("slab_reclaimable"));
        kept > high / 4 * 3
    }

    fn read(&self, name: &str) -> Result<String> {
        let path = self.path.join(name);
        match fs::read_to_string(&path) {
            Err(error) if gone(&error) => Ok(String::new()),
            result => result.map_err(Error::file("read", path)),
        }
    }

    /// Returns this directory and all those below it, parents first.
    fn tree(&self) -> Result<Vec<PathBuf>> {
        let mut dirs = Vec::new();
        let mut next = vec![self.path.clone()];
        while let Some(dir) = next.pop() {
            let entries = match fs::read_dir(&dir) {
                Ok(entries) => entries,
                Err(error) if gone(&error) => continue,
                Err(error) => return Err(Error::file("read", dir)(error)),
            };
            next.extend(entries.filter_map(|entry| {
                let entry = entry.ok()?;
                entry.file_type().ok()?.is_dir().then(|| entry.path())
            }));
            dirs.push(dir);
        }
        Ok(dirs)
    }
}

fn gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

/// Parses lines of the form `key value`.
fn flat(text: &str) -> HashMap<String, u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(key, value)| Some((key.to_string(), value.trim().parse().ok()?)))
        .collect()
}

/// Parses one number; `max` becomes the largest one.
fn number(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        text => text.parse().unwrap_or(0),
    }
}

/// Parses a line such as `8:0 rbytes=1 wbytes=2`.
fn io_line(line: &str) -> Option<IoStat> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    Some(IoStat {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        counters: words
            .filter_map(|word| word.split_once('='))
            .filter_map(|(key, value)| Some((key.to_string(), value.parse().ok()?)))
            .collect(),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_without_limit_is_the_largest() {
        assert_eq!(number("max\n"), u64::MAX);
        assert_eq!(number("4096\n"), 4096);
    }

    #[test]
    fn io_line_is_read() {
        let stat = io_line("254:16 rbytes=1024 wios=3").unwrap();
        assert_eq!((stat.major, stat.minor), (254, 16));
        assert_eq!(stat.counters["wios"], 3);
    }

    #[tokio::test]
    async fn cgroup_that_is_not_there_is_empty_and_removed() {
        let cgroup = Cgroup::new(Path::new("/sys/fs/cgroup"), Path::new("/no/such/one"));
        assert!(cgroup.pids().unwrap().is_empty());
        cgroup.remove().await.unwrap();
        assert_eq!(cgroup.stats().unwrap().memory_max, 0);
    }

    #[test]
    fn cgroup_path_is_below_the_mount_point() {
        let cgroup = Cgroup::new(Path::new("/sys/fs/cgroup"), Path::new("/a/b"));
        assert_eq!(cgroup.path(), Path::new("/sys/fs/cgroup/a/b"));
    }
}
