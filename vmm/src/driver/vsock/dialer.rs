//! Makes connections to a guest, through the kernel or a daemon.

use std::{future::Future, io, os::fd::OwnedFd, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::watch,
    time::{sleep, timeout, timeout_at, Instant},
};

use super::{daemon::open_host_socket, kernel};
use crate::{driver::state::State, Connecting, Error, Secret};

/// The pause between two tries to connect.
const RETRY: Duration = Duration::from_millis(3);
/// The time limit of one try through the kernel.
const TRY_LIMIT: Duration = Duration::from_secs(1);

/// Makes connections to a guest.
#[derive(Debug, Clone)]
pub(crate) enum Dialer {
    /// Through the daemon's socket in this directory, once the daemon may be connected to.
    Daemon(Arc<OwnedFd>, watch::Receiver<bool>),
    /// Through the host's kernel, to this address.
    Kernel(u32),
}

impl Dialer {
    /// See [`crate::Vm::connect`]. A VM that is paused is not dialed.
    pub(crate) fn connect(
        &self,
        port: u32,
        within: Duration,
        secret: Secret,
        mut state: watch::Receiver<State>,
    ) -> Connecting {
        let mut dialer = self.clone();
        Box::pin(async move {
            let end = Instant::now() + within;
            let timed_out = || Error::TimedOut {
                what: format!("connection to port {port} of the guest"),
                limit: within,
            };
            if let Dialer::Daemon(_, ready) = &mut dialer {
                // An error means the VM's end, which the caller sees.
                let _ = timeout(within, ready.wait_for(|ready| *ready)).await;
            }
            loop {
                // While the guest does not run, the daemon has no queues, see `Readiness`.
                let runs = state.wait_for(|state| *state == State::Running);
                // An error in it means the VM's end, which the caller sees.
                let Ok(_) = timeout_at(end, runs).await else {
                    return Err(timed_out());
                };
                let left = end.saturating_duration_since(Instant::now());
                let limit = match dialer {
                    Dialer::Daemon(..) => left,
                    Dialer::Kernel(_) => left.min(TRY_LIMIT),
                };
                // A try goes on when nobody waits for it any more. The daemon (0.3.0) carries no
                // connection ever after if one is given up that the guest had no time to answer.
                let dialing = dialer.clone();
                let dialed = tokio::spawn(async move { dialing.dial(port).await });
                let dialed = async { dialed.await.map_err(io::Error::other)? };
                if let Ok(Ok(stream)) = timeout(limit, dialed).await {
                    let admitted = timeout_at(end, secret.tell(stream)).await;
                    if let Ok(Ok(stream)) = admitted {
                        return Ok(stream);
                    }
                }
                if Instant::now() + RETRY >= end {
                    return Err(timed_out());
                }
                sleep(RETRY).await;
            }
        })
    }

    async fn dial(&self, port: u32) -> io::Result<UnixStream> {
        match self {
            Dialer::Daemon(dir, _) => {
                let mut stream = UnixStream::from_std(open_host_socket(dir)?)?;
                stream
                    .write_all(format!("CONNECT {port}\n").as_bytes())
                    .await?;
                // Read byte by byte: what follows the line belongs to the caller.
                let mut answer = Vec::new();
                while answer.last() != Some(&b'\n') {
                    if answer.len() == 32 {
                        return Err(io::ErrorKind::InvalidData.into());
                    }
                    answer.push(stream.read_u8().await?);
                }
                match answer.starts_with(b"OK ") {
                    true => Ok(stream),
                    false => Err(io::ErrorKind::ConnectionRefused.into()),
                }
            }
            &Dialer::Kernel(cid) => {
                let connected = tokio::task::spawn_blocking(move || kernel::connect(cid, port));
                UnixStream::from_std(connected.await.map_err(io::Error::other)??)
            }
        }
    }
}

/// Tells when a daemon may be connected to.
///
/// A connection that reaches the daemon after it got the guest's memory and before it got the
/// queues ends the daemon's worker, and with it the channel (0.3.0: `process_tx` fails with
/// `IterateQueue`). So no connection is made before the guest has used the device.
#[derive(Debug)]
pub(crate) struct Readiness {
    pub listener: UnixListener,
    pub ready: watch::Sender<bool>,
}

impl Readiness {
    /// Allows connections when the guest connects to [`super::ports::READY_PORT`] or, for a guest
    /// that does not, when `driver_is_up` resolves.
    pub(crate) async fn watch(self, driver_is_up: impl Future<Output = ()>) {
        tokio::select! {
            _ = self.listener.accept() => {}
            () = driver_is_up => {}
        }
        let _ = self.ready.send(true);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::{driver::vsock::daemon::HOST_SOCKET, ADMITTED, SECRET_LENGTH};

    /// Answers as the daemon does, and reads the secret as the guest does.
    async fn accept(listener: &UnixListener) -> UnixStream {
        let (mut stream, _) = listener.accept().await.unwrap();
        while stream.read_u8().await.unwrap() != b'\n' {}
        stream.write_all(b"OK 1\n").await.unwrap();
        stream.read_exact(&mut [0; SECRET_LENGTH]).await.unwrap();
        stream
    }

    #[tokio::test]
    async fn connection_that_ends_before_it_is_admitted_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(HOST_SOCKET)).unwrap();
        let guest = tokio::spawn(async move {
            drop(accept(&listener).await);
            let mut second = accept(&listener).await;
            second.write_all(&[ADMITTED, b'x']).await.unwrap();
        });
        let folder = OwnedFd::from(File::open(dir.path()).unwrap());
        let (_ready, ready) = watch::channel(true);
        let (_runs, state) = watch::channel(State::Running);
        let dialer = Dialer::Daemon(Arc::new(folder), ready);
        let limit = Duration::from_secs(10);
        let dialing = dialer.connect(7, limit, Secret::random().unwrap(), state);
        assert_eq!(dialing.await.unwrap().read_u8().await.unwrap(), b'x');
        guest.await.unwrap();
    }
}
