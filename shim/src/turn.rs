//! Lets the starts of a node take turns.
//!
//! Starts at once share the node's cpus. If all of them worked at the same time, each would take as
//! long as all, and cpus that change between many VMs need longer for each. So only a few work, and
//! the others wait.
//!
//! A turn is a lock on a byte of a file (fcntl(2), "Open file description locks"). It ends with the
//! shim, however that ends. Nobody waits for a turn without an end, and no turn lasts long if
//! somebody waits: what a guest keeps its shim waiting for is no reason to keep others waiting.

use std::{
    fs::File,
    future::Future,
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    pin::Pin,
    time::Duration,
};

use caisson_node::state::TURNS;
use nix::{
    errno::Errno,
    fcntl::{fcntl, FcntlArg},
};
use tokio::time::{sleep, timeout, Instant};

use crate::logger::stage;

/// How many more starts than cpus may work: while one waits for the host, another one can go on.
const MORE_THAN_CPUS: usize = 1;
/// How long a turn may last.
const LAST: Duration = Duration::from_secs(2);
/// How long a start waits for its turn at most.
const WAIT: Duration = Duration::from_secs(20);
/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(10);

/// The turns that the starts of a node take.
pub struct Turns {
    file: PathBuf,
    count: usize,
}

impl Turns {
    pub fn new(state_dir: &Path, cpus: usize) -> Self {
        Self {
            file: state_dir.join(TURNS),
            count: cpus + MORE_THAN_CPUS,
        }
    }

    /// Does some work for a container when it is its turn. It comes in a box, since it is as large
    /// as a start.
    pub async fn take<T>(
        &self,
        container: &str,
        mut work: Pin<Box<dyn Future<Output = T> + Send + '_>>,
    ) -> T {
        let asked = Instant::now();
        let turn = self.next().await;
        if asked.elapsed() >= PAUSE {
            stage(container, "turn", asked.into_std());
        }
        match timeout(LAST, &mut work).await {
            Ok(result) => result,
            Err(_) => {
                drop(turn);
                work.await
            }
        }
    }

    /// Waits for a turn. `None` means to go on without.
    async fn next(&self) -> Option<File> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&self.file)
            .inspect_err(|error| log::info!("starts take no turns: {error}"))
            .ok()?;
        let until = Instant::now() + WAIT;
        while Instant::now() < until {
            for turn in 0..self.count {
                match lock(&file, turn) {
                    Ok(()) => return Some(file),
                    Err(Errno::EAGAIN | Errno::EACCES) => {}
                    Err(error) => {
                        log::info!("starts take no turns: {}", io::Error::from(error));
                        return None;
                    }
                }
            }
            sleep(PAUSE).await;
        }
        None
    }
}

fn lock(file: impl AsFd, turn: usize) -> Result<(), Errno> {
    let lock = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: turn as libc::off_t,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).map(drop)
}

#[cfg(test)]
mod tests {
    use std::{future::pending, sync::Arc};

    use super::*;

    fn turns() -> (tempfile::TempDir, Arc<Turns>) {
        let dir = tempfile::tempdir().unwrap();
        let turns = Arc::new(Turns::new(dir.path(), 1));
        (dir, turns)
    }

    /// Begins work that never ends.
    async fn busy(turns: &Arc<Turns>) -> tokio::task::JoinHandle<()> {
        let turns = turns.clone();
        let (begun, begins) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            let work = async {
                begun.send(()).unwrap();
                pending().await
            };
            turns.take("", Box::pin(work)).await
        });
        begins.await.unwrap();
        task
    }

    #[tokio::test(start_paused = true)]
    async fn start_waits_until_a_turn_is_free() {
        let (_dir, turns) = turns();
        let (first, _second) = (busy(&turns).await, busy(&turns).await);
        let waiting = turns.take("", Box::pin(async { Instant::now() }));
        let ended = async {
            sleep(LAST / 2).await;
            first.abort();
            Instant::now()
        };
        let (worked, ended) = tokio::join!(waiting, ended);
        assert!(worked >= ended && worked < ended + 2 * PAUSE);
    }

    #[tokio::test(start_paused = true)]
    async fn start_that_takes_long_loses_its_turn_and_goes_on() {
        let (_dir, turns) = turns();
        let tasks = (busy(&turns).await, busy(&turns).await);
        let began = Instant::now();
        turns.take("", Box::pin(async {})).await;
        assert!(began.elapsed() >= LAST && began.elapsed() < LAST + 2 * PAUSE);
        assert!(!tasks.0.is_finished() && !tasks.1.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn start_that_waits_too_long_works_without_a_turn() {
        let (_dir, turns) = turns();
        let file = File::create(&turns.file).unwrap();
        (0..turns.count).for_each(|turn| lock(&file, turn).unwrap());
        let began = Instant::now();
        turns.take("", Box::pin(async {})).await;
        assert!(began.elapsed() >= WAIT && began.elapsed() < WAIT + 2 * PAUSE);
    }

    #[tokio::test]
    async fn start_works_where_no_turn_can_be_taken() {
        let turns = Turns::new(Path::new("/nowhere"), 1);
        assert_eq!(turns.take("", Box::pin(async { 1 })).await, 1);
    }
}
