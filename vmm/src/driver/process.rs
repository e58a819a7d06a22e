//! Runs the child processes of a VM. Each dies with the [`Child`] that stands for it, and with this
//! process.
//!
//! Children are forked by one thread that lives as long as this process. A parent-death signal
//! comes when the *thread* that forked ends (prctl(2)), and tokio's threads come and go.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{mpsc, Arc, OnceLock},
    time::Duration,
};

use tokio::{
    io::unix::AsyncFd,
    net::UnixStream,
    sync::{oneshot, watch},
};

use super::{
    log_lines::{follow, Tail},
    placement,
    spawn::{exit_text, fork, signal, Program},
};
use crate::{Error, Placement, Result};

/// How long a killed process may take to go: it may be in the middle of a large write.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How long to wait for the rest of an ended process's log.
const LOG_LIMIT: Duration = Duration::from_millis(50);

/// A running child. Dropping it kills the process.
#[derive(Debug)]
pub(crate) struct Child {
    role: String,
    pid: u32,
    pidfd: Arc<OwnedFd>,
    end_signal: libc::c_int,
    log: Tail,
    ended: watch::Receiver<Option<String>>,
}

impl Child {
    /// Starts a program and returns once it is confined and executed.
    pub(crate) async fn start(program: Program) -> Result<Child> {
        let (log, log_end) = UnixStream::pair().map_err(|e| Error::Io("make a log socket", e))?;
        let log_end = log_end
            .into_std()
            .map_err(|e| Error::Io("make a log socket", e))?;
        log_end
            .set_nonblocking(false)
            .map_err(|e| Error::Io("make a log socket", e))?;
        let role = program.role.clone();
        let end_signal = program.confinement.end_signal();
        let path = program.path.clone();
        let oom_score_adj = program.placement.oom_score_adj;
        let (answer, forked) = oneshot::channel();
        let job = Box::new(move || {
            let _ = answer.send(fork(program, log_end.into()));
        });
        let stopped = || Error::Io("start a process", io::ErrorKind::BrokenPipe.into());
        forker().send(job).map_err(|_| stopped())?;
        let mut forked = forked.await.map_err(|_| stopped())??;
        forked.executed(&role, &path).await?;
        let (pid, pidfd) = forked.into_parts();
        placement::note_oom_score_adj(&role, pid, oom_score_adj);

        let tail = Tail::default();
        let (end, ended) = watch::channel(None);
        tokio::spawn(reap(pidfd.clone(), role.clone(), log, tail.clone(), end));
        Ok(Child {
            role,
            pid,
            pidfd,
            end_signal,
            log: tail,
            ended,
        })
    }

    pub(crate) fn role(&self) -> &str {
        &self.role
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Sets the OOM score of the process and its descendants, see
    /// [`crate::Placement::oom_score_adj`].
    pub(crate) fn set_oom_score_adj(&self, score: i32) {
        // Once the process has ended, another may have its pid.
        if self.ended.borrow().is_none() {
            placement::set_oom_score_adj(&self.role, self.pid, score);
        }
    }

    /// Begins to move the process and its descendants to another place. Returns a future that
    /// resolves when they are there: the kernel takes its time, see [`placement`].
    pub(crate) fn relocate(
        &self,
        placement: &Placement,
    ) -> impl std::future::Future<Output = Result<()>> + Send + 'static {
        let (role, pid, placement) = (self.role.clone(), self.pid, placement.clone());
        let ended = self.ended.clone();
        let moving = move || {
            // Another process may have its pid by now.
            let has_ended = ended.borrow().is_some();
            match has_ended {
                true => Ok(()),
                false => placement::relocate(&role, pid, &placement),
            }
        };
        let moved = tokio::task::spawn_blocking(moving);
        async move {
            let moved = moved.await;
            moved.unwrap_or_else(|error| Err(Error::Io("move a process", error.into())))
        }
    }

    /// Resolves when the process has ended, and says how. Does not borrow the child.
    pub(crate) fn ended(&self) -> impl std::future::Future<Output = String> + Send + 'static {
        let mut ended = self.ended.clone();
        let log = self.log.clone();
        async move {
            let how = match ended.wait_for(Option::is_some).await {
                Ok(how) => how.clone().unwrap_or_default(),
                Err(_) => "its runtime has ended".to_owned(),
            };
            match log.text() {
                text if text.is_empty() => how,
                text => format!("{how}: {text}"),
            }
        }
    }

    /// Returns the result of `work`, but fails as soon as the process ends.
    pub(crate) async fn unless_it_ends<T>(
        &self,
        work: impl std::future::Future<Output = Result<T>>,
    ) -> Result<T> {
        let ended = self.ended();
        tokio::select! {
            result = work => match result {
                // The connection breaks a moment before the process is reaped, and its end says
                // more.
                Err(error @ (Error::Connection { .. } | Error::Io(..))) => {
                    match tokio::time::timeout(Duration::from_millis(200), self.ended()).await {
                        Ok(how) => Err(self.died(how)),
                        Err(_) => Err(error),
                    }
                }
                result => result,
            },
            how = ended => Err(self.died(how)),
        }
    }

    fn died(&self, how: String) -> Error {
        Error::ProcessDied {
            role: self.role.clone(),
            how,
        }
    }

    /// Kills the process. Idempotent.
    pub(crate) fn kill(&self) {
        signal(&self.pidfd, self.end_signal);
    }

    /// Kills the process and waits until it is gone.
    pub(crate) async fn stop(&self) -> Result<()> {
        self.kill();
        match tokio::time::timeout(KILL_LIMIT, self.ended()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::TimedOut {
                what: format!("end of {}", self.role),
                limit: KILL_LIMIT,
            }),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Reads a child's log until it ends, then reaps it.
async fn reap(
    pidfd: Arc<OwnedFd>,
    role: String,
    log: UnixStream,
    tail: Tail,
    end: watch::Sender<Option<String>>,
) {
    let log_end = tokio::spawn(async move {
        let log_line = |line: &str| log::warn!(target: "vmm", role = role.as_str(); "{line}");
        follow(log, tail, log_line).await;
    });
    // SAFETY: the descriptor is open as long as the value that owns it, which is moved in.
    let exit = match unsafe { AsyncFd::register(pidfd.clone()) } {
        Ok(readable) => readable.readable().await.map(|_| ()),
        Err(error) => Err(error.into()),
    };
    // The last output is in the socket, which a grandchild may keep open.
    let _ = tokio::time::timeout(LOG_LIMIT, log_end).await;
    let how = match exit {
        Ok(()) => exit_text(&pidfd),
        Err(error) => format!("its pidfd failed: {error}"),
    };
    let _ = end.send(Some(how));
}

type Job = Box<dyn FnOnce() + Send>;

/// The thread that forks all children.
fn forker() -> &'static mpsc::Sender<Job> {
    static FORKER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    FORKER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new()
            .name("vmm-fork".to_owned())
            .stack_size(128 * 1024)
            .spawn(move || jobs.into_iter().for_each(|job| job()));
        if let Err(error) = thread {
            // Sending a job then fails, which is reported as an error of the start.
            log::error!(error = error.to_string().as_str(); "no thread to start processes from");
        }
        sender
    })
}
