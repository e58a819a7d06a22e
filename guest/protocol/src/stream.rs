//! One byte stream of one process, on a vsock connection of its own, in one direction.
//!
//! The host connects to [`crate::port::STREAMS`] and sends [`MAGIC`] and the token (8 bytes, little endian) that it gave
//! in `CreateContainer` or `Exec`. From then on the sender (the host for stdin, the guest for stdout and
//! stderr) sends frames: a length of 4 bytes, little endian, then that many bytes, at most [`MAX_FRAME`].
//! A frame of length 0 is the end of the stream; a connection that closes without it was cut.
//! The explicit end means that nothing depends on how a vsock device treats half-closed connections.
//! Back-pressure is the connection's own: a receiver that does not read stops the sender.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The first bytes of a stream connection.
pub const MAGIC: [u8; 4] = *b"CSN1";

/// The largest payload of a frame, in bytes.
pub const MAX_FRAME: usize = 64 * 1024;

/// What can go wrong on a stream.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection failed, or ended before the end frame (`UnexpectedEof`).
    #[error("stream connection")]
    Connection(#[from] std::io::Error),
    /// The first bytes are not [`MAGIC`].
    #[error("not a stream connection: starts with {0:02x?}")]
    Magic([u8; 4]),
    /// A frame says that it is larger than [`MAX_FRAME`].
    #[error("frame of {0} bytes, at most {MAX_FRAME} are allowed")]
    FrameTooLarge(usize),
}

/// Opens a stream as the side that connected.
pub async fn write_token<W>(connection: &mut W, token: u64) -> Result<(), StreamError>
where
    W: AsyncWrite + Unpin,
{
    let mut hello = [0; 12];
    hello[..4].copy_from_slice(&MAGIC);
    hello[4..].copy_from_slice(&token.to_le_bytes());
    connection.write_all(&hello).await?;
    connection.flush().await?;
    Ok(())
}

/// Reads the token as the side that accepted. The caller sets the time limit.
pub async fn read_token<R>(connection: &mut R) -> Result<u64, StreamError>
where
    R: AsyncRead + Unpin,
{
    let mut magic = [0; 4];
    connection.read_exact(&mut magic).await?;
    if magic != MAGIC {
        return Err(StreamError::Magic(magic));
    }
    Ok(connection.read_u64_le().await?)
}

/// Copies `source` to its end into frames on `connection`, then sends the end frame. Returns the bytes copied.
///
/// Memory is one frame. Cancelling loses what was read and not yet sent.
pub async fn send<R, W>(source: &mut R, connection: &mut W) -> Result<u64, StreamError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; 4 + MAX_FRAME];
    let mut total = 0;
    loop {
        let length = source.read(&mut buffer[4..]).await?;
        buffer[..4].copy_from_slice(&(length as u32).to_le_bytes());
        connection.write_all(&buffer[..4 + length]).await?;
        connection.flush().await?;
        if length == 0 {
            return Ok(total);
        }
        total += length as u64;
    }
}

/// Copies frames from `connection` into `sink` until the end frame. Returns the bytes copied.
///
/// Memory is one frame. `sink` is flushed after each frame and not shut down.
pub async fn receive<R, W>(connection: &mut R, sink: &mut W) -> Result<u64, StreamError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; MAX_FRAME];
    let mut total = 0;
    loop {
        let length = connection.read_u32_le().await? as usize;
        if length == 0 {
            return Ok(total);
        }
        if length > MAX_FRAME {
            return Err(StreamError::FrameTooLarge(length));
        }
        connection.read_exact(&mut buffer[..length]).await?;
        sink.write_all(&buffer[..length]).await?;
        sink.flush().await?;
        total += length as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stream_of_many_frames_arrives_unchanged() {
        let data: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
        let (mut near, mut far) = tokio::io::duplex(1000);
        let mut received = Vec::new();
        let (sent, got) = tokio::join!(
            async { send(&mut data.as_slice(), &mut near).await },
            async { receive(&mut far, &mut received).await },
        );
        assert_eq!((sent.unwrap(), got.unwrap()), (300_000, 300_000));
        assert_eq!(received, data);
    }

    #[tokio::test]
    async fn stream_cut_before_its_end_is_an_error() {
        let mut cut: &[u8] = &[3, 0, 0, 0, b'a', b'b'];
        assert!(receive(&mut cut, &mut Vec::new()).await.is_err());
    }

    #[tokio::test]
    async fn frame_larger_than_the_limit_is_refused() {
        let mut huge: &[u8] = &[0xff, 0xff, 0xff, 0xff];
        let refused = receive(&mut huge, &mut Vec::new()).await;
        assert!(matches!(refused, Err(StreamError::FrameTooLarge(_))));
    }

    #[tokio::test]
    async fn token_of_another_protocol_is_refused() {
        let mut http: &[u8] = b"GET / HTTP/1.1";
        assert!(matches!(
            read_token(&mut http).await,
            Err(StreamError::Magic(_))
        ));
    }
}
