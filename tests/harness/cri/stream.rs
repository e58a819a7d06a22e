//! Exec and attach with their streams, over the WebSocket of containerd's streaming server. In the
//! protocol, `v4.channel.k8s.io`, every frame begins with the number of its channel. It has no
//! message for the end of standard input.

use std::{
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{bail, ensure, Context, Result};
use serde_json::Value;
use tungstenite::{client::ClientRequestBuilder, error::Error, http::Uri, Message, WebSocket};

use super::{
    api::{AttachRequest, ExecRequest},
    CriNode,
};
use crate::Output;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;

/// The streams of a process.
pub struct Session {
    socket: Channels,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// The `metav1.Status` sent when the process ends.
    status: Option<Value>,
}

impl Session {
    pub(crate) fn exec(node: &CriNode, id: &str, cmd: Vec<String>, tty: bool) -> Result<Self> {
        let request = ExecRequest {
            container_id: id.to_owned(),
            cmd,
            tty,
            stdin: true,
            stdout: true,
            stderr: !tty,
        };
        let answer = node.runtime_call("Exec", |mut cri| async move { cri.exec(request).await })?;
        Self::connect(&answer.url)
    }

    pub(crate) fn attach(node: &CriNode, id: &str, stdin: bool, tty: bool) -> Result<Self> {
        let request = AttachRequest {
            container_id: id.to_owned(),
            stdin,
            tty,
            stdout: true,
            stderr: !tty,
        };
        let answer =
            node.runtime_call("Attach", |mut cri| async move { cri.attach(request).await })?;
        Self::connect(&answer.url)
    }

    fn connect(url: &str) -> Result<Self> {
        let mut session = Self {
            socket: Channels::connect(url)?,
            stdout: Vec::new(),
            stderr: Vec::new(),
            status: None,
        };
        // The server sends an empty frame when it is connected. Input sent before that may be lost.
        session.take(Instant::now() + Duration::from_secs(30))?;
        Ok(session)
    }

    /// Writes to standard input.
    pub fn write(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        for piece in bytes.as_ref().chunks(32 * 1024) {
            self.socket.send(STDIN, piece)?;
        }
        Ok(())
    }

    /// Sets the size of the terminal.
    pub fn resize(&mut self, columns: u16, rows: u16) -> Result<()> {
        let size = serde_json::json!({ "Width": columns, "Height": rows });
        self.socket.send(RESIZE, size.to_string().as_bytes())
    }

    /// Waits until a text has arrived on standard output. Returns everything that has arrived.
    pub fn wait_for(&mut self, text: &str) -> Result<String> {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let shown = String::from_utf8_lossy(&self.stdout).into_owned();
            if shown.contains(text) {
                return Ok(shown);
            }
            let open = self.take(end).with_context(|| shown.clone())?;
            ensure!(open, "{text:?} did not come: {shown}");
        }
    }

    /// Waits for the process's end. Returns its exit code and output.
    pub fn finish(mut self, limit: Duration) -> Result<Output> {
        let end = Instant::now() + limit;
        while self.take(end)? {}
        let status = self
            .status
            .context("the connection ended without a status")?;
        Ok(Output {
            code: exit_code(&status)?,
            stdout: self.stdout,
            stderr: self.stderr,
        })
    }

    /// Closes the connection, as a client that goes away does. Returns what has arrived until then.
    pub fn detach(mut self) -> Result<Output> {
        self.socket.close()?;
        Ok(Output {
            code: 0,
            stdout: self.stdout,
            stderr: self.stderr,
        })
    }

    /// Takes one frame. Returns `false` if the connection has ended.
    fn take(&mut self, end: Instant) -> Result<bool> {
        match self.socket.receive(end)? {
            None => return Ok(false),
            Some((STDOUT, bytes)) => self.stdout.extend(bytes),
            Some((STDERR, bytes)) => self.stderr.extend(bytes),
            Some((STATUS, bytes)) if !bytes.is_empty() => {
                self.status = Some(serde_json::from_slice(&bytes).context("status of the end")?);
            }
            Some(_) => {}
        }
        Ok(true)
    }
}

fn exit_code(status: &Value) -> Result<i32> {
    if status["status"] == "Success" {
        return Ok(0);
    }
    let causes = status["details"]["causes"].as_array();
    let code = causes
        .into_iter()
        .flatten()
        .find(|cause| cause["reason"] == "ExitCode")
        .and_then(|cause| cause["message"].as_str()?.parse().ok());
    match code {
        Some(code) => Ok(code),
        None => bail!("{}", status["message"].as_str().unwrap_or("no message")),
    }
}

/// A WebSocket with numbered channels.
pub(crate) struct Channels(WebSocket<TcpStream>);

impl Channels {
    pub(crate) fn connect(url: &str) -> Result<Self> {
        let uri: Uri = url.replacen("http:", "ws:", 1).parse()?;
        let address = uri.authority().context("no host in the URL")?.to_string();
        let stream = TcpStream::connect(&address).with_context(|| address.clone())?;
        stream.set_nodelay(true)?;
        let request = ClientRequestBuilder::new(uri).with_sub_protocol("v4.channel.k8s.io");
        let (socket, _) = tungstenite::client(request, stream)
            .map_err(|error| anyhow::anyhow!("{error}"))
            .with_context(|| url.to_owned())?;
        Ok(Self(socket))
    }

    pub(crate) fn send(&mut self, channel: u8, bytes: &[u8]) -> Result<()> {
        let frame = [&[channel], bytes].concat();
        Ok(self.0.send(Message::binary(frame))?)
    }

    /// Returns the next frame, or `None` if the other side has ended. Fails if neither comes before
    /// `end`.
    pub(crate) fn receive(&mut self, end: Instant) -> Result<Option<(u8, Vec<u8>)>> {
        let left = end.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "nothing came in time");
        self.0.get_mut().set_read_timeout(Some(left))?;
        match self.0.read() {
            Ok(Message::Binary(frame)) => {
                let (&channel, bytes) = frame.split_first().context("a frame without channel")?;
                Ok(Some((channel, bytes.to_vec())))
            }
            // The library answers pings. They are reported with a number above all of our channels.
            Ok(Message::Close(_)) | Err(Error::ConnectionClosed) => Ok(None),
            Ok(_) => Ok(Some((u8::MAX, Vec::new()))),
            // Go's server closes the connection without the closing handshake.
            Err(Error::Protocol(_)) => Ok(None),
            Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                Ok(None)
            }
            Err(error) => Err(error).context("receive a frame"),
        }
    }

    pub(crate) fn close(&mut self) -> Result<()> {
        match self.0.close(None).and_then(|()| self.0.flush()) {
            Ok(()) | Err(Error::ConnectionClosed) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
