//! The places that output goes to, and the errors of streams.

use std::{
    io,
    pin::Pin,
    sync::{
        atomic::{AtomicBool, Ordering},
        Arc,
    },
    task::{Context, Poll},
};

use caisson_node::host::error::FileError;
use tokio::{io::AsyncWrite, net::unix::pipe};

use crate::vm::VmError;

/// What can go wrong with the streams of a process.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// A FIFO can't be opened, or a logging program can't be started.
    #[error("{stream} of the process")]
    Open {
        /// e.g. `stdin fifo /run/…`
        stream: String,
        #[source]
        source: io::Error,
    },
    /// The URI of a log names none.
    #[error("request: stdout: {uri:?} {reason}")]
    Uri { uri: String, reason: &'static str },
    /// The VM can't be connected to.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The guest did not take the stream.
    #[error("the agent in the guest did not answer stream: {0}")]
    Silent(String),
    /// An operation on a file failed.
    #[error(transparent)]
    File(#[from] FileError),
}

/// The result of opening or connecting a stream.
pub type Result<T> = std::result::Result<T, StreamError>;

/// A destination of output.
pub enum Sink {
    Fifo(pipe::Sender),
    /// A file or a logging program.
    Log(Pin<Box<dyn AsyncWrite + Send>>),
}

/// A sink that records whether it is currently full.
pub struct Watched {
    pub sink: Sink,
    pub is_full: Arc<AtomicBool>,
}

impl Watched {
    fn noted<T>(&self, poll: Poll<T>) -> Poll<T> {
        self.is_full.store(poll.is_pending(), Ordering::Relaxed);
        poll
    }

    fn sink(&mut self) -> Pin<&mut dyn AsyncWrite> {
        match &mut self.sink {
            Sink::Fifo(fifo) => Pin::new(fifo) as Pin<&mut dyn AsyncWrite>,
            Sink::Log(log) => log.as_mut(),
        }
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = self.sink().poll_write(cx, bytes);
        self.noted(poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = self.sink().poll_flush(cx);
        self.noted(poll)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.sink().poll_shutdown(cx)
    }
}
