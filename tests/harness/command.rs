//! Runs programs with a time limit and collects their output.

use std::{
    io::{Read, Write},
    os::{fd::AsFd, unix::process::ExitStatusExt},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{bail, ensure, Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout};

use crate::{task, Node};

/// What a finished program printed, and its exit code.
#[derive(Debug, Clone)]
pub struct Output {
    /// The exit status, or 128 + n after signal n.
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Output {
    /// Returns standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Returns standard output without the white space around it.
    pub fn line(&self) -> String {
        self.text().trim().to_owned()
    }

    /// Returns standard error as text.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Whether the program printed nothing.
    pub fn is_silent(&self) -> bool {
        self.stdout.is_empty() && self.stderr.is_empty()
    }

    /// Returns this output, or an error that shows all of it if the program did not exit with 0.
    pub fn ok(self) -> Result<Self> {
        ensure!(
            self.code == 0,
            "exit code {}\nstdout: {}\nstderr: {}",
            self.code,
            self.text(),
            self.errors()
        );
        Ok(self)
    }
}

/// A running program whose output is being collected.
pub struct Running {
    child: Child,
    name: String,
    stdout: Collected,
    stderr: Collected,
}

/// The bytes for a program's standard input, which is closed after them.
pub struct Stdin {
    bytes: Vec<u8>,
    /// Asked repeatedly before the input is closed, until it returns true.
    may_end: Box<dyn Fn() -> bool + Send>,
}

impl From<Vec<u8>> for Stdin {
    fn from(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            may_end: Box::new(|| true),
        }
    }
}

impl Stdin {
    /// Returns an input for `ctr` that is closed only once the process has started. If `ctr` sees
    /// the end of its input before the task or exec has been made, it never tells the shim.
    pub fn for_process(bytes: Vec<u8>, node: &Node, id: &str, exec_id: &str) -> Self {
        let (socket, namespace) = (node.socket(), node.tag().to_owned());
        let (id, exec_id) = (id.to_owned(), exec_id.to_owned());
        Self {
            bytes,
            may_end: Box::new(move || task::is_started(&socket, &namespace, &id, &exec_id)),
        }
    }

    fn write(self, mut pipe: impl Write + AsFd) {
        // A program may exit without reading all of it.
        let _ = pipe.write_all(&self.bytes);
        let give_up = Instant::now() + Duration::from_secs(60);
        while !has_no_reader(&pipe) && !(self.may_end)() && Instant::now() < give_up {
            // A hundred of these running side by side must leave containerd time for its work.
            std::thread::sleep(Duration::from_millis(250));
        }
    }
}

fn has_no_reader(pipe: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::empty())];
    nix::poll::poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Starts `command` with `stdin` (`None`: the null device).
pub fn spawn(command: &mut Command, stdin: Option<Stdin>) -> Result<Running> {
    let name = format!("{command:?}");
    let mut child = command
        .stdin(if stdin.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {name}"))?;
    if let Some((stdin, pipe)) = stdin.zip(child.stdin.take()) {
        std::thread::spawn(move || stdin.write(pipe));
    }
    let stdout = Collected::from(child.stdout.take());
    let stderr = Collected::from(child.stderr.take());
    Ok(Running {
        child,
        name,
        stdout,
        stderr,
    })
}

/// Runs `command` to its end. Fails if it takes longer than `limit`.
pub fn run(command: &mut Command, stdin: Option<Stdin>, limit: Duration) -> Result<Output> {
    spawn(command, stdin)?.finish(limit)
}

impl Running {
    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the program's end. A program that takes longer than `limit` is killed, which is an
    /// error.
    pub fn finish(mut self, limit: Duration) -> Result<Output> {
        let Some(status) = wait(&mut self.child, limit)? else {
            self.kill();
            let (stdout, stderr) = (self.stdout.read_to_the_end(), self.stderr.read_to_the_end());
            bail!(
                "not finished after {limit:?}: {}\nstdout: {}\nstderr: {}",
                self.name,
                String::from_utf8_lossy(&stdout),
                String::from_utf8_lossy(&stderr),
            );
        };
        Ok(Output {
            code: code(status),
            stdout: self.stdout.read_to_the_end(),
            stderr: self.stderr.read_to_the_end(),
        })
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits until the program has written a text to its standard output.
    pub fn wait_for_output(&self, text: &str) -> Result<()> {
        poll(
            &format!("{text:?} from {}", self.name),
            Duration::from_secs(60),
            || {
                String::from_utf8_lossy(&self.stdout.so_far())
                    .contains(text)
                    .then_some(())
            },
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.kill();
        }
    }
}

/// Polls until `probe` returns a value. After `limit`, returns an error that names `what`.
pub fn poll<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = probe() {
            return Ok(value);
        }
        ensure!(Instant::now() < end, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits for a child. Returns `None` if it is still running after `limit`.
pub fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().context("wait")? {
            return Ok(Some(status));
        }
        if Instant::now() > end {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// A program's output, collected by a thread.
#[derive(Default)]
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Collected {
    fn from(pipe: Option<impl Read + Send + 'static>) -> Self {
        let mut collected = Self::default();
        let bytes = collected.bytes.clone();
        collected.reader = pipe.map(|mut pipe| {
            std::thread::spawn(move || {
                let mut buffer = [0; 64 * 1024];
                while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                    lock(&bytes).extend_from_slice(&buffer[..length]);
                }
            })
        });
        collected
    }

    fn so_far(&self) -> Vec<u8> {
        lock(&self.bytes).clone()
    }

    fn read_to_the_end(&mut self) -> Vec<u8> {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        self.so_far()
    }
}

fn lock(bytes: &Mutex<Vec<u8>>) -> MutexGuard<'_, Vec<u8>> {
    bytes.lock().unwrap_or_else(PoisonError::into_inner)
}
