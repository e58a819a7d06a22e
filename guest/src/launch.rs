//! Starts runtime processes ([`crate::runtime`]) and talks to them.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process::{Command, Stdio},
    time::Duration,
};

use nix::fcntl::{fcntl, FcntlArg, OFlag};
use tokio::{io::unix::AsyncFd, time::timeout};

use crate::{
    reaper::{ended, Exit, Expected},
    runtime::{
        task::{Answer, Made, Request},
        wire,
    },
    Error, Result,
};

/// How long a runtime process may take. Allows for an emulated machine under load.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long the answer of a runtime process that has ended may take to arrive.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Starts a runtime process that carries out a request. `stdio` are the new process' descriptors 0
/// to 2.
///
/// The caller must keep `expected` until it watches the new process.
pub async fn run(expected: &Expected, request: &Request, stdio: &[BorrowedFd<'_>]) -> Result<Made> {
    let verb = request.verb();
    let failed = || Error::system::<io::Error>("talk to the runtime process");
    let (ours, theirs) = wire::pair().map_err(failed())?;
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
        .map_err(Error::system("talk to the runtime process"))?;
    let text = serde_json::to_vec(request)
        .map_err(io::Error::other)
        .map_err(failed())?;
    wire::send(ours.as_fd(), &text, stdio.iter().copied()).map_err(failed())?;
    let child = Command::new("/proc/self/exe")
        .args(["runtime", verb])
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
    let (exit, _) = expected.watch(child.id() as i32);
    // SAFETY: `ours` is an open descriptor that is only closed with the value.
    let socket = unsafe { AsyncFd::register(ours) }.map_err(|error| failed()(error.into()))?;
    match timeout(DEADLINE, answer(&socket, &exit, verb)).await {
        Ok(answer) => answer,
        Err(_) => {
            if exit.borrow().is_none() {
                // SAFETY: the arguments are plain numbers; the child is not reaped while it has no
                // status.
                unsafe { libc::kill(child.id() as i32, libc::SIGKILL) };
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
