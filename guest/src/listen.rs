//! The ports that the guest listens on: who may come in, and how the host learns that they are
//! open.

use std::{
    future::Future,
    io::Error as IoError,
    sync::Arc,
    time::{Duration, Instant},
};

use caisson_protocol::port;
use futures_util::{stream, StreamExt};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc::{unbounded_channel, UnboundedSender},
};
use tokio_vsock::{VsockAddr, VsockListener, VsockStream, VMADDR_CID_ANY, VMADDR_CID_HOST};
use ttrpc::r#async::transport::{Listener, Socket};

use crate::{door::Door, machine::Machine, packets::Packets, Error, Result};

/// The pause before a retry, after a failure that may pass.
const RETRY: Duration = Duration::from_millis(50);

/// Runs each connection of the host in a task of its own.
pub async fn serve_each<F>(mut connections: Listener, serve: impl Fn(Socket) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    while let Some(connection) = connections.next().await {
        match connection {
            Ok(connection) => drop(tokio::spawn(serve(connection))),
            Err(error) => wait_after(&error).await,
        }
    }
}

/// A port to which the host can connect.
pub enum Port {
    Guest(VsockListener, u32),
    Fake(tokio::net::UnixListener),
}

impl Port {
    /// Listens. The machine need not have its vsock device yet.
    pub fn open(machine: &Machine, port: u32) -> Result<Port> {
        match machine {
            Machine::Guest => VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))
                .map(|listener| Port::Guest(listener, port))
                .map_err(Error::system("listen on vsock")),
            Machine::Fake { dir } => {
                let path = dir.join(format!("{port}.sock"));
                let listener = tokio::net::UnixListener::bind(&path);
                Ok(Port::Fake(
                    listener.map_err(Error::file("listen on", path))?,
                ))
            }
        }
    }

    /// Returns the connections of the host only.
    pub fn behind(self, door: &Arc<Door>) -> Listener {
        let door = door.clone();
        match self {
            Port::Guest(listener, port) => admitted(|admitted| async move {
                loop {
                    match listener.accept().await {
                        Ok((stream, from)) if door.may_come(&from, port) => {
                            door.ask(Packets(stream), admitted.clone());
                        }
                        // Others that can use vsock: containers through its loopback, and
                        // unprivileged processes of the host.
                        Ok((_, from)) => door.refuse(&format!("comes from {from}")),
                        Err(error) => wait_after(&error).await,
                    }
                }
            }),
            Port::Fake(listener) => admitted(|admitted| async move {
                loop {
                    match listener.accept().await {
                        Ok((stream, _)) => door.ask(stream, admitted.clone()),
                        Err(error) => wait_after(&error).await,
                    }
                }
            }),
        }
    }
}

/// Returns the connections that `accept` sends. `accept` runs for ever.
fn admitted<C, F>(accept: impl FnOnce(UnboundedSender<C>) -> F) -> Listener
where
    C: AsyncRead + AsyncWrite + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let (sender, connections) = unbounded_channel();
    tokio::spawn(accept(sender));
    Listener::new(stream::unfold(connections, |mut connections| async {
        Some((Ok(connections.recv().await?), connections))
    }))
}

async fn wait_after(error: &IoError) {
    log::warn!(error:%; "accept a connection");
    tokio::time::sleep(RETRY).await;
}

/// Tells the host that the agent listens. A host that does not want to know refuses the connection.
/// A machine that was started from a saved one gets its vsock device a moment later.
pub async fn say_ready() {
    /// How long to wait for the device.
    const LIMIT: Duration = Duration::from_secs(10);
    const PAUSE: Duration = Duration::from_millis(2);
    let host = VsockAddr::new(VMADDR_CID_HOST, port::READY);
    let begin = Instant::now();
    loop {
        match VsockStream::connect(host).await {
            Err(error) if is_without_device(&error) && begin.elapsed() < LIMIT => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => {
                log::debug!(error:%; "tell the host that the agent listens");
                return;
            }
            Ok(_) => return,
        }
    }
}

/// Whether a connection failed because the machine has no vsock device (vsock(7)).
fn is_without_device(error: &IoError) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENETUNREACH))
}
