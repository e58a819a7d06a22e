//! The control channel to the guest: connections to its vsock ports.
//!
//! If the host has `/dev/vhost-vsock`, the kernel carries them. Otherwise the daemon
//! `vhost-device-vsock` does, on a unix socket. There a connection starts with `CONNECT <port>\n`
//! and is answered by `OK <port>\n`.

mod daemon;
mod kernel;
mod seccomp;

use std::{future::Future, io, os::fd::OwnedFd, path::Path, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::watch,
    time::{sleep, timeout, Instant},
};

use crate::{process::Child, Connecting, Error, Result, Secret, VmSpec, BY_DAEMON, BY_KERNEL};

/// The pause between two tries to connect.
const RETRY: Duration = Duration::from_millis(3);
/// The time limit of one try. While the guest boots, the daemon holds a connection until the
/// guest's driver is up.
const TRY_LIMIT: Duration = Duration::from_secs(1);
/// A VM's control channel before QEMU has it.
#[derive(Debug)]
pub(crate) struct Vsock {
    /// None if the kernel carries connections.
    pub daemon: Option<(Child, Readiness)>,
    pub device: VsockDevice,
    pub dialer: Dialer,
}

/// A port of the host to which the guest may connect once it listens on its own port. Connections
/// that wait for the guest are then made at once.
pub const READY_PORT: u32 = 1023;

/// The port of the guest's service.
///
/// If the host's kernel carries connections, those to this port come from a reserved port, which an
/// unprivileged process of the host can't have. Those to other ports do not, since reserved ports
/// are few for all VMs of the host.
pub const SERVICE_PORT: u32 = 1024;

/// Tells when a daemon may be connected to.
///
/// A connection that reaches the daemon after it got the guest's memory and before it got the
/// queues ends the daemon's worker, and with it the channel (0.3.0: `process_tx` fails with
/// `IterateQueue`). So no connection is made before the guest has used the device.
#[derive(Debug)]
pub(crate) struct Readiness {
    listener: UnixListener,
    ready: watch::Sender<bool>,
}

impl Readiness {
    /// Allows connections when the guest connects to [`READY_PORT`] or, for a guest that does not,
    /// when `driver_is_up` resolves.
    pub(crate) async fn watch(self, driver_is_up: impl Future<Output = ()>) {
        tokio::select! {
            _ = self.listener.accept() => {}
            () = driver_is_up => {}
        }
        let _ = self.ready.send(true);
    }
}

/// The part from which QEMU makes the guest's device.
#[derive(Debug)]
pub(crate) enum VsockDevice {
    /// A vhost-user connection.
    Daemon(OwnedFd),
    /// `/dev/vhost-vsock`, with the guest's address set.
    Kernel(OwnedFd, u32),
}

/// The carrier of connections.
#[derive(Debug)]
pub(crate) enum Carrier {
    /// The host's kernel, to the guest that has this address.
    Kernel(OwnedFd, u32),
    Daemon,
}

impl Carrier {
    /// The kernel if it has vsock, else a daemon.
    pub(crate) fn find() -> Carrier {
        match kernel::reserve() {
            Ok((device, cid)) => Carrier::Kernel(device, cid),
            Err(error) => {
                log::debug!(error = error.to_string().as_str(); "no vsock in the kernel, a daemon does it");
                Carrier::Daemon
            }
        }
    }

    /// The carrier as the guest is told it.
    pub(crate) fn name(&self) -> u8 {
        match self {
            Carrier::Kernel(..) => BY_KERNEL,
            Carrier::Daemon => BY_DAEMON,
        }
    }

    /// Starts a control channel. A daemon's is in a directory of its own below the VM's.
    pub(crate) async fn start(self, daemon: &Path, spec: &VmSpec) -> Result<Vsock> {
        match self {
            Carrier::Kernel(device, cid) => Ok(Vsock {
                daemon: None,
                device: VsockDevice::Kernel(device, cid),
                dialer: Dialer::Kernel(cid),
            }),
            Carrier::Daemon => daemon::start(daemon, spec).await,
        }
    }
}

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
    pub(crate) fn connect(&self, port: u32, within: Duration, secret: Secret) -> Connecting {
        let mut dialer = self.clone();
        Box::pin(async move {
            let end = Instant::now() + within;
            if let Dialer::Daemon(_, ready) = &mut dialer {
                // An error means the VM's end, which the caller sees.
                let _ = timeout(within, ready.wait_for(|ready| *ready)).await;
            }
            loop {
                let left = end.saturating_duration_since(Instant::now());
                let dialed = async {
                    let mut stream = dialer.dial(port).await?;
                    stream.write_all(secret.bytes()).await?;
                    io::Result::Ok(stream)
                };
                if let Ok(Ok(stream)) = timeout(left.min(TRY_LIMIT), dialed).await {
                    return Ok(stream);
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
                let mut stream = UnixStream::from_std(daemon::open_host_socket(dir)?)?;
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
