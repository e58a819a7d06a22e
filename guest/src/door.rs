//! Admits only the shim: a connection that does not begin with the machine's secret is closed.
//!
//! If the kernel carries the connections, every process of the host can connect to a guest's ports.
//! So the connections that have not yet sent the secret are limited in number and time. They never
//! keep the shim out: the oldest of them is closed first, and the shim connects again if that was
//! one of its own, which it knows by the answer that it did not get.

use std::{
    collections::VecDeque,
    sync::{
        atomic::{AtomicU32, Ordering},
        Arc, Mutex, PoisonError,
    },
    time::Duration,
};

use caisson_protocol::{
    port,
    secret::{ADMITTED, LENGTH, RESERVED},
};
use subtle::ConstantTimeEq;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc::UnboundedSender,
    task::AbortHandle,
    time::timeout,
};
use tokio_vsock::{VsockAddr, VMADDR_CID_HOST};

use crate::secret::Secret;

/// How long a connection may take to send the secret. The shim sends it with its first packet.
const LIMIT: Duration = Duration::from_secs(10);
/// How many connections may not have sent the secret yet. The shim opens the three streams of a
/// process at once.
const MOST: usize = 64;
/// How many refused connections are logged in all.
const MOST_LOGGED: u32 = 16;

/// Decides which connections to the agent's ports are admitted.
pub struct Door {
    secret: Secret,
    strangers: Mutex<VecDeque<AbortHandle>>,
    refused: AtomicU32,
}

impl Door {
    pub fn new(secret: Secret) -> Arc<Door> {
        Arc::new(Door {
            secret,
            strangers: Mutex::default(),
            refused: AtomicU32::new(0),
        })
    }

    /// Returns whether a connection to `port` may come from this address. It must come from the
    /// host. A connection to the service must also come from a reserved port, where that means
    /// something. The other ports do not require this: the host has some 500 reserved ports for all
    /// its pods, and a pod has many streams.
    pub fn may_come(&self, from: &VsockAddr, port: u32) -> bool {
        let reserved = !self.secret.by_kernel || port != port::AGENT || from.port() < RESERVED;
        from.cid() == VMADDR_CID_HOST && reserved
    }

    /// Sends a connection to `admitted` once it has sent the secret; otherwise closes it.
    pub fn ask<C>(self: &Arc<Self>, mut connection: C, admitted: UnboundedSender<C>)
    where
        C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let door = self.clone();
        let asked = tokio::spawn(async move {
            if !door.is_told_by(&mut connection).await {
                door.refuse("has not said the machine's secret");
            } else if connection.write_all(&[ADMITTED]).await.is_ok() {
                // At the end of a test, nothing receives connections any more.
                drop(admitted.send(connection));
            }
        });
        let mut strangers = self
            .strangers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        strangers.retain(|stranger| !stranger.is_finished());
        strangers.push_back(asked.abort_handle());
        if strangers.len() > MOST {
            if let Some(oldest) = strangers.pop_front() {
                oldest.abort();
            }
        }
    }

    /// Logs that a connection is closed.
    pub fn refuse(&self, why: &str) {
        if self.refused.fetch_add(1, Ordering::Relaxed) < MOST_LOGGED {
            log::warn!("connection closed that {why}");
        }
    }

    async fn is_told_by(&self, connection: &mut (impl AsyncRead + Unpin)) -> bool {
        let mut said = [0; LENGTH];
        let read = timeout(LIMIT, connection.read_exact(&mut said)).await;
        matches!(read, Ok(Ok(_))) && bool::from(said.ct_eq(&self.secret.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{io::duplex, sync::mpsc::unbounded_channel};

    fn door(by_kernel: bool) -> Arc<Door> {
        let bytes = [7; LENGTH];
        Door::new(Secret { bytes, by_kernel })
    }

    #[tokio::test]
    async fn connection_with_the_secret_is_let_in_with_what_follows_it() {
        let (admitted, mut connections) = unbounded_channel();
        let (mut shim, connection) = duplex(1000);
        door(false).ask(connection, admitted);
        shim.write_all(&[7; LENGTH]).await.unwrap();
        shim.write_all(b"request").await.unwrap();
        let mut answer = [0];
        shim.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, [ADMITTED]);
        let mut next = [0; 7];
        let mut connection = connections.recv().await.unwrap();
        connection.read_exact(&mut next).await.unwrap();
        assert_eq!(&next, b"request");
    }

    #[tokio::test]
    async fn connection_with_another_secret_is_closed_before_anything_else_is_read() {
        let (admitted, mut connections) = unbounded_channel();
        let (mut stranger, connection) = duplex(1000);
        door(false).ask(connection, admitted);
        stranger.write_all(&[8; LENGTH + 100]).await.unwrap();
        assert_eq!(stranger.read(&mut [0]).await.unwrap(), 0);
        assert!(connections.recv().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn connection_that_says_nothing_is_closed_after_a_time() {
        let (admitted, mut connections) = unbounded_channel();
        let (mut stranger, connection) = duplex(1000);
        door(false).ask(connection, admitted);
        assert_eq!(stranger.read(&mut [0]).await.unwrap(), 0);
        assert!(connections.recv().await.is_none());
    }

    #[tokio::test]
    async fn ten_thousand_silent_connections_do_not_keep_the_shim_out() {
        let (admitted, mut connections) = unbounded_channel();
        let door = door(false);
        let strangers: Vec<_> = (0..10_000)
            .map(|_| {
                let (stranger, connection) = duplex(1);
                door.ask(connection, admitted.clone());
                stranger
            })
            .collect();
        let (mut shim, connection) = duplex(1000);
        door.ask(connection, admitted);
        assert!(door.strangers.lock().unwrap().len() <= MOST);
        shim.write_all(&[7; LENGTH]).await.unwrap();
        assert!(connections.recv().await.is_some());
        drop(strangers);
    }

    #[tokio::test]
    async fn connection_that_is_closed_for_others_gets_no_answer() {
        let (admitted, _connections) = unbounded_channel();
        let door = door(false);
        let connect = || {
            let (shim, connection) = duplex(1000);
            door.ask(connection, admitted.clone());
            shim
        };
        let mut first = connect();
        let others: Vec<_> = (0..MOST).map(|_| connect()).collect();
        assert_eq!(first.read(&mut [0]).await.unwrap(), 0);
        drop(others);
    }

    #[test]
    fn service_is_reached_from_reserved_ports_of_the_host_only_where_its_kernel_carries() {
        let from = |cid, port| VsockAddr::new(cid, port);
        for (by_kernel, cid, source, port, may) in [
            (true, VMADDR_CID_HOST, 600, port::AGENT, true),
            (true, VMADDR_CID_HOST, 1024, port::AGENT, false),
            (true, VMADDR_CID_HOST, 1 << 31, port::STREAMS, true),
            (true, 7, 600, port::AGENT, false),
            (false, VMADDR_CID_HOST, 1 << 31, port::AGENT, true),
            (false, 1, 600, port::STREAMS, false),
        ] {
            let came = door(by_kernel).may_come(&from(cid, source), port);
            assert_eq!(came, may, "{by_kernel} {cid} {source} {port}");
        }
    }
}
