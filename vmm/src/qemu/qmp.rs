//! A client of QEMU's monitor protocol (QMP) that can pass descriptors with commands.
//!
//! One task owns the connection, and [`Qmp`] sends it requests. Every command has the time limit
//! [`COMMAND_LIMIT`]. QEMU is trusted no more than the guest in it: a message has at most
//! [`MAX_MESSAGE`] bytes.
//!
//! (The crate `qapi` can't pass descriptors, which `getfd` and `add-fd` are for.)

use std::{
    collections::HashMap,
    fs::File,
    io::{self, IoSlice},
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use nix::sys::socket::{sendmsg, ControlMessage, MsgFlags};
use serde_json::{json, Value};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::UnixStream,
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::error::QmpError;

type Result<T> = std::result::Result<T, QmpError>;

/// The time limit of a command. It is enough for a busy machine: QEMU answers between two steps of
/// its main loop.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);
/// The maximum size of a message. The largest that QEMU sends is the list of hot-pluggable cpus,
/// some 200 bytes each.
const MAX_MESSAGE: usize = 1024 * 1024;
/// The maximum number of characters of QEMU's text in an error.
const MAX_TEXT: usize = 200;

/// A connection to QEMU's monitor. Clones share it, and the task that owns it ends with the last of
/// them.
#[derive(Debug, Clone)]
pub struct Qmp {
    requests: mpsc::Sender<Request>,
}

/// A report that QEMU sends on its own.
#[derive(Debug, Clone)]
pub struct Event {
    pub name: String,
    pub data: Value,
}

type Matches = Box<dyn Fn(&Event) -> bool + Send>;

#[derive(Debug)]
enum Request {
    Execute {
        command: String,
        arguments: Value,
        descriptor: Option<OwnedFd>,
        answer: oneshot::Sender<Result<Value>>,
    },
    Expect(Expected),
}

struct Expected {
    matches: Matches,
    seen: oneshot::Sender<Event>,
}

impl std::fmt::Debug for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Expected")
    }
}

impl Qmp {
    /// Waits for QEMU's greeting and leaves the negotiation mode. Each event goes to `on_event`,
    /// which must not block.
    pub async fn connect(
        stream: UnixStream,
        on_event: impl FnMut(&Event) + Send + 'static,
    ) -> Result<Qmp> {
        let (requests, receiver) = mpsc::channel(16);
        let mut driver = Driver {
            stream,
            unread: Vec::new(),
            pending: HashMap::new(),
            next_id: 0,
            expected: Vec::new(),
            on_event: Box::new(on_event),
        };
        let greeting = timeout(COMMAND_LIMIT, driver.message())
            .await
            .map_err(|_| QmpError::TimedOut {
                what: "QEMU's greeting".to_owned(),
                limit: COMMAND_LIMIT,
            })??;
        if greeting.get("QMP").is_none() {
            return Err(QmpError::Protocol(shortened(&greeting)));
        }
        tokio::spawn(driver.run(receiver));
        let qmp = Qmp { requests };
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Runs a command. Cancelling does not undo it.
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value> {
        self.execute_with(command, arguments, None).await
    }

    /// Gives QEMU a descriptor, which other commands call by its name.
    pub async fn pass(&self, name: &str, descriptor: OwnedFd) -> Result<()> {
        let name = json!({ "fdname": name });
        self.execute_with("getfd", name, Some(descriptor)).await?;
        Ok(())
    }

    /// Gives QEMU an open file, and returns the number of its fdset: other commands call it
    /// `/dev/fdset/NUMBER`, until [`Qmp::remove_file`].
    pub async fn add_file(&self, file: File) -> Result<u64> {
        let added = self
            .execute_with("add-fd", json!({}), Some(file.into()))
            .await?;
        added["fdset-id"]
            .as_u64()
            .ok_or_else(|| QmpError::Protocol(format!("add-fd: {}", shortened(&added))))
    }

    /// Takes the file away. What has it open keeps it.
    pub async fn remove_file(&self, fdset: u64) -> Result<()> {
        self.execute("remove-fd", json!({ "fdset-id": fdset }))
            .await?;
        Ok(())
    }

    async fn execute_with(
        &self,
        command: &str,
        arguments: Value,
        descriptor: Option<OwnedFd>,
    ) -> Result<Value> {
        let (answer, answered) = oneshot::channel();
        let request = Request::Execute {
            command: command.to_owned(),
            arguments,
            descriptor,
            answer,
        };
        let work = async {
            self.requests.send(request).await.map_err(|_| closed())?;
            answered.await.map_err(|_| closed())?
        };
        timeout(COMMAND_LIMIT, work)
            .await
            .map_err(|_| QmpError::TimedOut {
                what: format!("QEMU's {command}"),
                limit: COMMAND_LIMIT,
            })?
    }

    /// Watches for the next event that `matches`. Call this before the command that causes the
    /// event, and await the returned receiver with a time limit.
    pub async fn expect(
        &self,
        matches: impl Fn(&Event) -> bool + Send + 'static,
    ) -> Result<oneshot::Receiver<Event>> {
        let (seen, see) = oneshot::channel();
        let expected = Expected {
            matches: Box::new(matches),
            seen,
        };
        self.requests
            .send(Request::Expect(expected))
            .await
            .map_err(|_| closed())?;
        Ok(see)
    }
}

fn closed() -> QmpError {
    QmpError::Connection(io::ErrorKind::ConnectionReset.into())
}

/// The start of a message of QEMU's, for an error.
pub fn shortened(message: &Value) -> String {
    message.to_string().chars().take(MAX_TEXT).collect()
}

struct Driver {
    stream: UnixStream,
    unread: Vec<u8>,
    pending: HashMap<u64, (String, oneshot::Sender<Result<Value>>)>,
    next_id: u64,
    expected: Vec<Expected>,
    on_event: Box<dyn FnMut(&Event) + Send>,
}

impl Driver {
    /// Ends when the connection breaks or the last [`Qmp`] is dropped. Callers that wait then get
    /// an error.
    async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let error = loop {
            tokio::select! {
                message = self.message() => match message {
                    Ok(message) => self.dispatch(message),
                    Err(error) => break error,
                },
                request = requests.recv() => match request {
                    Some(request) => if let Err(error) = self.send(request).await {
                        break error;
                    },
                    None => return,
                },
            }
        };
        log::debug!(error = error.to_string().as_str(); "QEMU's monitor is closed");
    }

    /// Reads the next message. Cancel-safe.
    async fn message(&mut self) -> Result<Value> {
        loop {
            if let Some(end) = self.unread.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return serde_json::from_slice(&line).map_err(|error| {
                    let start: String = String::from_utf8_lossy(&line)
                        .chars()
                        .take(MAX_TEXT)
                        .collect();
                    QmpError::Protocol(format!("{start:?} ({error})"))
                });
            }
            if self.unread.len() > MAX_MESSAGE {
                return Err(QmpError::Protocol(format!(
                    "more than {MAX_MESSAGE} bytes in one message"
                )));
            }
            let read = self.stream.read_buf(&mut self.unread).await;
            if read.map_err(QmpError::Connection)? == 0 {
                return Err(closed());
            }
        }
    }

    fn dispatch(&mut self, message: Value) {
        if let Some(name) = message.get("event").and_then(Value::as_str) {
            let event = Event {
                name: name.to_owned(),
                data: message.get("data").cloned().unwrap_or_default(),
            };
            (self.on_event)(&event);
            self.expected.retain(|expected| !expected.seen.is_closed());
            let matching = self.expected.iter().position(|e| (e.matches)(&event));
            if let Some(index) = matching {
                let _ = self.expected.swap_remove(index).seen.send(event);
            }
            return;
        }
        let id = message.get("id").and_then(Value::as_u64);
        let Some((command, answer)) = id.and_then(|id| self.pending.remove(&id)) else {
            log::warn!(message = shortened(&message).as_str(); "QEMU answers what was not asked");
            return;
        };
        let text = |key: &str| {
            let value = message.pointer(&format!("/error/{key}"));
            let text = value.and_then(Value::as_str).unwrap_or_default();
            text.replace(char::is_control, " ")
                .chars()
                .take(MAX_TEXT)
                .collect()
        };
        let _ = answer.send(match message.get("return") {
            Some(value) => Ok(value.clone()),
            None => Err(QmpError::Refused {
                command,
                class: text("class"),
                desc: text("desc"),
            }),
        });
    }

    async fn send(&mut self, request: Request) -> Result<()> {
        let (command, arguments, descriptor, answer) = match request {
            Request::Expect(expected) => {
                self.expected.push(expected);
                return Ok(());
            }
            Request::Execute {
                command,
                arguments,
                descriptor,
                answer,
            } => (command, arguments, descriptor, answer),
        };
        self.next_id += 1;
        let id = self.next_id;
        let mut message = json!({ "execute": command, "id": id });
        if arguments.as_object().is_some_and(|a| !a.is_empty()) {
            message["arguments"] = arguments;
        }
        let bytes = format!("{message}\n").into_bytes();
        self.pending.insert(id, (command, answer));
        let sent = match descriptor {
            Some(descriptor) => Self::send_descriptor(&self.stream, &bytes, &descriptor).await?,
            None => 0,
        };
        self.stream
            .write_all(&bytes[sent..])
            .await
            .map_err(QmpError::Connection)
    }

    /// Sends the descriptor with as many of `bytes` as can be sent at once. Returns how many that
    /// were.
    async fn send_descriptor(
        stream: &UnixStream,
        bytes: &[u8],
        descriptor: &OwnedFd,
    ) -> Result<usize> {
        let descriptors = [descriptor.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        stream
            .async_io(Interest::WRITABLE, || {
                let socket = stream.as_raw_fd();
                sendmsg::<()>(
                    socket,
                    &[IoSlice::new(bytes)],
                    &rights,
                    MsgFlags::MSG_NOSIGNAL,
                    None,
                )
                .map_err(io::Error::from)
            })
            .await
            .map_err(QmpError::Connection)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, BufReader};

    use super::*;

    /// Plays QEMU: greets, then answers each command with the next of `answers` (`ID` is the
    /// command's id).
    fn peer(answers: &'static [&'static str]) -> (UnixStream, tokio::task::JoinHandle<Vec<Value>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let task = tokio::spawn(async move {
            let mut stream = BufReader::new(theirs);
            let hello = b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n";
            stream.write_all(hello).await.unwrap();
            let mut seen = Vec::new();
            for answer in ["{\"return\": {}, \"id\": ID}"].iter().chain(answers) {
                let mut line = String::new();
                stream.read_line(&mut line).await.unwrap();
                let command: Value = serde_json::from_str(&line).unwrap();
                let answer = answer.replace("ID", &command["id"].to_string());
                stream.write_all(answer.as_bytes()).await.unwrap();
                stream.write_all(b"\r\n").await.unwrap();
                seen.push(command);
            }
            seen
        });
        (ours, task)
    }

    #[tokio::test]
    async fn execute_sends_the_command_and_returns_the_answer() {
        let (stream, peer) = peer(&["{\"return\": {\"running\": true}, \"id\": ID}"]);
        let qmp = Qmp::connect(stream, |_| {}).await.unwrap();
        let hostile = json!({ "id": "a,b=c\n\"d" });
        let answer = qmp.execute("query-x", hostile.clone()).await.unwrap();
        assert_eq!(answer, json!({ "running": true }));
        let seen = peer.await.unwrap();
        assert_eq!(seen[1]["execute"], "query-x");
        assert_eq!(seen[1]["arguments"], hostile);
    }

    #[tokio::test]
    async fn refused_command_is_an_error_with_class_and_text() {
        let (stream, _peer) =
            peer(&["{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": ID}"]);
        let qmp = Qmp::connect(stream, |_| {}).await.unwrap();
        let error = qmp.execute("device_add", json!({})).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "QEMU refused device_add: no (GenericError)"
        );
    }

    #[tokio::test]
    async fn text_of_a_refusal_is_cut_and_cleaned() {
        let answer = format!(
            "{{\"error\": {{\"class\": \"GenericError\", \"desc\": \"\\u001b[31m{}\"}}, \"id\": ID}}",
            "x".repeat(100_000)
        );
        let answer: &'static str = answer.leak();
        let (stream, _peer) = peer(vec![answer].leak());
        let qmp = Qmp::connect(stream, |_| {}).await.unwrap();
        let error = qmp.execute("device_add", json!({})).await.unwrap_err();
        let text = error.to_string();
        assert!(
            text.len() < 300 && !text.contains(char::is_control),
            "{text:?}"
        );
    }

    #[tokio::test]
    async fn event_between_command_and_answer_reaches_who_expects_it() {
        let (stream, _peer) = peer(&["{\"event\": \"OTHER\"}\r\n\
             {\"event\": \"DEVICE_DELETED\", \"data\": {\"device\": \"x\"}}\r\n\
             {\"return\": {}, \"id\": ID}"]);
        let qmp = Qmp::connect(stream, |_| {}).await.unwrap();
        let deleted = qmp.expect(|e| e.name == "DEVICE_DELETED").await.unwrap();
        qmp.execute("device_del", json!({})).await.unwrap();
        assert_eq!(deleted.await.unwrap().data, json!({ "device": "x" }));
    }

    #[tokio::test]
    async fn peer_that_closes_fails_the_command() {
        let (stream, _peer) = peer(&[]);
        let qmp = Qmp::connect(stream, |_| {}).await.unwrap();
        let error = qmp.execute("query-status", json!({})).await.unwrap_err();
        assert!(matches!(error, QmpError::Connection(_)), "{error}");
    }

    #[tokio::test]
    async fn message_without_end_is_refused() {
        let (stream, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let mut theirs = theirs;
            while theirs.write_all(&[b'x'; 4096]).await.is_ok() {}
        });
        let error = Qmp::connect(stream, |_| {}).await.unwrap_err();
        assert!(matches!(error, QmpError::Protocol(_)), "{error}");
    }

    #[tokio::test]
    async fn pass_sends_a_descriptor_that_the_peer_can_use() {
        use std::io::{Read, Write};
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let peer = std::thread::spawn(move || {
            let mut theirs = theirs;
            theirs.write_all(b"{\"QMP\": {}}\n").unwrap();
            let mut buffer = [0; 1024];
            assert!(theirs.read(&mut buffer).unwrap() > 0);
            theirs.write_all(b"{\"return\": {}, \"id\": 1}\n").unwrap();
            let mut space = nix::cmsg_space!([i32; 1]);
            let mut bytes = [io::IoSliceMut::new(&mut buffer)];
            let message = nix::sys::socket::recvmsg::<()>(
                theirs.as_raw_fd(),
                &mut bytes,
                Some(&mut space),
                MsgFlags::empty(),
            )
            .unwrap();
            let passed = match message.cmsgs().unwrap().next() {
                Some(nix::sys::socket::ControlMessageOwned::ScmRights(list)) => list[0],
                other => panic!("{other:?}"),
            };
            // SAFETY: the kernel has just given us this descriptor.
            let passed = unsafe { <std::fs::File as std::os::fd::FromRawFd>::from_raw_fd(passed) };
            (&passed).write_all(b"through").unwrap();
            theirs.write_all(b"{\"return\": {}, \"id\": 2}\n").unwrap();
        });
        let stream = UnixStream::from_std(ours).unwrap();
        let qmp = Qmp::connect(stream, |_| {}).await.unwrap();
        qmp.pass("x", writer.into()).await.unwrap();
        peer.join().unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }
}
