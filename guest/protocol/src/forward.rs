//! Carries a TCP connection to a server in the guest over a vsock connection of its own.
//!
//! The host connects to [`crate::port::FORWARD`] and sends [`MAGIC`], the address as an IPv6 one
//! (16 bytes; IPv4-mapped, RFC 4291 2.5.5.2) and the port (2 bytes, little endian). The guest
//! connects to that address and answers with one byte, [`CONNECTED`] or [`REFUSED`].
//!
//! After [`CONNECTED`], each direction is a stream of frames, see [`crate::stream`]. The end of the
//! stream is the end of that direction of the TCP connection. If the connection closes without it,
//! the TCP connection was reset.

use std::{
    net::{Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use tokio::{
    io::{split, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{mpsc, Mutex, Semaphore},
};

use crate::stream::{self, Frame, Header, StreamError, WINDOW};

/// The first bytes of a connection.
pub const MAGIC: [u8; 4] = *b"CSF1";
/// The guest's answer if a server has accepted the connection.
pub const CONNECTED: u8 = 1;
/// The guest's answer if no server listens there.
pub const REFUSED: u8 = 0;

/// Requests a connection, as the side that connected.
pub async fn write_request<W>(connection: &mut W, to: SocketAddr) -> Result<(), StreamError>
where
    W: AsyncWrite + Unpin,
{
    let address = match to {
        SocketAddr::V4(to) => to.ip().to_ipv6_mapped(),
        SocketAddr::V6(to) => *to.ip(),
    };
    let mut hello = [0; 22];
    hello[..4].copy_from_slice(&MAGIC);
    hello[4..20].copy_from_slice(&address.octets());
    hello[20..].copy_from_slice(&to.port().to_le_bytes());
    connection.write_all(&hello).await?;
    connection.flush().await?;
    Ok(())
}

/// Reads the requested address, as the side that accepted. The caller sets the time limit.
pub async fn read_request<R>(connection: &mut R) -> Result<SocketAddr, StreamError>
where
    R: AsyncRead + Unpin,
{
    stream::read_magic(connection, MAGIC).await?;
    let mut address = [0; 16];
    connection.read_exact(&mut address).await?;
    let port = connection.read_u16_le().await?;
    let address = Ipv6Addr::from(address).to_canonical();
    Ok(SocketAddr::new(address, port))
}

/// Carries both directions of a TCP connection over `connection` until both have ended. After an
/// error, the caller must reset the TCP connection.
///
/// Neither direction waits for the other: what the peer may send before it has an answer is
/// buffered here. This takes the memory of [`stream::WINDOW`] frames and one more.
pub async fn copy<C, T>(connection: &mut C, tcp: &mut T) -> Result<(), StreamError>
where
    C: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let (mut from_peer, to_peer) = split(connection);
    let (mut from_tcp, mut to_tcp) = split(tcp);
    // Shared by two writers: one sends the frames of one direction, the other confirms frames of
    // the other direction.
    let to_peer = Mutex::new(to_peer);
    let window = Semaphore::new(WINDOW);
    let at_end = AtomicBool::new(false);
    let (arrived, mut waiting) = mpsc::channel::<Vec<u8>>(WINDOW);

    let inwards = async {
        let mut frame = Frame::default();
        while !at_end.load(Relaxed) {
            let permit = window.acquire().await.map_err(|_| StreamError::Window)?;
            let length = frame.fill(&mut from_tcp).await?;
            // Returned when the peer confirms that it has taken the frame.
            permit.forget();
            at_end.store(length == 0, Relaxed);
            frame.write(&mut *to_peer.lock().await).await?;
        }
        Ok(())
    };
    let outwards = async {
        while let Some(payload) = waiting.recv().await {
            to_tcp.write_all(&payload).await?;
            stream::write_taken(&mut *to_peer.lock().await).await?;
        }
        to_tcp.shutdown().await?;
        stream::write_taken(&mut *to_peer.lock().await).await
    };
    let frames = async {
        let mut arrived = Some(arrived);
        loop {
            match stream::read_header(&mut from_peer).await? {
                Header::Payload(0) => arrived = None,
                Header::Payload(length) => {
                    let mut payload = vec![0; length];
                    from_peer.read_exact(&mut payload).await?;
                    let sender = arrived.as_ref().ok_or(StreamError::Window)?;
                    sender.try_send(payload).map_err(|_| StreamError::Window)?;
                }
                Header::Taken if window.available_permits() == WINDOW => {
                    return Err(StreamError::Window)
                }
                Header::Taken => window.add_permits(1),
            }
            let all_taken = at_end.load(Relaxed) && window.available_permits() == WINDOW;
            if arrived.is_none() && all_taken {
                return Ok(());
            }
        }
    };
    tokio::try_join!(inwards, outwards, frames).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn request_arrives_as_it_was() {
        for to in [
            "127.0.0.1:80",
            "[::1]:65535",
            "10.0.0.7:8080",
            "[fd00::7]:1",
        ] {
            let to: SocketAddr = to.parse().unwrap();
            let mut bytes = Vec::new();
            write_request(&mut bytes, to).await.unwrap();
            assert_eq!(read_request(&mut bytes.as_slice()).await.unwrap(), to);
        }
    }

    #[tokio::test]
    async fn direction_that_ended_leaves_the_other_open() {
        let (mut client, mut near) = tokio::io::duplex(1000);
        let (mut near_end, mut far_end) = tokio::io::duplex(1000);
        let (mut far, mut server) = tokio::io::duplex(1000);
        let carried = async {
            tokio::try_join!(copy(&mut near_end, &mut near), copy(&mut far_end, &mut far))
        };
        let talk = async {
            client.write_all(b"question").await.unwrap();
            client.shutdown().await.unwrap();
            let mut text = String::new();
            server.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, "question");
            server.write_all(b"answer").await.unwrap();
            server.shutdown().await.unwrap();
            text.clear();
            client.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, "answer");
        };
        let (carried, ()) = tokio::join!(carried, talk);
        carried.unwrap();
    }

    #[tokio::test]
    async fn direction_that_nobody_reads_does_not_stop_the_other() {
        let (client, mut near) = tokio::io::duplex(1000);
        let (mut near_end, mut far_end) = tokio::io::duplex(1 << 20);
        let (mut far, server) = tokio::io::duplex(1000);
        let (mut from_client, mut to_client) = tokio::io::split(client);
        let (mut from_server, mut to_server) = tokio::io::split(server);
        let flood = vec![0; 1 << 20];
        let mut all = flood.clone();
        let talk = async {
            tokio::select! {
                flooded = to_server.write_all(&flood) => panic!("all was taken: {flooded:?}"),
                sent = async {
                    to_client.write_all(&flood).await.unwrap();
                    std::future::pending::<()>().await
                } => sent,
                arrived = from_server.read_exact(&mut all) => drop(arrived.unwrap()),
            }
            // Nothing has been read from this side until now.
            assert_eq!(from_client.read(&mut [0]).await.unwrap(), 1);
        };
        tokio::select! {
            () = talk => {}
            carried = async {
                tokio::try_join!(copy(&mut near_end, &mut near), copy(&mut far_end, &mut far))
            } => panic!("ended: {carried:?}"),
        }
    }

    #[tokio::test]
    async fn connection_that_is_cut_is_an_error() {
        let (mut near_end, far_end) = tokio::io::duplex(1000);
        let (_client, mut near) = tokio::io::duplex(1000);
        drop(far_end);
        assert!(copy(&mut near_end, &mut near).await.is_err());
    }
}
