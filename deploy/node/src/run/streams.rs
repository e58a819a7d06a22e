//! stdin, stdout and stderr of this process, copied to and from the FIFOs that the shim opens.

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

/// How long output of a process that has ended may stay away before it is not waited for any more.
const STALL: Duration = Duration::from_secs(10);
/// Between two looks at whether it stays away.
const LOOK: Duration = Duration::from_millis(100);

/// The FIFOs of a process.
pub struct Fifos {
    dir: PathBuf,
    terminal: bool,
}

impl Fifos {
    /// Makes them in `dir`. A terminal has no stderr of its own.
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

    /// Empty with a terminal.
    pub fn stderr(&self) -> String {
        if self.terminal {
            String::new()
        } else {
            self.path("stderr")
        }
    }

    /// Starts copying; to be called when the shim has opened its ends.
    pub fn copy(self) -> Result<Streams> {
        let (done, stdin) = oneshot::channel();
        let path = self.stdin();
        thread::spawn(move || {
            // Opening waits until the shim reads.
            let fifo = File::options().write(true).open(path);
            if let Ok(mut fifo) = fifo {
                // A process may end without reading all of it.
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
    /// No more comes.
    Whole,
    /// Nobody takes it here any more.
    Broken,
}

/// Copies that run.
pub struct Streams {
    stdin: Option<oneshot::Receiver<()>>,
    ended: mpsc::UnboundedReceiver<End>,
    open: usize,
    broken: bool,
    activity: Arc<Activity>,
}

/// What the copying of output is at.
#[derive(Default)]
struct Activity {
    /// Pieces that have been copied.
    pieces: AtomicU64,
    /// Outputs that are just being written here.
    writing: AtomicU64,
}

/// What happens to the streams of a process that runs.
pub enum Event {
    /// This process's stdin has ended, and all of it has been passed on.
    StdinEnded,
    /// Who reads this process's output has gone.
    OutputBroken,
}

impl Streams {
    /// The next event; each happens once at most. Cancelling loses none.
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

/// The shim has its end open, so that this does not read an end that is none.
fn collect(
    path: &str,
    mut to: impl Write + Send + 'static,
    activity: &Arc<Activity>,
    ends: &mpsc::UnboundedSender<End>,
) -> Result<()> {
    let fifo = File::options()
        .read(true)
        // Where the shim has died meanwhile, opening would wait.
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
        // The receiver has gone where nobody waits for the output any more.
        let _ = ends.send(end);
    });
    Ok(())
}

/// Copies each piece as it comes: somebody may be watching. Fails only where writing does.
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
