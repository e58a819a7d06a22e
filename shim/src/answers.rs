//! A connection on which come answers of ttrpc's and nothing else, none larger than the agent has
//! any reason to send.
//!
//! ttrpc takes 4 MiB, and protobuf may make eighty bytes of two: a list of 2,000,000 empty entries
//! would be 160 MiB in the shim. A message of a stream, which the agent's service does not have,
//! would leave the call that it answers in ttrpc's table for ever.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The largest answer that makes sense is a list of [`crate::agent`]'s most pids, three bytes each.
pub const MAX_ANSWER: u32 = 256 << 10;
/// The length of a message's header (ttrpc, PROTOCOL.md): length of the body and id of the call,
/// big endian, type and flags.
const HEADER: usize = 10;
const RESPONSE: u8 = 2;

/// The connection. Any other message ends it with an error.
pub struct Bounded<S> {
    stream: S,
    /// What has come of a message's header.
    header: [u8; HEADER],
    length: usize,
    /// How much is still to come of its body.
    body: u32,
}

impl<S> Bounded<S> {
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            header: [0; HEADER],
            length: 0,
            body: 0,
        }
    }

    /// Follows the messages in what has come.
    fn follow(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.body > 0 {
                let here = bytes.len().min(self.body as usize);
                self.body -= here as u32;
                bytes = &bytes[here..];
                continue;
            }
            let here = bytes.len().min(HEADER - self.length);
            self.header[self.length..self.length + here].copy_from_slice(&bytes[..here]);
            self.length += here;
            bytes = &bytes[here..];
            if self.length == HEADER {
                let [a, b, c, d, _, _, _, _, kind, _] = self.header;
                self.body = u32::from_be_bytes([a, b, c, d]);
                self.length = 0;
                if self.body > MAX_ANSWER {
                    return Err(refused(format!(
                        "an answer of {} bytes, at most {MAX_ANSWER} are allowed",
                        self.body
                    )));
                }
                if kind != RESPONSE {
                    return Err(refused(format!("a message of type {kind}, not an answer")));
                }
            }
        }
        Ok(())
    }
}

fn refused(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(context, buffer) {
            Poll::Ready(Ok(())) => Poll::Ready(this.follow(&buffer.filled()[before..])),
            other => other,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    fn message(length: u32) -> Vec<u8> {
        let header = [&length.to_be_bytes()[..], &[0, 0, 0, 1, RESPONSE, 0]].concat();
        [header, vec![255; length as usize]].concat()
    }

    async fn refusal(bytes: Vec<u8>) -> String {
        let mut bounded = Bounded::new(bytes.as_slice());
        let error = bounded.read_to_end(&mut Vec::new()).await.unwrap_err();
        error.to_string()
    }

    #[tokio::test]
    async fn messages_up_to_the_limit_pass_however_they_are_cut() {
        let all = [message(0), message(3), message(MAX_ANSWER), message(1)].concat();
        for step in [1, 7, 100_000] {
            let mut bounded = Bounded::new(all.as_slice());
            let mut read: Vec<u8> = Vec::new();
            let mut part = vec![0; step];
            loop {
                match bounded.read(&mut part).await.unwrap() {
                    0 => break,
                    length => read.extend(&part[..length]),
                }
            }
            assert_eq!(read, all);
        }
    }

    #[tokio::test]
    async fn message_over_the_limit_ends_the_connection() {
        let error = refusal([message(5), message(MAX_ANSWER + 1)].concat()).await;
        assert!(error.contains("at most 262144"), "{error}");
    }

    #[tokio::test]
    async fn message_that_is_no_answer_ends_the_connection() {
        for kind in [0, 1, 3, 255] {
            let mut data = message(5);
            data[8] = kind;
            let error = refusal(data).await;
            assert!(error.contains(&format!("of type {kind}")), "{error}");
        }
    }
}
