//! One byte stream of one process, on a vsock connection of its own, in one direction.
//!
//! The host connects to [`crate::port::STREAMS`] and sends [`MAGIC`] and the token (8 bytes, little endian) that it gave
//! in `CreateContainer` or `Exec`. From then on the sender (the host for stdin, the guest for stdout and
//! stderr) sends frames: a length of 4 bytes, little endian, then that many bytes, at most [`MAX_FRAME`].
//! A frame of length 0 is the end of the stream; a connection that closes without it was cut.
//! The explicit end means that nothing depends on how a vsock device treats half-closed connections.
//!
//! The receiver answers each frame, the end too, with [`TAKEN`] (4 bytes, little endian) once it has passed it on, and no more than [`WINDOW`]
//! frames may be without that answer: a receiver that does not read stops the sender. That is not left to the connection's
//! own credit, because a device that runs out of it may ask the guest for more again and again (vhost-device-vsock 0.3
//! does, without a pause), and the answers leave an emulated processor no time to read.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The first bytes of a stream connection.
pub const MAGIC: [u8; 4] = *b"CSN1";

/// The largest payload of a frame, in bytes.
pub const MAX_FRAME: usize = 64 * 1024;

/// The most frames on their way: less than the 256 KiB of credit that Linux gives a vsock connection (net/vmw_vsock/af_vsock.c,
/// `VSOCK_DEFAULT_BUFFER_SIZE`).
pub const WINDOW: usize = 3;

/// After a frame of less than this the sender waits for [`GATHER`], so that lines that are written one by one do not become as many frames.
const SMALL: usize = 16 * 1024;
/// Shorter than anybody at a terminal notices.
const GATHER: Duration = Duration::from_millis(2);

/// What the receiver sends in place of a length: it has passed a frame on.
pub const TAKEN: u32 = 1 << 31;

/// What can go wrong on a stream.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection failed, or ended before the end frame (`UnexpectedEof`).
    #[error("stream connection")]
    Connection(#[from] std::io::Error),
    /// The first bytes are those of something else.
    #[error("not a connection of this kind: starts with {0:02x?}")]
    Magic([u8; 4]),
    /// A frame says that it is larger than [`MAX_FRAME`].
    #[error("frame of {0} bytes, at most {MAX_FRAME} are allowed")]
    FrameTooLarge(usize),
    /// The other side says that it took a frame that was not sent, or sends one that it may not send yet.
    #[error("the other side does not keep to {WINDOW} frames")]
    Window,
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
    read_magic(connection, MAGIC).await?;
    Ok(connection.read_u64_le().await?)
}

/// Reads the first bytes of a connection, which have to be these.
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

/// Copies `source` to its end into frames on `connection`, then sends the end frame. Returns the bytes copied, all of
/// which the receiver has passed on.
///
/// Memory is one frame. Cancelling loses what was read and not yet sent.
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

/// Copies frames from `connection` into `sink` until the end frame. Returns the bytes copied.
///
/// Memory is one frame. `sink` is flushed after each frame and not shut down.
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

/// What a frame begins with.
pub(crate) enum Header {
    /// So many bytes follow; none is the end of the stream.
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

/// A frame that is being made, its length first.
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
    /// Fills it with what `source` has, and says how much that is: nothing at its end.
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

    /// What a receiver says of what the other side sent.
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
