//! Shows the demo's steps on the terminal, each with its time.

use std::{
    io::{IsTerminal, Write},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// A step that takes longer than this shows that it is still running.
const PATIENCE: Duration = Duration::from_secs(2);

/// Prints steps as they begin and end.
pub struct Steps {
    start: Instant,
}

impl Steps {
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    /// Runs one step; prints its name before it and its time after it.
    pub fn run<T>(&self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        print!("{name:<60}");
        let _ = std::io::stdout().flush();
        let begin = Instant::now();
        let (done, over) = mpsc::channel::<()>();
        let dots = thread::spawn(move || {
            // Print a dot each second, without a terminal too, so that a log shows progress.
            let mut wait = PATIENCE;
            while over.recv_timeout(wait) == Err(mpsc::RecvTimeoutError::Timeout) {
                print!(".");
                let _ = std::io::stdout().flush();
                wait = Duration::from_secs(1);
            }
        });
        let result = work();
        drop(done);
        let _ = dots.join();
        let outcome = if result.is_ok() { "" } else { " failed" };
        println!("{:6.2} s{outcome}", begin.elapsed().as_secs_f64());
        result.context(name.to_owned())
    }

    /// Prints what a step found.
    pub fn say(&self, text: &str) {
        let (bold, plain) = if std::io::stdout().is_terminal() {
            ("\x1b[1m", "\x1b[0m")
        } else {
            ("", "")
        };
        println!("    {bold}{text}{plain}");
    }

    pub fn total(&self) {
        println!(
            "{:<60}{:6.2} s",
            "all of it",
            self.start.elapsed().as_secs_f64()
        );
    }
}
