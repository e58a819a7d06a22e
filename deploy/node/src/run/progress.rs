//! Shows a line on the terminal that says what a start is doing, once it takes long.

use std::{
    io::{self, IsTerminal, Write},
    sync::{mpsc, Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How long a start may take before its progress is shown.
const PATIENCE: Duration = Duration::from_secs(2);

/// The progress line, which is removed when this is dropped.
pub struct Progress {
    stage: Arc<Mutex<&'static str>>,
    running: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
}

impl Progress {
    /// Starts the progress. Nothing is shown where stderr is no terminal.
    pub fn start(stage: &'static str) -> Self {
        let stage = Arc::new(Mutex::new(stage));
        let running = io::stderr().is_terminal().then(|| {
            let (done, over) = mpsc::channel();
            let shown = stage.clone();
            (done, thread::spawn(move || show(&shown, &over)))
        });
        Self { stage, running }
    }

    pub fn stage(&self, stage: &'static str) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((done, thread)) = self.running.take() {
            drop(done);
            // The thread returns nothing that would have to be reported.
            let _ = thread.join();
        }
    }
}

fn show(stage: &Mutex<&'static str>, over: &mpsc::Receiver<()>) {
    let started = Instant::now();
    let mut wait = PATIENCE;
    let mut shown = false;
    while over.recv_timeout(wait) == Err(mpsc::RecvTimeoutError::Timeout) {
        let stage = *stage.lock().unwrap_or_else(PoisonError::into_inner);
        write(&format!(
            "caisson: {stage} … {} s",
            started.elapsed().as_secs()
        ));
        shown = true;
        wait = Duration::from_secs(1);
    }
    if shown {
        write("");
    }
}

/// Replaces what the line shows.
fn write(text: &str) {
    let mut terminal = io::stderr();
    // Writing fails where the terminal has gone, which is reported elsewhere.
    let _ = write!(terminal, "\r\x1b[K{text}").and_then(|()| terminal.flush());
}
