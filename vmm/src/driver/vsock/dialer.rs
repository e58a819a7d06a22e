//! Makes connections to a guest, through the kernel or a daemon.

use std::{future::Future, io, os::fd::OwnedFd, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::watch,
    time::{sleep, sleep_until, timeout, Instant},
};

use super::{daemon::open_host_socket, kernel};
use crate::{driver::state::State, Connecting, Error, Secret};

/// The pause between two tries to connect.
const RETRY: Duration = Duration::from_millis(3);
/// The time limit of one try. While the guest boots, the daemon holds a connection until the
/// guest's driver is up.
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
    /// See [`crate::Vm::connect`].
    ///
    /// While the guest is paused, no connection is tried, and none that was is given up: the daemon
    /// (0.3.0) carries no more connections after it has given up one that the guest never saw.
    pub(crate) fn connect(
        &self,
        port: u32,
        within: Duration,
        secret: Secret,
        state: watch::Receiver<State>,
    ) -> Connecting {
        let mut dialer = self.clone();
        Box::pin(async move {
            let end = Instant::now() + within;
            if let Dialer::Daemon(_, ready) = &mut dialer {
                // An error means the VM's end, which the caller sees.
                let _ = timeout(within, ready.wait_for(|ready| *ready)).await;
            }
            loop {
                let mut followed = state.clone();
                let dialed = async {
                    runs(&mut followed).await;
                    let mut stream = dialer.dial(port).await?;
                    stream.write_all(secret.bytes()).await?;
                    io::Result::Ok(stream)
                };
                tokio::select! {
                    dialed = dialed => if let Ok(stream) = dialed {
                        return Ok(stream);
                    },
                    () = given_up(state.clone()) => {}
                    () = sleep_until(end) => {}
                }
                if Instant::now() + RETRY >= end {
                    return Err(Error::TimedOut {
                        what: format!("connection to port {port} of the guest"),
                        limit: within,
                    });
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

/// Resolves when the guest runs, or the VM is gone.
async fn runs(state: &mut watch::Receiver<State>) {
    let _ = state.wait_for(|state| *state == State::Running).await;
}

/// Resolves when a guest that runs has had time enough for one try.
async fn given_up(mut state: watch::Receiver<State>) {
    loop {
        runs(&mut state).await;
        sleep(TRY_LIMIT).await;
        if *state.borrow() == State::Running {
            return;
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
    /// Allows connections when the guest connects to [`super::ports::READY_PORT`] or, for a guest that does not,
    /// when `driver_is_up` resolves.
    pub(crate) async fn watch(self, driver_is_up: impl Future<Output = ()>) {
        tokio::select! {
            _ = self.listener.accept() => {}
            () = driver_is_up => {}
        }
        let _ = self.ready.send(true);
    }
}
