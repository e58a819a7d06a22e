//! Limits what the agent may send on its service's connection: only ttrpc frames that are answers,
//! of a size and at a rate that do the shim no harm.
//!
//! A frame is a header of ten bytes and a payload (ttrpc, PROTOCOL.md). The header holds the length
//! of the payload and the id of the call, both big endian, and the type and flags. ttrpc itself
//! accepts up to 4 MiB, which protobuf may expand to 160 MiB; no legitimate answer of a guest is as
//! long. A stream message, which the agent's service does not have, would leave the call that it
//! answers in ttrpc's table for ever.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{ready, Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{sleep_until, Instant, Sleep},
};

const HEADER: usize = 10;
const RESPONSE: u8 = 2;
/// The largest answer is a list of [`crate::agent::MAX_PIDS`] pids, of up to four bytes each.
const MAX_FRAME: u32 = 320 * 1024;
/// The cost of a frame in addition to its bytes, since the shim starts a task for each.
const FRAME_COST: u32 = 1024;
/// The rate at which the connection is read in the long run.
const BYTES_PER_SECOND: u32 = 4 << 20;
/// How far reading may run ahead of the rate.
const BURST: Duration = Duration::from_secs(1);

/// A connection that fails at a frame that is too long or no answer, and that is not read faster
/// than allowed.
pub struct Frames<C> {
    connection: C,
    header: [u8; HEADER],
    /// The number of bytes of the header that have arrived.
    known: usize,
    /// The number of bytes of the payload that have not arrived yet.
    left: u32,
    /// The time at which everything read so far is paid for.
    paid: Instant,
    pause: Option<Pin<Box<Sleep>>>,
}

impl<C> Frames<C> {
    /// Wraps a connection whose next byte begins a frame.
    pub fn new(connection: C) -> Self {
        Self {
            connection,
            header: [0; HEADER],
            known: 0,
            left: 0,
            paid: Instant::now(),
            pause: None,
        }
    }

    /// Parses the bytes that have arrived. Returns the number of frames whose headers they
    /// completed.
    fn follow(&mut self, mut bytes: &[u8]) -> io::Result<u32> {
        let mut frames = 0;
        while !bytes.is_empty() {
            if self.left > 0 {
                let passed = bytes.len().min(self.left as usize);
                self.left -= passed as u32;
                bytes = &bytes[passed..];
                continue;
            }
            self.header[self.known] = bytes[0];
            self.known += 1;
            bytes = &bytes[1..];
            if self.known == HEADER {
                let [a, b, c, d, _, _, _, _, kind, _] = self.header;
                self.left = u32::from_be_bytes([a, b, c, d]);
                self.known = 0;
                frames += 1;
                if self.left > MAX_FRAME {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!(
                            "a frame of {} bytes, at most {MAX_FRAME} are taken",
                            self.left
                        ),
                    ));
                }
                if kind != RESPONSE {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("a frame of type {kind}, which is no answer"),
                    ));
                }
            }
        }
        Ok(frames)
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Frames<C> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(pause) = &mut this.pause {
            ready!(pause.as_mut().poll(context));
            this.pause = None;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.connection).poll_read(context, buffer))?;
        let (length, frames) = {
            let come = &buffer.filled()[before..];
            (come.len() as u32, this.follow(come)?)
        };
        let now = Instant::now();
        let cost = length + frames * FRAME_COST;
        this.paid = this.paid.max(now) + Duration::from_secs(1) * cost / BYTES_PER_SECOND;
        if this.paid > now + BURST {
            this.pause = Some(Box::pin(sleep_until(this.paid - BURST)));
        }
        Poll::Ready(Ok(()))
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Frames<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    fn frame(length: u32, payload: &[u8]) -> Vec<u8> {
        let rest = [0, 0, 0, 1, RESPONSE, 0];
        [&length.to_be_bytes(), rest.as_slice(), payload].concat()
    }

    async fn read(bytes: &[u8], at_once: usize) -> io::Result<Vec<u8>> {
        let mut frames = Frames::new(bytes);
        let mut all = Vec::new();
        let mut buffer = vec![0; at_once];
        loop {
            match frames.read(&mut buffer).await? {
                0 => return Ok(all),
                length => all.extend_from_slice(&buffer[..length]),
            }
        }
    }

    #[tokio::test]
    async fn frames_arrive_as_they_were_however_they_are_cut() {
        let whole = [
            frame(3, b"abc"),
            frame(0, b""),
            frame(MAX_FRAME, &vec![255; MAX_FRAME as usize]),
            frame(1, b"d"),
        ]
        .concat();
        for at_once in [1, 7, 10, 4096] {
            assert!(read(&whole, at_once).await.unwrap() == whole);
        }
    }

    #[tokio::test]
    async fn frame_that_says_it_is_too_long_breaks_the_connection_at_its_header() {
        for length in [MAX_FRAME + 1, u32::MAX] {
            let bytes = [frame(1, b"a"), frame(length, b"")].concat();
            let error = read(&bytes, 64).await.unwrap_err();
            assert!(error.to_string().contains(&length.to_string()), "{error}");
        }
    }

    #[tokio::test]
    async fn frame_that_is_no_answer_breaks_the_connection() {
        for kind in [0, 1, 3, 255] {
            let mut bytes = frame(1, b"a");
            bytes[8] = kind;
            let error = read(&bytes, 64).await.unwrap_err().to_string();
            assert!(error.contains(&format!("of type {kind}")), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn flood_of_empty_frames_is_slowed_down() {
        let started = Instant::now();
        let count = 10 * BYTES_PER_SECOND / FRAME_COST;
        read(&frame(0, b"").repeat(count as usize), 4096)
            .await
            .unwrap();
        assert!(started.elapsed() >= Duration::from_secs(8));
    }
}
