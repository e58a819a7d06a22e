//! Carries byte streams of processes between pipes or terminals and connections of the host.
//!
//! ```text
//!   offered --the host connects with the token--> pumping --end of either side--> gone
//!      `--30 s after the process ended: nobody came--> gone
//! ```
//!
//! Each stream takes the memory of one frame. All else is in the kernel's pipe, whose limit is the
//! back-pressure.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{ready, Context, Poll},
    time::Duration,
};

use caisson_protocol::stream;
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use tokio::{
    io::{unix::AsyncFd, AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
    time::timeout,
};

use crate::reaper::{self, Exit};

/// How long a connection may take to send its token, and how long it then waits for the token to be
/// offered.
const HELLO: Duration = Duration::from_secs(10);
/// How long the output of a process that has ended waits for the host.
const LATE: Duration = Duration::from_secs(30);

/// The agent's end of a stream, as the process sees it.
pub enum End {
    /// The host writes and the process reads.
    Input(Channel),
    /// The process writes and the host reads.
    Output(Channel),
}

/// The streams that the host may connect to. Cheap to clone.
#[derive(Clone)]
pub struct Streams {
    offers: Arc<Mutex<HashMap<u64, (End, Exit)>>>,
    changed: watch::Sender<()>,
}

impl Streams {
    pub fn new() -> Streams {
        Streams {
            offers: Arc::default(),
            changed: watch::Sender::new(()),
        }
    }

    /// Offers one end of a stream of the process with this exit. Token 0 stands for no stream, and
    /// is never asked for.
    pub fn offer(&self, token: u64, end: End, exit: &Exit) {
        self.lock().insert(token, (end, exit.clone()));
        self.changed.send_replace(());
        let (streams, exit) = (self.clone(), exit.clone());
        tokio::spawn(async move {
            reaper::ended(&exit).await;
            tokio::time::sleep(LATE).await;
            if streams.lock().remove(&token).is_some() {
                log::debug!(token; "stream that nobody connected to dropped");
            }
        });
    }

    /// Serves one connection of the host until it ends.
    pub async fn serve<C: AsyncRead + AsyncWrite + Unpin>(&self, mut connection: C) {
        let token = match timeout(HELLO, stream::read_token(&mut connection)).await {
            Ok(Ok(token)) => token,
            Ok(Err(error)) => {
                log::warn!(error = crate::error::chain(&error); "stream connection refused");
                return;
            }
            Err(_) => {
                log::warn!("stream connection that said nothing closed");
                return;
            }
        };
        let Ok((end, exit)) = timeout(HELLO, self.take(token)).await else {
            log::warn!(token; "stream connection with an unknown token closed");
            return;
        };
        match end {
            End::Output(mut source) => match stream::send(&mut source, &mut connection).await {
                Ok(bytes) => log::debug!(token, bytes; "output ended"),
                Err(error) => {
                    log::warn!(token, error = crate::error::chain(&error); "output was cut")
                }
            },
            End::Input(mut sink) => {
                let moved = tokio::select! {
                    moved = stream::receive(&mut connection, &mut sink) => moved,
                    // Nothing reads the input any more.
                    _ = reaper::ended(&exit) => Ok(0),
                };
                match moved {
                    Ok(bytes) => log::debug!(token, bytes; "input ended"),
                    Err(error) => {
                        log::warn!(token, error = crate::error::chain(&error); "input was cut")
                    }
                }
            }
        }
    }

    async fn take(&self, token: u64) -> (End, Exit) {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            if let Some(found) = self.lock().remove(&token) {
                return found;
            }
            // Can't fail: the sender lives in `self`.
            let _ = changed.changed().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, (End, Exit)>> {
        match self.offers.lock() {
            Ok(offers) => offers,
            Err(poisoned) => poisoned.into_inner(),
        }
    }
}

/// A pipe or the master of a terminal, on the event loop.
pub struct Channel(AsyncFd<OwnedFd>);

impl Channel {
    /// Takes a descriptor and makes it non-blocking.
    pub fn new(fd: OwnedFd) -> io::Result<Channel> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        // SAFETY: an open descriptor that is only closed with the value.
        Ok(Channel(unsafe { AsyncFd::register(fd) }?))
    }
}

impl AsyncRead for Channel {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            let read = guard.try_io(|fd| {
                Ok(nix::unistd::read(
                    fd.get_ref(),
                    buffer.initialize_unfilled(),
                )?)
            });
            match read {
                Ok(Ok(length)) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                // A terminal reports with this error that nothing has its other side open any more.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => {
                    return Poll::Ready(Ok(()))
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Channel {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            match guard.try_io(|fd| Ok(nix::unistd::write(fd.get_ref(), buffer)?)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
