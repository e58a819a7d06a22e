//! A TCP connection to a server in the guest, over a vsock connection of its own.
//!
//! The host connects to [`crate::port::FORWARD`] and sends [`MAGIC`], the address as an IPv6 one (16 bytes; IPv4-mapped, RFC 4291 2.5.5.2)
//! and the port (2 bytes, little endian). The guest connects there and answers with one byte, [`CONNECTED`] or [`REFUSED`]. After
//! [`CONNECTED`] each direction is a stream of frames, see [`crate::stream`]: its end is that of the TCP connection's
//! direction, and a connection that closes without it was reset.

use std::net::{Ipv6Addr, SocketAddr};

use tokio::io::{split, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::stream::{self, StreamError};

/// The first bytes of a connection.
pub const MAGIC: [u8; 4] = *b"CSF1";
/// The guest's answer: a server has taken the connection.
pub const CONNECTED: u8 = 1;
/// The guest's answer: nobody listens there.
pub const REFUSED: u8 = 0;

/// Asks for a connection, as the side that connected.
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

/// Reads what is asked for, as the side that accepted. The caller sets the time limit.
pub async fn read_request<R>(connection: &mut R) -> Result<SocketAddr, StreamError>
where
    R: AsyncRead + Unpin,
{
    let mut magic = [0; 4];
    connection.read_exact(&mut magic).await?;
    if magic != MAGIC {
        return Err(StreamError::Magic(magic));
    }
    let mut address = [0; 16];
    connection.read_exact(&mut address).await?;
    let port = connection.read_u16_le().await?;
    let address = Ipv6Addr::from(address).to_canonical();
    Ok(SocketAddr::new(address, port))
}

/// Carries both directions of a TCP connection over `connection`, each to its end. After an error the TCP connection is to be reset.
pub async fn copy<C, T>(connection: &mut C, tcp: &mut T) -> Result<(), StreamError>
where
    C: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let (mut from_peer, mut to_peer) = split(connection);
    let (mut from_tcp, mut to_tcp) = split(tcp);
    let inwards = stream::send(&mut from_tcp, &mut to_peer);
    let outwards = async {
        let received = stream::receive(&mut from_peer, &mut to_tcp).await?;
        to_tcp.shutdown().await?;
        Ok(received)
    };
    tokio::try_join!(inwards, outwards).map(drop)
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
    async fn connection_that_is_cut_is_an_error() {
        let (mut near_end, far_end) = tokio::io::duplex(1000);
        let (_client, mut near) = tokio::io::duplex(1000);
        drop(far_end);
        assert!(copy(&mut near_end, &mut near).await.is_err());
    }
}
