//! Runs one task of a shim, from `create` to `delete`, with this process's terminal, streams and
//! signals.

use std::{
    collections::VecDeque,
    fs::File,
    io::{BufRead, BufReader},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use containerd_shim_protos::{
    api::{
        CloseIORequest, CreateTaskRequest, DeleteRequest, KillRequest, ResizePtyRequest,
        StartRequest, WaitRequest,
    },
    ttrpc,
};
use nix::{sys::stat::Mode, unistd::mkfifo};
use tokio::{
    select,
    signal::unix::{signal, Signal, SignalKind},
};

use super::{
    bundle::Bundle,
    progress::Progress,
    streams::{Event, Fifos, Streams},
    terminal::{self, Raw},
};
use crate::shim::{patient, within, Shim};

/// How long the shim may take for a call that needs no boot.
const LIMIT: Duration = Duration::from_secs(30);
/// The time within which a second interrupt means that the process is to be killed.
const INSIST: Duration = Duration::from_secs(3);
/// The number of warnings and errors of the shim's log that are shown when a start has failed.
const LOG_LINES: usize = 10;

/// Runs the bundle's process to its end and returns its exit code.
pub async fn run(
    shim: &Shim,
    bundle: &Bundle,
    terminal: bool,
    signals: &mut Signals,
    progress: Progress,
) -> Result<u8> {
    let task = Task {
        shim,
        id: &bundle.id,
    };
    let fifos = Fifos::make(bundle.path(), terminal)?;
    let request = CreateTaskRequest {
        id: bundle.id.clone(),
        bundle: bundle.path().display().to_string(),
        terminal,
        stdin: fifos.stdin(),
        stdout: fifos.stdout(),
        stderr: fifos.stderr(),
        ..Default::default()
    };
    select! {
        // The shim limits the time of each of its steps.
        created = shim.tasks.create(patient(), &request) => created.map_err(refused)?,
        signal = signals.next_forwarded() => return Ok(128 + signal as u8),
    };
    drop(progress);
    let raw = if terminal { Raw::enter()? } else { None };
    if terminal {
        task.resize().await;
    }
    let mut streams = fifos.copy()?;
    let code = task.run(signals, &mut streams).await?;
    select! {
        () = streams.drain() => {}
        _ = signals.next_forwarded() => {}
    }
    drop(raw);
    task.delete().await?;
    Ok(code)
}

struct Task<'a> {
    shim: &'a Shim,
    id: &'a str,
}

impl Task<'_> {
    async fn run(&self, signals: &mut Signals, streams: &mut Streams) -> Result<u8> {
        let wait = WaitRequest {
            id: self.id.to_owned(),
            ..Default::default()
        };
        let ended = self.shim.tasks.wait(patient(), &wait);
        tokio::pin!(ended);
        let start = StartRequest {
            id: self.id.to_owned(),
            ..Default::default()
        };
        let tasks = &self.shim.tasks;
        let started = tasks.start(within(LIMIT), &start).await;
        started.map_err(refused)?;
        let mut interrupted: Option<Instant> = None;
        let mut broken = false;
        loop {
            select! {
                answer = &mut ended => {
                    let status = answer.map_err(refused).context("the shim has gone")?.exit_status;
                    return Ok(match broken {
                        true => 128 + libc::SIGPIPE as u8,
                        false => u8::try_from(status).unwrap_or(u8::MAX),
                    });
                }
                event = streams.next() => match event {
                    Event::StdinEnded => self.close_stdin().await,
                    Event::OutputBroken => {
                        // The process ends as the writer of a broken pipeline does. SIGKILL is used
                        // since SIGPIPE itself does nothing to an init.
                        broken = true;
                        self.kill(libc::SIGKILL).await;
                    }
                },
                signal = signals.next() => match signal {
                    libc::SIGWINCH => self.resize().await,
                    libc::SIGINT => {
                        let insists = interrupted.is_some_and(|at| at.elapsed() < INSIST);
                        interrupted = Some(Instant::now());
                        self.kill(if insists { libc::SIGKILL } else { libc::SIGINT }).await;
                    }
                    signal => self.kill(signal).await,
                },
            }
        }
    }

    async fn kill(&self, signal: i32) {
        let request = KillRequest {
            id: self.id.to_owned(),
            signal: signal as u32,
            ..Default::default()
        };
        // Fails if the process has just ended.
        let _ = self.shim.tasks.kill(within(LIMIT), &request).await;
    }

    async fn close_stdin(&self) {
        let request = CloseIORequest {
            id: self.id.to_owned(),
            stdin: true,
            ..Default::default()
        };
        // The process may have ended meanwhile.
        let _ = self.shim.tasks.close_io(within(LIMIT), &request).await;
    }

    async fn resize(&self) {
        let Some((width, height)) = terminal::size() else {
            return;
        };
        let request = ResizePtyRequest {
            id: self.id.to_owned(),
            width,
            height,
            ..Default::default()
        };
        // A window of the wrong size is no reason to end.
        let _ = self.shim.tasks.resize_pty(within(LIMIT), &request).await;
    }

    async fn delete(&self) -> Result<()> {
        let request = DeleteRequest {
            id: self.id.to_owned(),
            ..Default::default()
        };
        let deleted = self.shim.tasks.delete(within(LIMIT), &request).await;
        deleted.map(drop).map_err(refused).context("delete")
    }
}

/// Returns the shim's own error message, without the transport's text around it.
fn refused(error: ttrpc::Error) -> anyhow::Error {
    match error {
        ttrpc::Error::RpcStatus(status) => anyhow::Error::msg(status.message),
        other => other.into(),
    }
}

/// The shim's log, read by a thread: a shim stops if nothing reads its log.
pub struct Log {
    last: Arc<Mutex<VecDeque<String>>>,
    shown: bool,
}

impl Log {
    /// Makes the FIFO. If `shown`, lines go to stderr as they come.
    pub fn make(bundle: &Bundle, shown: bool) -> Result<Self> {
        let path = bundle.file("log");
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).context("make the shim's log")?;
        // Nothing is written here. But opened for writing too, the FIFO opens without waiting, and
        // one writer's end is no end of file.
        let fifo = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .context("open the shim's log")?;
        let last = Arc::new(Mutex::new(VecDeque::new()));
        let lines = last.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(fifo).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                if shown {
                    // The terminal may be raw.
                    eprint!("{line}\r\n");
                    continue;
                }
                let serious = ["level=warn", "level=error", "level=fatal"];
                if !serious.iter().any(|level| line.contains(level)) {
                    continue;
                }
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                lines.push_back(line);
                if lines.len() > LOG_LINES {
                    lines.pop_front();
                }
            }
        });
        Ok(Self { last, shown })
    }

    /// Shows the last warnings and errors, unless the log has been shown already.
    pub fn show(&self) {
        if self.shown {
            return;
        }
        let lines = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if !lines.is_empty() {
            eprintln!("the last warnings in the shim's log (all of it: --verbose):");
        }
        for line in lines.iter() {
            eprintln!("    {line}");
        }
    }
}

/// The signals that are forwarded to the process, and SIGWINCH, which says that the window has
/// another size.
pub struct Signals(Vec<(i32, Signal)>);

impl Signals {
    /// Starts to listen. From here on the signals do not end this process.
    pub fn listen() -> Result<Self> {
        let numbers = [
            libc::SIGINT,
            libc::SIGTERM,
            libc::SIGHUP,
            libc::SIGQUIT,
            libc::SIGUSR1,
            libc::SIGUSR2,
            libc::SIGWINCH,
        ];
        let listen = numbers.map(|number| Ok((number, signal(SignalKind::from_raw(number))?)));
        Ok(Self(listen.into_iter().collect::<Result<_>>()?))
    }

    async fn next(&mut self) -> i32 {
        std::future::poll_fn(|context| {
            for (number, signal) in &mut self.0 {
                if signal.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*number);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }

    /// Returns the next signal other than SIGWINCH.
    pub async fn next_forwarded(&mut self) -> i32 {
        loop {
            let number = self.next().await;
            if number != libc::SIGWINCH {
                return number;
            }
        }
    }
}
