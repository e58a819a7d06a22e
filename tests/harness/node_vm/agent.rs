//! Runs programs in a node VM by QEMU's guest agent there, over a virtio-serial port.
//!
//! Messages are JSON, one a line (QEMU, docs/interop/qemu-ga-ref). An agent that starts again
//! may find messages for the one before it, so what is read is skipped until the answer to a
//! `guest-sync-delimited` with a number of its own.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{bail, ensure, Context, Result};
use base64::{engine::general_purpose::STANDARD, Engine};
use serde_json::{json, Value};

use crate::command::Output;

/// How long the agent may take to answer. A command that it runs takes longer, but it answers
/// meanwhile.
const ANSWER: Duration = Duration::from_secs(20);
/// The status of a script that coreutils' `timeout` has ended.
const TIMED_OUT: i32 = 124;
/// What comes before an answer to `guest-sync-delimited`.
const DELIMITER: u8 = 0xff;
/// The environment of a login as root.
const ENVIRONMENT: [&str; 3] = [
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "LC_ALL=C.UTF-8",
];

/// The connection to an agent.
pub struct Agent(Mutex<BufReader<UnixStream>>);

impl Agent {
    /// Uses a connection, at whose other end there may be no agent yet.
    pub fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(ANSWER))?;
        Ok(Self(Mutex::new(BufReader::new(stream))))
    }

    /// Runs a script by bash to its end. One that takes longer than `limit` is killed, which is an
    /// error.
    pub fn run(&self, script: &str, limit: Duration) -> Result<Output> {
        let seconds = limit.as_secs().to_string();
        let arguments = ["--kill-after=10", &seconds, "/bin/bash", "-c", script];
        let started = self.call(
            "guest-exec",
            json!({
                "path": "/usr/bin/timeout",
                "arg": arguments,
                "env": ENVIRONMENT,
                "capture-output": true,
            }),
        )?;
        let end = Instant::now() + limit + 2 * ANSWER;
        loop {
            let status = self.call("guest-exec-status", json!({ "pid": started["pid"] }))?;
            if status["exited"] == true {
                let output = output(&status)?;
                ensure!(
                    output.code != TIMED_OUT,
                    "not finished after {limit:?}: {script}\nstdout: {}\nstderr: {}",
                    output.text(),
                    output.errors()
                );
                return Ok(output);
            }
            ensure!(Instant::now() < end, "not ended after {limit:?}: {script}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Begins a script by bash, and does not wait for its end.
    pub fn begin(&self, script: &str) -> Result<()> {
        let arguments = json!({ "path": "/bin/bash", "arg": ["-c", script], "env": ENVIRONMENT });
        self.call("guest-exec", arguments).map(drop)
    }

    fn call(&self, command: &str, arguments: Value) -> Result<Value> {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let id = fastrand::u32(..);
        // The byte resets the agent's parser, which may be within a message.
        stream.get_mut().write_all(&[DELIMITER])?;
        send(&mut stream, "guest-sync-delimited", json!({ "id": id }))?;
        while receive(&mut stream).context("guest-sync-delimited")?["return"] != id {}
        send(&mut stream, command, arguments)?;
        let mut answer = receive(&mut stream).with_context(|| command.to_owned())?;
        match answer.get("error") {
            None => Ok(answer["return"].take()),
            Some(error) => bail!("{command}: {error}"),
        }
    }
}

fn send(stream: &mut BufReader<UnixStream>, command: &str, arguments: Value) -> Result<()> {
    let message = json!({ "execute": command, "arguments": arguments });
    let line = format!("{message}\n");
    Ok(stream.get_mut().write_all(line.as_bytes())?)
}

/// Reads one message. A line that is none becomes null.
fn receive(stream: &mut BufReader<UnixStream>) -> Result<Value> {
    let mut line = Vec::new();
    ensure!(
        stream.read_until(b'\n', &mut line)? > 0,
        "the port is closed"
    );
    let start = line.iter().rposition(|byte| *byte == DELIMITER);
    let text = &line[start.map_or(0, |at| at + 1)..];
    Ok(serde_json::from_slice(text).unwrap_or_default())
}

/// Understands what `guest-exec-status` says of a program that has ended.
fn output(status: &Value) -> Result<Output> {
    let bytes = |key: &str| match status[key].as_str() {
        Some(text) => STANDARD.decode(text).with_context(|| key.to_owned()),
        None => Ok(Vec::new()),
    };
    let number = |key: &str| status[key].as_i64().and_then(|n| i32::try_from(n).ok());
    let code = number("exitcode").or_else(|| Some(128 + number("signal")?));
    Ok(Output {
        code: code.with_context(|| format!("no end in {status}"))?,
        stdout: bytes("out-data")?,
        stderr: bytes("err-data")?,
    })
}
