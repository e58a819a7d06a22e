//! Copies stdin, stdout and stderr of this process to and from the FIFOs that the shim opens.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicU64, Ordering},
        Arc,
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    fcntl::{fcntl, FcntlArg, OFlag},
    sys::stat::Mode,
    unistd::mkfifo,
};
use tokio::sync::{mpsc, oneshot};

/// How long the output of a process that has ended may make no progress before it is given up.
const STALL: Duration = Duration::from_secs(10);
/// The time between two checks for progress.
const LOOK: Duration = Duration::from_millis(100);

/// The FIFOs of a process.
pub struct Fifos {
    dir: PathBuf,
    terminal: bool,
}

impl Fifos {
    /// Makes the FIFOs in `dir`. With a terminal there is none for stderr.
    pub fn make(dir: &Path, terminal: bool) -> Result<Self> {
        let fifos = Self {
            dir: dir.to_owned(),
            terminal,
        };
        for path in [fifos.stdin(), fifos.stdout(), fifos.stderr()] {
            if !path.is_empty() {
                mkfifo(Path::new(&path), Mode::S_IRUSR | Mode::S_IWUSR).context(path)?;
            }
        }
        Ok(fifos)
    }

    pub fn stdin(&self) -> String {
        self.path("stdin")
    }

    pub fn stdout(&self) -> String {
        self.path("stdout")
    }

    /// Returns the path of stderr's FIFO, which is empty with a terminal.
    pub fn stderr(&self) -> String {
        if self.terminal {
            String::new()
        } else {
            self.path("stderr")
        }
    }

    /// Starts copying. To be called when the shim has opened its ends.
    pub fn copy(self) -> Result<Streams> {
        let (done, stdin) = oneshot::channel();
        let path = self.stdin();
        thread::spawn(move || {
            // Opening waits until the shim reads.
            let fifo = File::options().write(true).open(path);
            if let Ok(mut fifo) = fifo {
                // The process may end without reading all of it.
                let _ = copy(io::stdin().lock(), |bytes| fifo.write_all(bytes));
            }
            let _ = done.send(());
        });
        let (ends, ended) = mpsc::unbounded_channel();
        let activity = Arc::new(Activity::default());
        let mut open = 1;
        collect(&self.stdout(), io::stdout(), &activity, &ends)?;
        if !self.terminal {
            collect(&self.stderr(), io::stderr(), &activity, &ends)?;
            open += 1;
        }
        Ok(Streams {
            stdin: Some(stdin),
            ended,
            open,
            broken: false,
            activity,
        })
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
}

/// How the copying of an output ended.
enum End {
    /// The output is complete.
    Whole,
    /// The output cannot be written here any more.
    Broken,
}

/// The copying that is going on.
pub struct Streams {
    stdin: Option<oneshot::Receiver<()>>,
    ended: mpsc::UnboundedReceiver<End>,
    open: usize,
    broken: bool,
    activity: Arc<Activity>,
}

/// The progress of copying output.
#[derive(Default)]
struct Activity {
    /// The number of pieces that have been copied.
    pieces: AtomicU64,
    /// The number of outputs that are being written here at the moment.
    writing: AtomicU64,
}

/// An event on the streams of a running process.
pub enum Event {
    /// This process's stdin has ended, and all of it has been passed on.
    StdinEnded,
    /// The reader of this process's output has gone.
    OutputBroken,
}

impl Streams {
    /// Returns the next event. Each happens at most once. Cancelling loses none.
    pub async fn next(&mut self) -> Event {
        loop {
            let stdin = async {
                match &mut self.stdin {
                    Some(end) => drop(end.await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stdin => {
                    self.stdin = None;
                    return Event::StdinEnded;
                }
                Some(end) = self.ended.recv() => {
                    self.open -= 1;
                    if matches!(end, End::Broken) && !std::mem::replace(&mut self.broken, true) {
                        return Event::OutputBroken;
                    }
                }
                else => std::future::pending().await,
            }
        }
    }

    /// Waits until all output has been written here, however slow its reader is.
    pub async fn drain(&mut self) {
        let (mut seen, mut still) = (0, Duration::ZERO);
        while self.open > 0 && !self.broken && still < STALL {
            tokio::select! {
                Some(_) = self.ended.recv() => self.open -= 1,
                () = tokio::time::sleep(LOOK) => {
                    let pieces = self.activity.pieces.load(Ordering::Relaxed);
                    let writing = self.activity.writing.load(Ordering::Relaxed) > 0;
                    let moves = writing || pieces != seen;
                    still = if moves { Duration::ZERO } else { still + LOOK };
                    seen = pieces;
                }
            }
        }
    }
}

/// Copies an output. The shim has its end open already, so that no end of file is read before the
/// output begins.
fn collect(
    path: &str,
    mut to: impl Write + Send + 'static,
    activity: &Arc<Activity>,
    ends: &mpsc::UnboundedSender<End>,
) -> Result<()> {
    let fifo = File::options()
        .read(true)
        // If the shim has died meanwhile, a blocking open would wait for ever.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .with_context(|| path.to_owned())?;
    fcntl(&fifo, FcntlArg::F_SETFL(OFlag::empty())).context("fcntl")?;
    let (activity, ends) = (activity.clone(), ends.clone());
    thread::spawn(move || {
        let watched = |bytes: &[u8]| {
            activity.writing.fetch_add(1, Ordering::Relaxed);
            let written = to.write_all(bytes).and_then(|()| to.flush());
            activity.writing.fetch_sub(1, Ordering::Relaxed);
            activity.pieces.fetch_add(1, Ordering::Relaxed);
            written
        };
        let end = match copy(fifo, watched) {
            Ok(()) => End::Whole,
            Err(_) => End::Broken,
        };
        // The receiver is gone if nothing waits for the output any more.
        let _ = ends.send(end);
    });
    Ok(())
}

/// Copies each piece as it comes, since somebody may be watching. Fails only if writing fails.
fn copy(mut from: impl Read, mut write: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => write(&buffer[..length])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Ok(()),
        }
    }
}
