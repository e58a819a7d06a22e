//! Port-forward over the WebSocket of containerd's streaming server: channel 0 carries the bytes,
//! channel 1 the errors.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};

use super::{api::PortForwardRequest, stream::Channels, CriNode};

const DATA: u8 = 0;
const ERROR: u8 = 1;

/// A connection to a port on a pod's loopback.
pub struct Forward {
    socket: Channels,
    received: Vec<u8>,
    errors: Vec<u8>,
    closed: bool,
}

impl Forward {
    pub(crate) fn connect(node: &CriNode, pod: &str, port: u16) -> Result<Self> {
        let request = PortForwardRequest {
            pod_sandbox_id: pod.to_owned(),
            port: vec![port.into()],
        };
        let answer = node.runtime_call("PortForward", |mut cri| async move {
            cri.port_forward(request).await
        })?;
        let mut forward = Self {
            socket: Channels::connect(&answer.url)?,
            received: Vec::new(),
            errors: Vec::new(),
            closed: false,
        };
        // Each channel begins with the port's number.
        let end = Instant::now() + Duration::from_secs(30);
        for channel in [DATA, ERROR] {
            let first = forward.socket.receive(end)?;
            ensure!(
                first == Some((channel, port.to_le_bytes().to_vec())),
                "port-forward begins with {first:?}"
            );
        }
        Ok(forward)
    }

    pub fn write(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        for piece in bytes.as_ref().chunks(32 * 1024) {
            self.socket.send(DATA, piece)?;
        }
        Ok(())
    }

    /// Waits until a text has arrived. Returns everything that has arrived.
    pub fn wait_for(&mut self, text: &str) -> Result<String> {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let shown = String::from_utf8_lossy(&self.received).into_owned();
            if shown.contains(text) {
                return Ok(shown);
            }
            let (length, error) = (shown.len(), self.error());
            ensure!(!self.closed, "closed after {length} bytes: {error}");
            self.take(end)
                .with_context(|| format!("after {length} bytes"))?;
        }
    }

    /// Waits until the other side has closed. Returns everything that arrived, or the server's
    /// error.
    pub fn read_to_end(mut self, limit: Duration) -> Result<Vec<u8>> {
        let end = Instant::now() + limit;
        while !self.closed {
            self.take(end)?;
        }
        if !self.errors.is_empty() {
            bail!("{}", self.error());
        }
        Ok(self.received)
    }

    fn error(&self) -> String {
        String::from_utf8_lossy(&self.errors).into_owned()
    }

    fn take(&mut self, end: Instant) -> Result<()> {
        match self.socket.receive(end)? {
            None => self.closed = true,
            Some((DATA, bytes)) => self.received.extend(bytes),
            Some((ERROR, bytes)) => self.errors.extend(bytes),
            Some(_) => {}
        }
        Ok(())
    }
}
