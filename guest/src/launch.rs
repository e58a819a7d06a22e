//! Starts runtime processes ([`crate::runtime`]) and talks to them.
//!
//! One is started before it is needed, and waits for its request: to execute a program takes an
//! emulated guest as long as much of what the process then does. A template has it.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use nix::fcntl::{fcntl, FcntlArg, OFlag};
use tokio::{
    io::unix::AsyncFd,
    time::{sleep, timeout},
};

use crate::{
    reaper::{ended, Exit, Expected, Reaper},
    runtime::{
        task::{Answer, Made, Request},
        wire,
    },
    Error, Result,
};

/// How long a runtime process may take. Allows for an emulated machine under load.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long after a process was used the next one is started. Pods often come many at once, and
/// this would take the cpus from those that are still starting.
const SPARE_PAUSE: Duration = Duration::from_secs(10);
/// How long the answer of a runtime process that has ended may take to arrive.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The process that waits for its request.
static SPARE: Mutex<Option<Helper>> = Mutex::new(None);

/// A runtime process that has no request yet. It ends when the socket is closed.
struct Helper {
    socket: OwnedFd,
    pid: i32,
    exit: Exit,
}

impl Helper {
    fn start(expected: &Expected) -> Result<Helper> {
        let (ours, theirs) = wire::pair().map_err(Error::system("talk to the runtime process"))?;
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .map_err(Error::system("talk to the runtime process"))?;
        let child = Command::new("/proc/self/exe")
            .arg("runtime")
            .env_clear()
            // Without it, a static glibc would load NSS modules to find a home directory.
            .env("HOME", "/")
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Error::system("start the runtime process"))?;
        // The reaper waits for it.
        let pid = child.id() as i32;
        let (exit, _) = expected.watch(pid);
        Ok(Helper {
            socket: ours,
            pid,
            exit,
        })
    }
}

/// Starts the process that waits for its request, unless there is one.
pub fn prepare(reaper: &Reaper) -> Result<()> {
    let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
    if spare.is_none() {
        *spare = Some(Helper::start(&reaper.expect())?);
    }
    Ok(())
}

/// Takes the process that waits, if it still does.
fn take_spare() -> Option<Helper> {
    let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
    spare.take().filter(|helper| helper.exit.borrow().is_none())
}

/// Has a runtime process carry out a request. `stdio` are the new process' descriptors 0 to 2.
///
/// The caller must keep `expected` until it watches the new process.
pub async fn run(expected: &Expected, request: &Request, stdio: &[BorrowedFd<'_>]) -> Result<Made> {
    let verb = request.verb();
    let failed = || Error::system::<io::Error>("talk to the runtime process");
    let Helper { socket, pid, exit } = match take_spare() {
        Some(helper) => helper,
        None => Helper::start(expected)?,
    };
    let reaper = expected.reaper().clone();
    tokio::spawn(async move {
        // Not beside the start of what is being made.
        sleep(SPARE_PAUSE).await;
        if let Err(error) = prepare(&reaper) {
            log::warn!(error = error.chain(); "prepare a runtime process");
        }
    });
    let text = serde_json::to_vec(request)
        .map_err(io::Error::other)
        .map_err(failed())?;
    wire::send(socket.as_fd(), &text, stdio.iter().copied()).map_err(failed())?;
    // SAFETY: `socket` is an open descriptor that is only closed with the value.
    let socket = unsafe { AsyncFd::register(socket) }.map_err(|error| failed()(error.into()))?;
    match timeout(DEADLINE, answer(&socket, &exit, verb)).await {
        Ok(answer) => answer,
        Err(_) => {
            if exit.borrow().is_none() {
                // SAFETY: the arguments are plain numbers; the child is not reaped while it has no
                // status.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
            Err(Error::Slow {
                what: verb,
                waited: DEADLINE,
            })
        }
    }
}

async fn answer(socket: &AsyncFd<OwnedFd>, exit: &Exit, verb: &'static str) -> Result<Made> {
    let received = tokio::select! {
        received = receive(socket) => received,
        status = ended(exit) => match timeout(LAST_WORDS, receive(socket)).await {
            Ok(Ok(received)) => Ok(received),
            _ => return Err(Error::RuntimeDied { verb, status }),
        },
    };
    let (text, fds) = match received {
        Ok(received) => received,
        Err(_) => {
            let status = ended(exit).await;
            return Err(Error::RuntimeDied { verb, status });
        }
    };
    let answer = serde_json::from_slice(&text).map_err(|source| Error::Json {
        field: "answer of the runtime process",
        source,
    })?;
    match answer {
        Answer::Done { pid } => Ok(Made {
            pid,
            terminal: fds.into_iter().next(),
        }),
        Answer::Failed { message } => Err(Error::Runtime { message }),
    }
}

async fn receive(socket: &AsyncFd<OwnedFd>) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    loop {
        let mut guard = socket.readable().await?;
        if let Ok(received) = guard.try_io(|socket| wire::receive(socket.as_fd())) {
            return received;
        }
    }
}
