//! Connects the streams of a process and runs their copies.

use std::{
    io,
    os::fd::AsRawFd,
    sync::{
        atomic::{AtomicBool, Ordering},
        Arc,
    },
    time::Duration,
};

use caisson_node::host::chain::chain;
use caisson_protocol::{port, stream};
use tokio::{
    net::{unix::pipe, UnixStream},
    sync::watch,
    task::JoinHandle,
};

use super::{
    log_uri,
    sink::{Result, Sink, StreamError, Watched},
    tokens::{new_token, Tokens},
};
use crate::vm::VmHandle;

/// How long the guest may take to accept a stream connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// How long unread output may stay in a FIFO before it counts as read; the end of its process is
/// reported only then. containerd's client closes its end of a FIFO when it learns of the end
/// (`Delete` of 1.6 to 2.4), and what it has not read by then is lost.
pub const READ_LIMIT: Duration = Duration::from_secs(1);
/// How often the shim checks whether a FIFO has been emptied.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// The host's side of a process' streams: paths of FIFOs, or `file://` or `binary://` URIs. An
/// empty string means no stream.
#[derive(Debug, Clone, Default)]
pub struct Stdio {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

/// The host's ends of the streams. Output is already open, but stdin is opened only when it is
/// connected. Until the FIFO has a reader, a client can't write its input, and so does not close
/// stdin before there is a process to close it for.
pub struct HostEnds {
    stdin: Option<String>,
    stdout: Option<Sink>,
    stderr: Option<Sink>,
    /// The tokens by which the guest recognises the streams.
    pub tokens: Tokens,
}

impl HostEnds {
    /// Opens what `stdio` names. `container` and `namespace` are for logging programs.
    pub async fn open(stdio: &Stdio, container: &str, namespace: &str) -> Result<Self> {
        let mut ends = Self {
            stdin: None,
            stdout: None,
            stderr: None,
            tokens: Tokens::default(),
        };
        if !stdio.stdin.is_empty() {
            ends.stdin = Some(stdio.stdin.clone());
            ends.tokens.stdin = new_token()?;
        }
        let (stdout, stderr) = if log_uri::is_uri(&stdio.stdout) {
            log_uri::open(&stdio.stdout, container, namespace).await?
        } else {
            (open_output(&stdio.stdout)?, open_output(&stdio.stderr)?)
        };
        if stdout.is_some() {
            ends.tokens.stdout = new_token()?;
            ends.stdout = stdout;
        }
        if stderr.is_some() && !stdio.terminal {
            ends.tokens.stderr = new_token()?;
            ends.stderr = stderr;
        }
        Ok(ends)
    }

    /// Connects the streams to a process that was created with [`HostEnds::tokens`], and starts
    /// copying.
    pub async fn connect(self, vm: &VmHandle, name: &str) -> Result<Pumps> {
        let tokens = self.tokens;
        let (stdin, stdout, stderr) = tokio::try_join!(
            dial(vm, tokens.stdin),
            dial(vm, tokens.stdout),
            dial(vm, tokens.stderr),
        )?;
        let mut pumps = Pumps::default();
        if let (Some(mut connection), Some(path)) = (stdin, self.stdin) {
            let name = name.to_owned();
            let (mut fifo, hold) = open_stdin(&path)?;
            pumps.stdin_hold = Some(hold);
            pumps.stdin = Some(tokio::spawn(async move {
                match stream::send(&mut fifo, &mut connection).await {
                    Ok(bytes) => log::debug!(process = name, bytes; "stdin ended"),
                    // This happens when a process ends before its input.
                    Err(error) => log::debug!(process = name; "stdin was cut: {}", chain(&error)),
                }
            }));
        }
        for (stream, connection, sink) in [
            ("stdout", stdout, self.stdout),
            ("stderr", stderr, self.stderr),
        ] {
            if let (Some(connection), Some(sink)) = (connection, sink) {
                let open = pumps.output_open.subscribe();
                let is_full = Arc::new(AtomicBool::new(false));
                let sink = Watched {
                    sink,
                    is_full: is_full.clone(),
                };
                let pump = pump_output(name.to_owned(), stream, connection, sink);
                pumps.output.push(Output {
                    task: tokio::spawn(async move {
                        pump.await;
                        drop(open);
                    }),
                    is_full,
                    waited_for_guest: Duration::ZERO,
                });
            }
        }
        Ok(pumps)
    }
}

/// The running copies of a process' streams. Dropping them cuts what is left.
#[derive(Default)]
pub struct Pumps {
    stdin: Option<JoinHandle<()>>,
    /// A writer of the shim's own. With it, the process sees the end of its stdin when containerd
    /// asks for that (CloseIO) and all writers have gone, but not when a client detaches.
    stdin_hold: Option<pipe::Sender>,
    output: Vec<Output>,
    /// Each output holds a receiver until it has ended.
    output_open: watch::Sender<()>,
}

/// A running copy of one output.
struct Output {
    task: JoinHandle<()>,
    /// Whether the output's reader is slower than the guest at the moment.
    is_full: Arc<AtomicBool>,
    /// How long the copy has waited for the guest, not for the reader, since the process ended.
    waited_for_guest: Duration,
}

impl Pumps {
    /// Returns a sender whose `closed` resolves once all output has been read.
    pub fn output_open(&self) -> watch::Sender<()> {
        self.output_open.clone()
    }

    /// Lets the process' stdin end when its last writer closes it.
    pub fn close_stdin(&mut self) {
        self.stdin_hold = None;
    }

    /// Waits until all output has arrived at its destination, at most for `within`.
    pub async fn drain(&mut self, within: Duration) {
        let tasks = self.output.iter_mut().map(|output| &mut output.task);
        let all = futures::future::join_all(tasks);
        if tokio::time::timeout(within, all).await.is_err() {
            log::warn!("output is cut: still open after {within:?}");
        }
    }

    /// Adds `time` to the time since the process ended, and cuts each output that the guest has not
    /// ended within `most`. Time in which the guest waits for a reader does not count. Returns
    /// whether any output is still open.
    pub fn count(&mut self, time: Duration, most: Duration) -> bool {
        for output in &mut self.output {
            if !output.is_full.load(Ordering::Relaxed) {
                output.waited_for_guest += time;
            }
            if output.waited_for_guest > most && !output.task.is_finished() {
                log::warn!("output is cut: its process has ended, and the guest keeps it open");
                output.task.abort();
            }
        }
        self.output.iter().any(|output| !output.task.is_finished())
    }
}

impl Drop for Pumps {
    fn drop(&mut self) {
        let output = self.output.iter().map(|output| &output.task);
        for task in self.stdin.iter().chain(output) {
            task.abort();
        }
    }
}

async fn pump_output(
    name: String,
    stream: &'static str,
    mut connection: UnixStream,
    mut sink: Watched,
) {
    match stream::receive(&mut connection, &mut sink).await {
        Ok(bytes) => log::debug!(process = name, stream, bytes; "stream ended"),
        Err(error) => {
            log::warn!(process = name, stream; "output was cut: {}", chain(&error))
        }
    }
    if let Sink::Fifo(fifo) = &sink.sink {
        let read = tokio::time::timeout(READ_LIMIT, until_read(fifo)).await;
        read.unwrap_or_else(|_| log::debug!(process = name, stream; "output is not read"));
    }
}

/// Waits until the FIFO is empty.
async fn until_read(fifo: &pipe::Sender) {
    let mut unread: libc::c_int = 0;
    // SAFETY: an open descriptor, and FIONREAD (pipe(7)) writes an int.
    while unsafe { libc::ioctl(fifo.as_raw_fd(), libc::FIONREAD, &mut unread) } == 0 && unread > 0 {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn dial(vm: &VmHandle, token: u64) -> Result<Option<UnixStream>> {
    if token == 0 {
        return Ok(None);
    }
    let mut connection = vm.connect(port::STREAMS, CONNECT_LIMIT).await?;
    match stream::write_token(&mut connection, token).await {
        Ok(()) => Ok(Some(connection)),
        Err(error) => Err(StreamError::Silent(chain(&error))),
    }
}

fn open_stdin(path: &str) -> Result<(pipe::Receiver, pipe::Sender)> {
    let open = || {
        let receiver = pipe::OpenOptions::new().open_receiver(path)?;
        let hold = pipe::OpenOptions::new().open_sender(path)?;
        io::Result::Ok((receiver, hold))
    };
    open().map_err(|source| StreamError::Open {
        stream: format!("stdin fifo {path}"),
        source,
    })
}

fn open_output(path: &str) -> Result<Option<Sink>> {
    if path.is_empty() {
        return Ok(None);
    }
    // Opened for reading and writing, so that opening does not wait for a reader, and a reader may
    // leave for a while without breaking anything.
    let sender = pipe::OpenOptions::new().read_write(true).open_sender(path);
    let sender = sender.map_err(|source| StreamError::Open {
        stream: format!("output fifo {path}"),
        source,
    })?;
    Ok(Some(Sink::Fifo(sender)))
}
