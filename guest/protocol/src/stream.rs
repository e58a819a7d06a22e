//! Carries one byte stream of one process, in one direction, over a vsock connection of its own.
//!
//! The host connects to [`crate::port::STREAMS`] and sends [`MAGIC`] and the token (8 bytes, little
//! endian) that it gave in `CreateContainer` or `Exec`. From then on the sender (the host for
//! stdin, the guest for stdout and stderr) sends frames: a length of 4 bytes, little endian, then
//! that many bytes, at most [`MAX_FRAME`]. A frame of length 0 is the end of the stream; a
//! connection that closes without it was cut. Because of this explicit end, nothing depends on how
//! a vsock device treats half-closed connections.
//!
//! The receiver answers each frame, including the end, with [`TAKEN`] (4 bytes, little endian) once
//! it has passed the frame on. At most [`WINDOW`] frames may be unanswered, so a receiver that does
//! not read stops the sender. The connection's own credit is not used for this: a device that runs
//! out of credit may ask the guest for more again and again (vhost-device-vsock 0.3 does so without
//! a pause), and then the answers leave an emulated processor no time to read.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The first bytes of a stream connection.
pub const MAGIC: [u8; 4] = *b"CSN1";

/// The largest payload of a frame, in bytes.
pub const MAX_FRAME: usize = 64 * 1024;

/// The most frames that may be unanswered. Together they are smaller than the 256 KiB of credit
/// that Linux gives a vsock connection (net/vmw_vsock/af_vsock.c, `VSOCK_DEFAULT_BUFFER_SIZE`).
pub const WINDOW: usize = 3;

/// After a frame smaller than this, the sender waits for [`GATHER`]. Otherwise lines that are
/// written one by one would become as many frames.
const SMALL: usize = 16 * 1024;
/// Short enough that nobody at a terminal notices it.
const GATHER: Duration = Duration::from_millis(2);

/// Sent by the receiver in place of a length when it has passed a frame on.
pub const TAKEN: u32 = 1 << 31;

/// The errors of a stream.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection failed, or ended before the end frame (`UnexpectedEof`).
    #[error("stream connection")]
    Connection(#[from] std::io::Error),
    /// The connection starts with the first bytes of something else.
    #[error("not a connection of this kind: starts with {0:02x?}")]
    Magic([u8; 4]),
    /// A frame claims to be larger than [`MAX_FRAME`].
    #[error("frame of {0} bytes, at most {MAX_FRAME} are allowed")]
    FrameTooLarge(usize),
    /// The other side confirms a frame that was not sent, or sends one that it may not send yet.
    #[error("the other side does not keep to {WINDOW} frames")]
    Window,
}

/// Opens a stream, as the side that connected.
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

/// Reads the token, as the side that accepted. The caller sets the time limit.
pub async fn read_token<R>(connection: &mut R) -> Result<u64, StreamError>
where
    R: AsyncRead + Unpin,
{
    read_magic(connection, MAGIC).await?;
    Ok(connection.read_u64_le().await?)
}

/// Reads the first bytes of a connection, and fails unless they are the expected ones.
pub(crate) async fn read_magic<R>(connection: &mut R, expected: [u8; 4]) -> Result<(), StreamError>
where
    R: AsyncRead + Unpin,
{
    let mut magic = [0; 4];
    connection.read_exact(&mut magic).await?;
    if magic != expected {
        return Err(StreamError::Magic(magic));
    }
    Ok(())
}

/// Copies `source` until its end into frames on `connection`, then sends the end frame. Returns the
/// number of bytes copied, all of which the receiver has passed on.
///
/// Takes the memory of one frame. Cancelling loses data that was read and not yet sent.
pub async fn send<R, C>(source: &mut R, connection: &mut C) -> Result<u64, StreamError>
where
    R: AsyncRead + Unpin,
    C: AsyncRead + AsyncWrite + Unpin,
{
    let mut frame = Frame::default();
    let mut total = 0;
    let mut on_their_way = 0;
    loop {
        let length = frame.fill(source).await?;
        frame.write(connection).await?;
        on_their_way += 1;
        total += length as u64;
        let limit = if length == 0 { 0 } else { WINDOW - 1 };
        while on_their_way > limit {
            match read_header(connection).await? {
                Header::Taken => on_their_way -= 1,
                Header::Payload(_) => return Err(StreamError::Window),
            }
        }
        match length {
            0 => return Ok(total),
            1..SMALL => tokio::time::sleep(GATHER).await,
            _ => {}
        }
    }
}

/// Copies frames from `connection` into `sink` until the end frame. Returns the number of bytes
/// copied.
///
/// Takes the memory of one frame. `sink` is flushed after each frame, but not shut down.
pub async fn receive<C, W>(connection: &mut C, sink: &mut W) -> Result<u64, StreamError>
where
    C: AsyncRead + AsyncWrite + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; MAX_FRAME];
    let mut total = 0;
    loop {
        let Header::Payload(length) = read_header(connection).await? else {
            return Err(StreamError::Window);
        };
        connection.read_exact(&mut buffer[..length]).await?;
        sink.write_all(&buffer[..length]).await?;
        sink.flush().await?;
        write_taken(connection).await?;
        if length == 0 {
            return Ok(total);
        }
        total += length as u64;
    }
}

/// The start of a frame.
pub(crate) enum Header {
    /// This many bytes follow; 0 is the end of the stream.
    Payload(usize),
    Taken,
}

pub(crate) async fn read_header<R>(connection: &mut R) -> Result<Header, StreamError>
where
    R: AsyncRead + Unpin,
{
    match connection.read_u32_le().await? {
        TAKEN => Ok(Header::Taken),
        length if length as usize <= MAX_FRAME => Ok(Header::Payload(length as usize)),
        length => Err(StreamError::FrameTooLarge(length as usize)),
    }
}

pub(crate) async fn write_taken<W>(connection: &mut W) -> Result<(), StreamError>
where
    W: AsyncWrite + Unpin,
{
    connection.write_all(&TAKEN.to_le_bytes()).await?;
    connection.flush().await?;
    Ok(())
}

/// A frame that is being filled. Its length comes first.
pub(crate) struct Frame {
    buffer: Vec<u8>,
    length: usize,
}

impl Default for Frame {
    fn default() -> Self {
        Self {
            buffer: vec![0; 4 + MAX_FRAME],
            length: 0,
        }
    }
}

impl Frame {
    /// Fills the frame with what `source` has, and returns how many bytes that is: 0 at the end of
    /// `source`.
    pub(crate) async fn fill<R>(&mut self, source: &mut R) -> Result<usize, StreamError>
    where
        R: AsyncRead + Unpin,
    {
        self.length = source.read(&mut self.buffer[4..]).await?;
        self.buffer[..4].copy_from_slice(&(self.length as u32).to_le_bytes());
        Ok(self.length)
    }

    pub(crate) async fn write<W>(&self, connection: &mut W) -> Result<(), StreamError>
    where
        W: AsyncWrite + Unpin,
    {
        connection
            .write_all(&self.buffer[..4 + self.length])
            .await?;
        connection.flush().await?;
        Ok(())
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
    async fn receiver_that_takes_nothing_stops_the_sender() {
        let (mut near, mut far) = tokio::io::duplex(1 << 20);
        let mut endless = tokio::io::repeat(1);
        let sent = send(&mut endless, &mut near);
        let ended = tokio::time::timeout(std::time::Duration::from_millis(50), sent).await;
        assert!(ended.is_err());
        drop(near);
        let mut frames = Vec::new();
        far.read_to_end(&mut frames).await.unwrap();
        assert_eq!(frames.len(), WINDOW * (4 + MAX_FRAME));
    }

    /// Returns the receiver's error for what the other side sent.
    async fn received(bytes: &[u8]) -> StreamError {
        let (mut near, mut far) = tokio::io::duplex(1000);
        far.write_all(bytes).await.unwrap();
        drop(far);
        receive(&mut near, &mut Vec::new()).await.unwrap_err()
    }

    #[tokio::test]
    async fn stream_cut_before_its_end_is_an_error() {
        let error = received(&[3, 0, 0, 0, b'a', b'b']).await;
        assert!(matches!(error, StreamError::Connection(_)));
    }

    #[tokio::test]
    async fn frame_larger_than_the_limit_is_refused() {
        let error = received(&[0xff, 0xff, 0xff, 0xff]).await;
        assert!(matches!(error, StreamError::FrameTooLarge(_)));
    }

    #[tokio::test]
    async fn frame_taken_that_was_not_sent_is_refused() {
        let error = received(&TAKEN.to_le_bytes()).await;
        assert!(matches!(error, StreamError::Window));
        let (mut near, mut far) = tokio::io::duplex(1000);
        far.write_all(&[7, 0, 0, 0]).await.unwrap();
        let sent = send(&mut [1].as_slice(), &mut near).await;
        assert!(matches!(sent, Err(StreamError::Window)));
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
